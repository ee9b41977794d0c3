package qemufile

import (
	"bytes"
	"io"
	"testing"
)

// messages is a source that has so many bytes at a time.
type messages struct {
	io.Reader
	each int
}

func (m messages) Read(p []byte) (int, error) { return m.Reader.Read(p[:min(len(p), m.each)]) }

// A stream of small messages has small buffers, however long it is, and one of pages
// large ones.
func TestBuffersGrowWithWhatComesAtATime(t *testing.T) {
	stream := make([]byte, 1<<20)
	for _, c := range []struct {
		each, read, write int
	}{{100, firstBuffer, firstBuffer}, {64 << 10, readBuffer, writeBuffer}} {
		r := NewReader(messages{bytes.NewReader(stream), c.each})
		for r.BE32(); r.Err() == nil; r.BE32() {
			r.Skip(uint64(c.each) / 8)
		}
		if len(r.buf) != c.read {
			t.Errorf("%d bytes at a time: %d are read ahead", c.each, len(r.buf))
		}
		w := NewWriter(plain{io.Discard})
		for at := 0; at < len(stream); at += c.each {
			for n := 0; n < c.each; n += 50 {
				w.Write(stream[:50])
			}
			if w.Flush() != nil {
				t.Fatal(w.Err())
			}
		}
		if cap(w.buf) != c.write {
			t.Errorf("%d bytes at a time: %d are gathered", c.each, cap(w.buf))
		}
	}
}

// What is queued before a buffer grows leaves as it was put, and in order.
func TestABufferGrowsBehindReferences(t *testing.T) {
	var out vectored
	var want []byte
	ref := bytes.Repeat([]byte("reference "), 500)
	w := NewWriter(&out)
	for i := range 200 {
		w.PutBE64(uint64(i))
		want = append(want, 0, 0, 0, 0, 0, 0, 0, byte(i))
		if i%20 == 0 {
			w.WriteRef(ref)
			want = append(want, ref...)
		}
		w.Write(ref[:90*(i%8)])
		want = append(want, ref[:90*(i%8)]...)
	}
	if err := w.Flush(); err != nil || out.vectors != 1 || cap(w.buf) <= firstBuffer {
		t.Fatalf("%v, %d writes, room for %d", err, out.vectors, cap(w.buf))
	}
	if !bytes.Equal(out.Bytes(), want) {
		t.Error("the stream is another")
	}
	r := NewReader(bytes.NewReader(want))
	for i, at := range []int{1, firstBuffer - 1, firstBuffer, firstBuffer + 1, 20_000} { // across the ends of each buffer
		if !bytes.Equal(r.Next(at), want[:at]) {
			t.Errorf("%d: %v", i, r.Err())
		}
		want = want[at:]
	}
}
