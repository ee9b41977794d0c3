package cli

import (
	"bytes"
	"errors"
	"testing"
)

// disk is a file on a file system with room for some bytes.
type disk struct {
	bytes.Buffer
	room int
}

var errFull = errors.New("no space left")

func (d *disk) Write(b []byte) (int, error) {
	if d.Len()+len(b) > d.room {
		return 0, errFull
	}
	return d.Buffer.Write(b)
}

func TestAProgramWhoseOutputWasNotWrittenHasFailed(t *testing.T) {
	d := &disk{room: 4}
	w := NewOutput(d)
	var said bytes.Buffer
	if _, err := w.Write([]byte("all")); err != nil || w.Status(0, "program", &said) != 0 || said.Len() > 0 {
		t.Fatalf("with room: %v, it said %q", err, &said)
	}
	if _, err := w.Write([]byte("of it")); !errors.Is(err, errFull) {
		t.Fatalf("without room: %v", err)
	}
	if _, err := w.Write([]byte(".")); err != nil {
		t.Fatal(err)
	}
	if got := w.Status(3, "program", &said); got != 3 || said.Len() > 0 {
		t.Errorf("a status of its own became %d, and it said %q", got, &said)
	}
	if got := w.Status(0, "program", &said); got != 1 || said.String() != "program: not all of the output was written: no space left\n" {
		t.Errorf("status %d, it said %q", got, &said)
	}
}
