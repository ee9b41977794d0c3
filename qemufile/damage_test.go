package qemufile

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"testing"
	"testing/iotest"

	"github.com/gocolo/lockstep/internal/damage"
	"github.com/gocolo/lockstep/internal/require"
)

// messages of a made-up peer: a byte says of which kind each is. Their lengths are the peer's word.
const (
	number = iota + 1
	text
	short // a length of 16 bits
	long  // a length of 32 bits, of which Bytes bounds what it takes
	gap   // a length of 64 bits, of what nobody wants
)

// longest is the bound of a long message.
const longest = 16 << 20

// said returns messages of each kind, cut where each begins.
func said(t testing.TB) damage.Input {
	t.Helper()
	var b bytes.Buffer
	w := NewWriter(&b)
	in := damage.Input{}
	for i := range 40 {
		in.Cuts = append(in.Cuts, int(w.Transferred()))
		kind := []byte{number, long, text, long, short, long, gap, long}[i%8]
		w.PutByte(kind)
		body := bytes.Repeat([]byte{byte(i)}, i*i)
		switch kind {
		case number:
			w.PutBE64(uint64(i) << 40)
		case text:
			w.PutCountedString(fmt.Sprint("text ", i))
		case short:
			w.PutBE16(uint16(len(body)))
			w.Write(body)
		case long:
			w.PutBE32(uint32(len(body)))
			w.Write(body)
		case gap:
			w.PutBE64(uint64(len(body)))
			w.Write(body)
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	in.Bytes = b.Bytes()
	return in
}

var errKind = errors.New("unknown kind")

// heard reads messages up to the end or an error, and returns a digest of each.
func heard(r *Reader) (all []string) {
	for r.Err() == nil {
		at := r.Offset()
		if _, ok := r.PeekByte(); !ok {
			r.Byte()
			break
		}
		var p []byte
		switch kind := r.Byte(); kind {
		case number:
			p = fmt.Append(nil, r.BE64())
		case text:
			p = r.CountedBytes()
		case short:
			p = r.Next(int(r.BE16()))
		case long:
			p = r.Bytes(uint64(r.BE32()), longest)
		case gap:
			r.Skip(r.BE64())
		default:
			r.Fail(errKind)
		}
		all = append(all, fmt.Sprintf("at %d: %d bytes, %.16x", at, len(p), p))
	}
	return append(all, fmt.Sprintf("at %d: %v", r.Offset(), r.Err()))
}

// meant returns what heard should, by the length of p alone, and what the error should be.
func meant(p []byte) (all []string, end error) {
	left := p
	take := func(n uint64) []byte {
		if end == nil && n > uint64(len(left)) {
			if end = io.EOF; len(left) > 0 {
				end = io.ErrUnexpectedEOF
			}
		}
		if end != nil {
			return nil
		}
		b := left[:n]
		left = left[n:]
		return b
	}
	length := func(size uint64) (n uint64) {
		for _, b := range take(size) {
			n = n<<8 | uint64(b)
		}
		return n
	}
	for {
		at := len(p) - len(left)
		if len(left) == 0 {
			return all, io.EOF
		}
		var b []byte
		switch kind := take(1)[0]; kind {
		case number:
			b = fmt.Append(nil, length(8))
		case text:
			n := length(1)
			if left := uint64(len(left)); end == nil && left < n {
				return all, io.ErrUnexpectedEOF // the length is a part of what is cut
			}
			b = take(n)
		case short:
			b = take(length(2))
		case long:
			n := length(4)
			if n > longest {
				return all, ErrTooLong
			}
			b = take(n)
		case gap:
			take(length(8))
		default:
			return all, errKind
		}
		if end != nil {
			return all, end
		}
		all = append(all, fmt.Sprintf("at %d: %d bytes, %.16x", at, len(b), b))
	}
}

// Whatever was done to what a peer says, it is read alike from memory, from a connection that brings
// it in pieces, and from a file in which a Reader seeks; the first error stays, and says where it is; and
// no length has memory taken that did not come.
func TestDamageIsReadAlikeFromEverySource(t *testing.T) {
	in := said(t)
	var memory Reader
	memory.ResetBytes(in.Bytes)
	if all := heard(&memory); len(all) != 41 || memory.Err() == nil || !errors.Is(memory.Err(), io.EOF) {
		t.Fatalf("%d messages, %v", len(all)-1, memory.Err())
	}
	whole, broken := 0, 0
	for how, p := range damage.Copies(1, require.Many(30, 200, 3000), in) {
		memory.ResetBytes(p)
		want := heard(&memory)
		all, end := meant(p)
		if !slices.Equal(all, want[:min(len(all), len(want))]) || !errors.Is(memory.Err(), end) {
			t.Errorf("%q, and %v, where %q and %v were to be", want, memory.Err(), all, end)
		}
		for name, source := range map[string]io.Reader{
			"a connection": iotest.HalfReader(bytes.NewReader(p)),
			"bytes":        iotest.OneByteReader(bytes.NewReader(p)),
			"a file":       bytes.NewReader(p),
			"its last":     iotest.DataErrReader(bytes.NewReader(p)),
		} {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			r := NewReader(source)
			got := heard(r)
			runtime.ReadMemStats(&after)
			if n := after.TotalAlloc - before.TotalAlloc; n > 1<<20+16*uint64(len(p)) {
				t.Errorf("%s: %d bytes for %d", name, n, len(p))
			}
			for i := range max(len(got), len(want)) {
				if i >= len(got) || i >= len(want) || got[i] != want[i] {
					t.Errorf("from %s, message %d of %d and %d: %q, and %q in memory", name, i, len(got), len(want), got[min(i, len(got)-1)], want[min(i, len(want)-1)])
					break
				}
			}
			first := r.Err()
			if e := (*Error)(nil); !errors.As(first, &e) && !errors.Is(first, errKind) || r.Offset() > int64(len(p)) {
				t.Errorf("from %s: %v at %d of %d", name, first, r.Offset(), len(p))
			}
			if r.BE64() != 0 || r.Next(1) != nil || r.Peek(1) != nil || r.Err() != first {
				t.Errorf("from %s: it goes on after %v", name, first)
			}
		}
		if errors.Is(memory.Err(), io.EOF) && !errors.Is(memory.Err(), io.ErrUnexpectedEOF) {
			whole++
		} else {
			broken++
		}
		if t.Failed() {
			t.Fatal(how)
		}
	}
	if whole == 0 || broken == 0 {
		t.Errorf("%d were read to their end and %d were not", whole, broken)
	}
}
