package cli

import (
	"bytes"
	"fmt"
	"os"
	"testing"
)

func TestOnATerminalTheNextLineTakesThePlaceOfTheStatus(t *testing.T) {
	var out bytes.Buffer
	var l StatusLine
	l.Clear(&out)
	l.Show(&out, true, "1 of 2")
	l.Show(&out, true, "2 of 2")
	l.Clear(&out)
	fmt.Fprintln(&out, "done")
	l.Clear(&out)
	if got, want := out.String(), "\x1b[?7l1 of 2\x1b[?7h\r\x1b[K\x1b[?7l2 of 2\x1b[?7h\r\x1b[Kdone\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// What is cut within a number says another one.
func TestAStatusThatIsTooLongForATerminalLosesItsLastParts(t *testing.T) {
	status := "synchronising: 16 of 64 MiB, 1200 MiB/s, 12s left"
	for n, want := range map[int]string{
		0: status, 80: status, len(status): status,
		len(status) - 1: "synchronising: 16 of 64 MiB, 1200 MiB/s",
		40:              "synchronising: 16 of 64 MiB, 1200 MiB/s",
		39:              "synchronising: 16 of 64 MiB, 1200 MiB/s",
		38:              "synchronising: 16 of 64 MiB",
		27:              "synchronising: 16 of 64 MiB",
		26:              "synchronising: 16 of 64 Mi",
		1:               "s",
	} {
		if got := fit(status, n); got != want {
			t.Errorf("in %d columns it is %q, want %q", n, got, want)
		}
	}
}

func TestElsewhereAStatusIsALine(t *testing.T) {
	var out bytes.Buffer
	var l StatusLine
	l.Show(&out, false, "1 of 2")
	l.Clear(&out)
	if got := out.String(); got != "1 of 2\n" {
		t.Errorf("%q", got)
	}
}

func TestWhatIsNoTerminalIsNotTakenForOne(t *testing.T) {
	t.Setenv("TERM", "xterm")
	file, err := os.Create(t.TempDir() + "/out")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	if IsTerminal(new(bytes.Buffer)) || IsTerminal(file) || IsTerminal(null) {
		t.Error("a buffer, a file or the null device is taken for a terminal")
	}
}

// A device that people may be at stands for a terminal here.
func TestATerminalIsNoneWhereItCannotRewriteALine(t *testing.T) {
	device, err := os.Open("/dev/zero")
	if err != nil {
		t.Skipf("needs /dev/zero: %v", err)
	}
	defer device.Close()
	for term, want := range map[string]bool{"xterm": true, "dumb": false, "": false} {
		t.Setenv("TERM", term)
		if got := IsTerminal(device); got != want {
			t.Errorf("TERM=%q: %v, want %v", term, got, want)
		}
	}
}
