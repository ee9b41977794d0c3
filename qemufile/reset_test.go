package qemufile

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/iotest"
)

// told is what a Reader says of a stream that is read in a drawn way.
type told struct {
	read   []byte
	offset int64
	err    error
}

// readIn reads some values of a stream, and puts some back.
func readIn(r *Reader, seed uint64) (t told) {
	rnd := rand.New(rand.NewPCG(seed, 1))
	for range 1 + rnd.IntN(12) {
		switch rnd.IntN(7) {
		case 0:
			t.read = append(t.read, byte(r.BE64()))
		case 1:
			t.read = append(t.read, r.CountedBytes()...)
		case 2:
			t.read = append(t.read, r.Next(rnd.IntN(5000))...)
		case 3:
			p := make([]byte, rnd.IntN(70000))
			r.ReadFull(p)
			t.read = append(t.read, p...)
		case 4:
			r.Skip(uint64(rnd.IntN(5000)))
		case 5:
			if p := slices.Clone(r.Next(rnd.IntN(300))); r.Err() == nil {
				r.Unread(p[len(p)/2:])
			}
		case 6:
			if b, ok := r.PeekByte(); ok {
				t.read = append(t.read, b)
			}
		}
	}
	t.offset, t.err = r.Offset(), r.Err()
	return t
}

// A Reader that has read other streams, to their end or not, reads the next as a new one does.
func TestAReaderThatIsUsedAgainReadsAsANewOne(t *testing.T) {
	var again Reader
	rnd := rand.New(rand.NewPCG(3, 4))
	for seed := range uint64(400) {
		in := make([]byte, rnd.IntN(100_000))
		for i := range in {
			in[i] = byte(rnd.Uint32())
		}
		var one *Reader
		switch source := rnd.IntN(3); source {
		case 0:
			again.ResetBytes(in)
			one = new(Reader)
			one.ResetBytes(in)
		default:
			from := func() io.Reader {
				if source == 1 {
					return iotest.HalfReader(bytes.NewReader(in))
				}
				return iotest.DataErrReader(bytes.NewReader(in))
			}
			again.Reset(from())
			one = NewReader(from())
		}
		if got, want := readIn(&again, seed), readIn(one, seed); !bytes.Equal(got.read, want.read) || got.offset != want.offset || fmt.Sprint(got.err) != fmt.Sprint(want.err) {
			t.Fatalf("stream %d: %d bytes up to %d, %v; of a new one %d up to %d, %v", seed, len(got.read), got.offset, got.err, len(want.read), want.offset, want.err)
		}
	}
}

// A Writer that has written other streams, and failed or not been flushed, writes the next as a new one does.
func TestAWriterThatIsUsedAgainWritesAsANewOne(t *testing.T) {
	write := func(w *Writer, seed uint64) {
		rnd := rand.New(rand.NewPCG(seed, 2))
		for range rnd.IntN(12) {
			p := bytes.Repeat([]byte{byte(rnd.Uint32())}, rnd.IntN(40_000))
			switch rnd.IntN(4) {
			case 0:
				w.PutBE64(rnd.Uint64())
			case 1:
				w.Write(p)
			case 2:
				w.WriteRef(p)
			case 3:
				w.PutCountedString(string(p[:min(len(p), 100)]))
			}
		}
		if rnd.IntN(4) == 0 {
			w.Fail(io.ErrClosedPipe)
		}
	}
	again := NewWriter(nil)
	for seed := range uint64(300) {
		var got, want bytes.Buffer
		again.Reset(&got)
		one := NewWriter(&want)
		write(again, seed)
		write(one, seed)
		if seed%3 != 0 { // or what was written is not flushed
			again.Flush()
			one.Flush()
		}
		if !bytes.Equal(got.Bytes(), want.Bytes()) || again.Transferred() != one.Transferred() || fmt.Sprint(again.Err()) != fmt.Sprint(one.Err()) {
			t.Fatalf("stream %d: %d bytes, %v; of a new one %d, %v", seed, got.Len(), again.Err(), want.Len(), one.Err())
		}
	}
}
