package main

import (
	"bytes"
	"fmt"
	"io"

	"github.com/gocolo/lockstep/qemufile"
)

// A verifier compares what is written again with what was read. It keeps only
// what has been read and not yet written.
type verifier struct {
	w    *qemufile.Writer
	want bytes.Buffer
	at   int64 // offset up to which the streams have been compared
	diff error // the first difference
}

// tee returns a reader of in that remembers what passes.
func (v *verifier) tee(in io.Reader) io.Reader {
	v.w = qemufile.NewWriter(writerFunc(v.compare))
	return io.TeeReader(in, &v.want)
}

// writerFunc is an io.Writer that is a function.
type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func (v *verifier) compare(p []byte) (int, error) {
	want := v.want.Next(len(p))
	if v.diff == nil && !bytes.Equal(p, want) {
		n := 0
		for n < len(want) && p[n] == want[n] {
			n++
		}
		v.diff = fmt.Errorf("written again, it differs at offset %d", v.at+int64(n))
	}
	v.at += int64(len(p))
	return len(p), nil
}

// pass takes what was read up to an offset as it is: what is between the pages of
// a mapped file, or before and behind a stream.
func (v *verifier) pass(offset int64) {
	v.w.Flush()
	v.want.Next(int(offset - v.at))
	v.at = offset
}

// end flushes and returns the first difference. length is how much was decoded:
// all of it must have been written.
func (v *verifier) end(length int64) error {
	if err := v.w.Flush(); err != nil {
		return err
	}
	if v.diff == nil && v.at != length {
		return fmt.Errorf("written again, it has %d bytes, and not %d", v.at, length)
	}
	return v.diff
}
