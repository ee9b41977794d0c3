package ram

import (
	"bytes"
	"io"
	"math/rand/v2"
	"net"
	"testing"

	"github.com/gocolo/lockstep/internal/mapping"
	"github.com/gocolo/lockstep/qemufile"
)

// BenchmarkZeroTest tests the pages of a large memory; the bound compares each
// with a page of zeros.
func BenchmarkZeroTest(b *testing.B) {
	zeros := make([]byte, PageSize)
	for _, x := range []struct {
		name    string
		n       int
		written bool
	}{{"in-cache", 1, true}, {"written", benchPages, true}, {"never-written", benchPages, false}} {
		b.Run(x.name, func(b *testing.B) {
			mem, err := mapping.New(x.n * PageSize)
			if err != nil {
				b.Fatal(err)
			}
			defer mapping.Free(mem)
			if x.written {
				for i := 0; i < len(mem); i += PageSize {
					mem[i] = 0
				}
			}
			ours, bound := versus(b, len(mem), func() {
				for off := 0; off < len(mem); off += PageSize {
					if !isZero(mem[off : off+PageSize]) {
						b.Fatal("not zero")
					}
				}
			}, func() {
				for off := 0; off < len(mem); off += PageSize {
					if !bytes.Equal(mem[off:off+PageSize], zeros) {
						b.Fatal("not zero")
					}
				}
			})
			b.ReportMetric(bound/ours, "of-equal")
		})
	}
	b.Run("other", func(b *testing.B) {
		p := make([]byte, PageSize)
		p[100] = 1
		for b.Loop() {
			if isZero(p) {
				b.Fatal("zero")
			}
		}
	})
}

func BenchmarkEncodePages(b *testing.B) {
	g := benchGuest(b)
	s := NewSaver(g.blocks, g, SaverConfig{IterateBytes: 1 << 30})
	host := g.blocks[0].Host
	dst := make([]byte, len(host)+benchPages*8+100)
	heads := make([]byte, benchPages*8)
	v := make(net.Buffers, 0, 512)
	mem := &memory{p: dst}
	w := qemufile.NewWriter(mem)
	if err := s.SaveSetup(w); err != nil {
		b.Fatal(err)
	}
	if err := w.Flush(); err != nil {
		b.Fatal(err)
	}
	ours, bound := versus(b, len(host), func() {
		mem.n = 0
		g.dirty["ram"].SetRange(0, benchPages)
		s.Pending(true)
		if done, err := s.SaveIterate(w); err != nil || !done {
			b.Fatal(done, err)
		}
		if err := w.Flush(); err != nil {
			b.Fatal(err)
		}
	}, func() {
		mem.n = 0
		for i := 0; i < benchPages; {
			v := v[:0]
			for ; len(v) < 512; i++ {
				v = append(v, heads[i*8:(i+1)*8], host[i*PageSize:(i+1)*PageSize])
			}
			if _, err := mem.WriteBuffers(&v); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.ReportMetric(bound/ours, "of-copy")
}

// memory takes what is written to it, in pieces, as a socket does.
type memory struct {
	p []byte
	n int
}

func (m *memory) Write(p []byte) (int, error) {
	m.n += copy(m.p[m.n:], p)
	return len(p), nil
}

// WriteBuffers implements qemufile.BuffersWriter.
func (m *memory) WriteBuffers(v *net.Buffers) (int64, error) {
	start := m.n
	for _, p := range *v {
		m.n += copy(m.p[m.n:], p)
	}
	return int64(m.n - start), nil
}

func BenchmarkDecodePages(b *testing.B) {
	g := benchGuest(b)
	c := newCache(b, g, CacheConfig{})
	in := body(b, func(w *qemufile.Writer) {
		s := NewSaver(g.blocks, g, SaverConfig{})
		if err := s.SaveSetup(w); err != nil {
			b.Fatal(err)
		}
		if err := s.SaveComplete(w); err != nil {
			b.Fatal(err)
		}
	})
	in = in[8+4+8+8:]
	mem := c.blocks[0].page
	var r qemufile.Reader
	ours, bound := versus(b, len(mem), func() {
		r.ResetBytes(in)
		if err := c.LoadState(&r, Version); err != nil {
			b.Fatal(err)
		}
	}, func() {
		for i := range benchPages {
			copy(mem[i*PageSize:(i+1)*PageSize], in[i*(PageSize+8)+8:])
		}
	})
	b.ReportMetric(bound/ours, "of-copy")
}

func BenchmarkSaveXBZRLE(b *testing.B) {
	const n = 1000
	g := benchGuest(b)
	s := NewSaver(g.blocks, g, SaverConfig{XBZRLE: n * PageSize})
	w := qemufile.NewWriter(io.Discard)
	if err := s.SaveSetup(w); err != nil {
		b.Fatal(err)
	}
	if err := s.SaveComplete(w); err != nil {
		b.Fatal(err)
	}
	r := rand.New(rand.NewPCG(1, 1))
	b.SetBytes(n * PageSize)
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		for i := range n {
			for range 40 {
				g.blocks[0].Host[i*PageSize+r.IntN(PageSize)]++
			}
			g.dirty["ram"].Set(i)
		}
		b.StartTimer()
		if _, err := s.Capture(); err != nil {
			b.Fatal(err)
		}
		if err := s.SaveComplete(w); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(s.Stats().Bytes)/n, "wire-B/page")
}
