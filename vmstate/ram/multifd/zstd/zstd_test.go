package zstd

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"

	"go.uber.org/goleak"

	own "github.com/gocolo/lockstep/internal/zstd"
	"github.com/gocolo/lockstep/vmstate/ram/multifd"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// packets returns pages of many kinds, in packets of different lengths.
func packets(n int) (list [][]byte) {
	r := rand.New(rand.NewPCG(1, 2))
	for i := range n {
		p := make([]byte, (1+r.IntN(128))*4096)
		for at := 0; at < len(p); at += 4096 {
			page := p[at:][:4096]
			switch r.IntN(4) {
			case 0: // nothing
			case 1:
				for i := range page {
					page[i] = byte(r.Uint32())
				}
			default:
				for k := range page {
					page[k] = "the quick brown fox jumps over the lazy dog "[(k+i)%44]
				}
				for range 64 {
					page[r.IntN(len(page))] = byte(r.Uint32())
				}
			}
		}
		list = append(list, p)
	}
	return list
}

func newCompressor(t testing.TB, m multifd.Method) multifd.Compressor {
	t.Helper()
	c, err := Compressor(m)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func newDecoder(t testing.TB, m multifd.Method) multifd.Decoder {
	t.Helper()
	d, err := Decoder(m)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func compress(t testing.TB, c multifd.Compressor, dst, p []byte) []byte {
	t.Helper()
	z, err := c.Compress(dst, p)
	if err != nil {
		t.Fatal(err)
	}
	return z
}

// Each packet can be read when it is there, by either decoder: that of internal/zstd is the
// one that reads what a QEMU has written.
func TestEachPacketIsWhole(t *testing.T) {
	c := newCompressor(t, multifd.Zstd)
	decoders := map[string]multifd.Decoder{"this": newDecoder(t, multifd.Zstd), "the other": new(own.Decoder)}
	for i, p := range packets(20) {
		z := compress(t, c, []byte("before"), p)
		if !bytes.HasPrefix(z, []byte("before")) {
			t.Fatal("it has not appended")
		}
		for name, d := range decoders {
			got := make([]byte, len(p))
			if err := d.Decode(got, z[6:]); err != nil || !bytes.Equal(got, p) {
				t.Fatalf("packet %d, %s decoder: %v", i, name, err)
			}
		}
	}
}

func TestAPacketThatIsNotItsPagesIsAnError(t *testing.T) {
	p := packets(2)
	for name, spoil := range map[string]func(z []byte) []byte{
		"cut":     func(z []byte) []byte { return z[:len(z)-1] },
		"empty":   func(z []byte) []byte { return nil },
		"more":    func(z []byte) []byte { return append(z, z[len(z)-8:]...) },
		"garbage": func(z []byte) []byte { return bytes.Repeat([]byte{0xff}, len(z)) },
	} {
		c, d := newCompressor(t, multifd.Zstd), newDecoder(t, multifd.Zstd)
		got := make([]byte, len(p[0]))
		if err := d.Decode(got, spoil(compress(t, c, nil, p[0]))); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	// A page less, or more, than there is.
	for _, n := range []int{len(p[0]) - 4096, len(p[0]) + 4096} {
		c, d := newCompressor(t, multifd.Zstd), newDecoder(t, multifd.Zstd)
		if err := d.Decode(make([]byte, n), compress(t, c, nil, p[0])); err == nil {
			t.Errorf("%d bytes of %d: no error", n, len(p[0]))
		}
	}
}

func TestOtherMethodsAreTheLibrarysOrNobodys(t *testing.T) {
	c, d := newCompressor(t, multifd.Zlib), newDecoder(t, multifd.Zlib)
	p := packets(1)[0]
	got := make([]byte, len(p))
	if err := d.Decode(got, compress(t, c, nil, p)); err != nil || !bytes.Equal(got, p) {
		t.Error(err)
	}
	if _, err := Compressor(multifd.None); !errors.Is(err, multifd.ErrMethod) {
		t.Error(err)
	}
	if _, err := Decoder(multifd.None); !errors.Is(err, multifd.ErrMethod) {
		t.Error(err)
	}
}

// What a packet claims is no reason to take memory, or to panic.
func FuzzDecode(f *testing.F) {
	p := packets(1)[0][:4096]
	c := newCompressor(f, multifd.Zstd)
	first := bytes.Clone(compress(f, c, nil, p))
	f.Add(first, compress(f, c, nil, p))
	f.Fuzz(func(t *testing.T, a, b []byte) {
		d := newDecoder(t, multifd.Zstd)
		got := make([]byte, len(p))
		if d.Decode(got, a) == nil {
			d.Decode(got, b)
		}
	})
}
