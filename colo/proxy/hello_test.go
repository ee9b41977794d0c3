package proxy

import (
	"bytes"
	"errors"
	"io"
	"testing"
)

func FuzzGreeting(f *testing.F) {
	ours := newHello(sidePrimary, false, 12, DefaultLimit)
	theirs := ours
	theirs.side = sideSecondary
	var b bytes.Buffer
	if err := theirs.write(&b); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Add([]byte("COLOprx1"))
	f.Fuzz(func(t *testing.T, in []byte) {
		r := bytes.NewReader(in)
		err := ours.expect(r)
		if fits := bytes.HasPrefix(in, b.Bytes()); fits != (err == nil) {
			t.Fatalf("%x: %v", in, err)
		}
		if err != nil && !errors.Is(err, ErrPeer) && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatalf("%x: %v", in, err)
		}
		if left := max(len(in)-helloLen, 0); r.Len() != left {
			t.Fatalf("%x: %d bytes are left, want %d", in, r.Len(), left)
		}
	})
}
