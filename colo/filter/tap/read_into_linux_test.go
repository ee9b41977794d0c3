package tap_test

import (
	"bytes"
	"errors"
	"os"
	"testing"

	"github.com/gocolo/lockstep/colo/filter"
	"github.com/gocolo/lockstep/colo/filter/tap"
)

// questions writes n questions, each from another address, and answer returns which one a frame answers, if
// it is an answer.
func questions(t *testing.T, d *tap.Device, n int) {
	t.Helper()
	for i := range n {
		q := question(0)
		q[31] = byte(i + 2)
		if err := d.WritePacket(q); err != nil {
			t.Fatal(err)
		}
	}
}

func answer(p []byte) (which int, ok bool) {
	if len(p) != 42 || !bytes.Equal(p[12:14], []byte{8, 6}) || p[21] != 2 {
		return 0, false // the kernel says other things as well
	}
	return int(p[41]) - 2, true
}

// Frames come in order, whichever way they are read, also those that ReadPacket has read ahead.
func TestFramesAreReadWhereTheCallerWantsThem(t *testing.T) {
	d := open(t, tap.Config{})
	up(t, d)
	const n = 200
	questions(t, d, n)
	mem := make([]byte, filter.MaxFrame)
	for i, turn := 0, 0; i < n; turn++ {
		var p []byte
		var err error
		if turn%100 == 0 {
			p, err = d.ReadPacket()
		} else {
			var k int
			k, err = d.ReadInto(mem)
			p = mem[:k]
		}
		if err != nil {
			t.Fatal(err)
		}
		if got, ok := answer(p); ok {
			if got != i {
				t.Fatalf("answer %d, want %d", got, i)
			}
			i++
		}
	}
	questions(t, d, 1)
	for {
		k, err := d.ReadInto(mem[:14])
		if err != nil || k > 14 {
			t.Fatalf("%d bytes, %v", k, err)
		}
		if mem[12] == 8 && mem[13] == 6 {
			break
		}
	}
}

func TestCloseEndsAReadIntoMemory(t *testing.T) {
	d := open(t, tap.Config{})
	done := make(chan error)
	go func() {
		_, err := d.ReadInto(make([]byte, 100))
		done <- err
	}()
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !errors.Is(err, os.ErrClosed) {
		t.Errorf("%v", err)
	}
	for range 2 {
		var e *tap.Error
		if k, err := d.ReadInto(make([]byte, 100)); k != 0 || !errors.Is(err, os.ErrClosed) || !errors.As(err, &e) || e.Op != "read" {
			t.Errorf("%d, %v", k, err)
		}
	}
}

func TestReadingIntoMemoryAllocatesNothing(t *testing.T) {
	d := open(t, tap.Config{})
	up(t, d)
	q, mem := question(0), make([]byte, filter.MaxFrame)
	exchange := func() {
		if err := d.WritePacket(q); err != nil {
			t.Fatal(err)
		}
		if _, err := d.ReadInto(mem); err != nil {
			t.Fatal(err)
		}
	}
	exchange()
	if n := testing.AllocsPerRun(100, exchange); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
