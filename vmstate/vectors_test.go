package vmstate

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gocolo/lockstep/qemufile"
)

func wantError(t *testing.T, why string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: got %v, want %v", why, err, want)
	}
}

func wantNil(t *testing.T, why string, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", why, err)
	}
}

// hexBytes reads spaced hex; text in quotes stands for itself.
func hexBytes(t testing.TB, s string) []byte {
	t.Helper()
	var out []byte
	for i, part := range strings.Split(s, `"`) {
		if i%2 == 1 {
			out = append(out, part...)
			continue
		}
		var b []byte
		if _, err := fmt.Sscanf(strings.Join(strings.Fields(part), ""), "%x", &b); err != nil && strings.TrimSpace(part) != "" {
			t.Fatal(err)
		}
		out = append(out, b...)
	}
	return out
}

// written collects what fn writes.
func written(t testing.TB, fn func(w *qemufile.Writer)) []byte {
	t.Helper()
	var b bytes.Buffer
	w := qemufile.NewWriter(&b)
	fn(w)
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func reader(p []byte) *qemufile.Reader { return qemufile.NewReader(bytes.NewReader(p)) }

// vector reads a stream written by QEMU.
func vector(t testing.TB, name string) []byte {
	t.Helper()
	p, err := os.ReadFile(filepath.Join("testdata", "qemu-7.2", name))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasSuffix(name, ".gz") {
		return p
	}
	z, err := gzip.NewReader(bytes.NewReader(p))
	if err != nil {
		t.Fatal(err)
	}
	if p, err = io.ReadAll(z); err != nil {
		t.Fatal(err)
	}
	return p
}

// rawRAM finds the end of a RAM section by its records and keeps the bytes. It
// knows only what the vectors need.
type rawRAM struct {
	ignoreShared bool
	bodies       int
}

type rawBody []byte

func (b rawBody) Put(w *qemufile.Writer) { w.Write(b) }

func (d *rawRAM) DecodeLive(h Header, r *qemufile.Reader) (LiveBody, error) {
	d.bodies++
	var body []byte
	word := func() uint64 {
		v := r.BE64()
		body = binary.BigEndian.AppendUint64(body, v)
		return v
	}
	take := func(n int) []byte {
		p := r.Next(n)
		body = append(body, p...)
		return p
	}
	counted := func() {
		if n := take(1); len(n) == 1 {
			take(int(n[0]))
		}
	}
	if h.Name != "ram" {
		return nil, fmt.Errorf("%w: %s", ErrUnknownSection, h.Name)
	}
	for r.Err() == nil {
		v := word()
		flags := v & 0xfff
		if flags&^0x20 != 0x10 && flags&0x20 == 0 && flags&0x4a != 0 {
			counted()
		}
		switch flags &^ 0x20 {
		case 0x10:
			return rawBody(body), r.Err()
		case 0x04:
			for left := v &^ 0xfff; left > 0 && r.Err() == nil; {
				counted()
				left -= word()
				if d.ignoreShared {
					word()
				}
			}
		case 0x02:
			take(1)
		case 0x08:
			take(4096)
		case 0x40:
			if p := take(3); len(p) == 3 {
				take(int(binary.BigEndian.Uint16(p[1:])))
			}
		default:
			if r.Err() == nil {
				return nil, fmt.Errorf("ram flags %#x", flags)
			}
		}
	}
	return nil, r.Err()
}
