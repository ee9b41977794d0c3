package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// openPTY returns both ends of a pseudo-terminal.
func openPTY(t *testing.T) (user, program *os.File) {
	t.Helper()
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Skipf("needs a pseudo-terminal: %v", err)
	}
	user = os.NewFile(uintptr(fd), "ptmx")
	t.Cleanup(func() { user.Close() })
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if program, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		t.Skipf("needs a pseudo-terminal: %v", err)
	}
	t.Cleanup(func() { program.Close() })
	return user, program
}

func TestTheTerminalIsRawWhileTheGuestHasIt(t *testing.T) {
	user, program := openPTY(t)
	fd := int(program.Fd())
	before, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	c := newConsole(stdio{program, program, io.Discard}, false, nil)
	if now, err := unix.IoctlGetTermios(fd, unix.TCGETS); err != nil || *now != *before {
		t.Errorf("changed before the guest has it: %v", err)
	}
	c.start(nil)
	if !c.raw() {
		t.Fatal("not known for a terminal")
	}
	// Interrupt, flow control, and a line without its end: all is the guest's.
	const keys = "\x03\x13\x11ab\r"
	if _, err := user.WriteString(keys); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(keys))
	if _, err := io.ReadFull(program, got); err != nil || string(got) != keys {
		t.Errorf("got %q, %v", got, err)
	}
	c.Write([]byte("line\n"))
	c.say(program, "said\n")
	out := make([]byte, len("line\nsaid\r\n"))
	if _, err := io.ReadFull(user, out); err != nil || string(out) != "line\nsaid\r\n" {
		t.Errorf("the user sees %q, %v", out, err)
	}
	c.close()
	after, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil || *after != *before {
		t.Errorf("not given back as it was: %v", err)
	}
}

func TestAFileIsNoTerminal(t *testing.T) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	for _, in := range []io.Reader{null, strings.NewReader("")} {
		c := newConsole(stdio{in, io.Discard, io.Discard}, false, nil)
		c.start(nil)
		if c.raw() {
			t.Errorf("%v is a terminal", in)
		}
		c.close()
	}
}
