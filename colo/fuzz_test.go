package colo_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"slices"
	"testing"

	"github.com/gocolo/lockstep/colo"
)

// FuzzLink: whatever a peer says, a link reads what was expected or says what
// came instead; what it reads, it writes in the same words.
func FuzzLink(f *testing.F) {
	f.Add(be32(0, 1, 2, 3, 5, 6))
	f.Add(slices.Concat(be32(4), be64(1<<62)))
	f.Add(be32(7))
	f.Add([]byte{0, 0, 0})
	f.Fuzz(func(t *testing.T, in []byte) {
		l := colo.NewLink(&canned{Reader: bytes.NewReader(in)}, 0)
		var out bytes.Buffer
		echo := colo.NewLink(&sink{w: &out}, 0)
		rest := in
		for {
			want := colo.CheckpointReady
			if len(rest) >= 4 {
				want = colo.Message(binary.BigEndian.Uint32(rest))
			}
			var v uint64
			var err error
			if want == colo.VMStateSize {
				if v, err = l.ExpectValue(want); err == nil {
					err = echo.SendValue(want, v)
				}
			} else if err = l.Expect(want); err == nil {
				err = echo.Send(want)
			}
			if err != nil {
				if !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
					t.Fatalf("%d bytes before the end: %v", len(rest), err)
				}
				break
			}
			rest = in[l.R.Offset():]
		}
		if err := echo.Flush(); err != nil {
			t.Fatal(err)
		}
		if n := out.Len(); !bytes.Equal(out.Bytes(), in[:n]) || len(in)-n >= 12 {
			t.Fatalf("read % x, wrote % x", in, out.Bytes())
		}
	})
}

// sink is a connection that is only written to.
type sink struct{ w io.Writer }

func (s *sink) Read([]byte) (int, error)    { return 0, io.EOF }
func (s *sink) Write(b []byte) (int, error) { return s.w.Write(b) }
func (s *sink) Close() error                { return nil }

// FuzzSecondary: whatever a peer sends as a checkpoint, the secondary's guest is
// that of the last whole checkpoint, and can go on.
func FuzzSecondary(f *testing.F) {
	r := record(f)
	f.Add(r.second(r.ram, r.devices))
	for _, c := range badCheckpoints {
		if b := c.bad(r); len(b) < 3*4096 {
			f.Add(b)
		}
	}
	good, err := feed(f, slices.Concat(r.initial, r.first), options{})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		v, err := feed(t, slices.Concat(r.initial, r.first, in), options{})
		defer v.close()
		if err != nil {
			t.Fatalf("takeover: %v", err)
		}
		if v.committed() == 1 && (!bytes.Equal(v.memory, good.memory) || !slices.Equal(v.rounds, good.rounds)) {
			t.Fatalf("the guest was touched by a checkpoint that failed: %v", v.cause)
		}
	})
}
