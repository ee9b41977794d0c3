package cli

import (
	"bytes"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func TestTheWidthIsThatOfTheTerminalThatAnOutputWritesTo(t *testing.T) {
	f, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("needs a pseudo-terminal: %v", err)
	}
	defer f.Close()
	if err := unix.IoctlSetWinsize(int(f.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 40}); err != nil {
		t.Fatal(err)
	}
	if a, b := columns(f), columns(NewOutput(f)); a != 40 || b != 40 {
		t.Errorf("%d, and %d by an Output", a, b)
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	if a, b := columns(new(bytes.Buffer)), columns(null); a != 0 || b != 0 {
		t.Errorf("%d, %d where there is no terminal", a, b)
	}
}
