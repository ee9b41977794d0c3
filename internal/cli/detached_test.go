package cli

import (
	"bytes"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestAWriteDoesNotWaitForAReaderThatTakesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, w := io.Pipe()
		out, errs := Detached(w, w)
		for _, o := range []*Output{out, errs, out} {
			if n, err := o.Write([]byte("line\n")); n != 5 || err != nil {
				t.Errorf("%d, %v", n, err)
			}
		}
		errs.Write([]byte("warning\n"))
		out.Write([]byte("end\n"))
		synctest.Wait() // the first line waits for the reader
		read := make(chan string)
		go func() {
			all, _ := io.ReadAll(r)
			read <- string(all)
		}()
		if got := out.Status(0, "program", io.Discard); got != 0 {
			t.Errorf("status %d", got)
		}
		w.Close()
		if all, want := <-read, "line\nline\nline\nwarning\nend\n"; all != want {
			t.Errorf("%q was written, and not %q", all, want)
		}
	})
}

func TestOutputThatNobodyTakesIsLeftOutWholeAndTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, w := io.Pipe()
		out, _ := Detached(w, w)
		line := []byte(strings.Repeat("x", 1023) + "\n")
		for range maxUnread / len(line) {
			if _, err := out.Write(line); err != nil {
				t.Fatal(err)
			}
		}
		if n, err := out.Write(line); n != 0 || err == nil {
			t.Errorf("of a line more %d bytes were kept, with %v", n, err)
		}
		var said bytes.Buffer
		if got := out.Status(0, "program", &said); got != 1 || !strings.Contains(said.String(), errUnread.Error()) {
			t.Errorf("status %d, it said %q", got, &said)
		}
		r.Close()
	})
}

// A reader that is slow, and takes something in each five seconds, gets all.
func TestStatusWaitsForASlowReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, w := io.Pipe()
		out, _ := Detached(w, w)
		for range 10 {
			out.Write([]byte("12345"))
		}
		go func() {
			b := make([]byte, 5)
			for range 10 {
				time.Sleep(lastWait / 2)
				io.ReadFull(r, b)
			}
		}()
		if got := out.Status(0, "program", io.Discard); got != 0 {
			t.Errorf("status %d", got)
		}
	})
}
