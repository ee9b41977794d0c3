package usage

import (
	"bytes"
	"flag"
	"testing"
)

func TestEachFlagHasALineWithItsDefault(t *testing.T) {
	f := flag.NewFlagSet("program", flag.ContinueOnError)
	f.Int("n", 3, "`number` of runs")
	f.Bool("json", false, "print JSON")
	f.String("qmp", "", "serve a monitor at `unix:PATH|HOST:PORT`")
	var got bytes.Buffer
	Print(&got, "Program does something.\n\n", f)
	const want = `Program does something.

  -json                     print JSON
  -n number                 number of runs (default 3)
  -qmp unix:PATH|HOST:PORT  serve a monitor at unix:PATH|HOST:PORT
`
	if got.String() != want {
		t.Errorf("%s\nwant\n%s", got.String(), want)
	}
}
