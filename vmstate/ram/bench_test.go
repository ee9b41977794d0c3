package ram

import (
	"encoding/binary"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/gocolo/lockstep/qemufile"
)

// A benchmark here measures its own bound, the least that the machine needs for
// the same bytes, in the same run and in turns with what is measured, and
// reports the ratio of the medians: other work on the machine disturbs single
// turns.

type turns []time.Duration

func (t *turns) time(fn func()) {
	start := time.Now()
	fn()
	*t = append(*t, time.Since(start))
}

// median returns the median in nanoseconds.
func (t turns) median() float64 {
	s := slices.Sorted(slices.Values(t))
	return float64(s[len(s)/2].Nanoseconds())
}

// versus runs ours, what is measured, and bound in turns, b.N times each, n bytes a time, and
// returns what they took in nanoseconds.
func versus(b *testing.B, n int, ours, bound func()) (oursNS, boundNS float64) {
	ours()
	bound()
	var o, d turns
	b.SetBytes(int64(n))
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		d.time(bound)
		b.StartTimer()
		o.time(ours)
	}
	b.ReportMetric(float64(n)/o.median(), "GB/s")
	b.ReportMetric(float64(n)/d.median(), "bound-GB/s")
	return o.median(), d.median()
}

func loopback(b *testing.B) (a, z *net.TCPConn) {
	b.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer ln.Close()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	d, err := ln.Accept()
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { c.Close(); d.Close() })
	return c.(*net.TCPConn), d.(*net.TCPConn)
}

const benchPages = 16384 // 64 MiB

// benchGuest returns a guest with random contents, none of it zero.
func benchGuest(b *testing.B) *guest {
	g := newGuest(b, pages(b, "ram", benchPages))
	r := rand.New(rand.NewPCG(1, 2))
	host := g.blocks[0].Host
	for i := 0; i < len(host); i += 8 {
		binary.LittleEndian.PutUint64(host[i:], r.Uint64()|1)
	}
	return g
}

// BenchmarkSendTCP puts a round of SaveIterate on a loopback connection beside
// a bare writev of the same bytes: headers that are ready, and pages.
func BenchmarkSendTCP(b *testing.B) {
	g := benchGuest(b)
	conn, peer := loopback(b)
	go io.Copy(io.Discard, onlyReader{peer})
	w := qemufile.NewWriter(conn)
	s := NewSaver(g.blocks, g, SaverConfig{IterateBytes: 4 << 20})
	if err := s.SaveSetup(w); err != nil {
		b.Fatal(err)
	}
	host := g.blocks[0].Host
	v := make(net.Buffers, 0, 1024)
	heads := make([]byte, benchPages*8)
	ours, bound := versus(b, len(host), func() {
		g.dirty["ram"].SetRange(0, benchPages)
		s.Pending(true)
		for done := false; !done; {
			var err error
			if done, err = s.SaveIterate(w); err != nil {
				b.Fatal(err)
			}
		}
		if err := w.Flush(); err != nil {
			b.Fatal(err)
		}
	}, func() {
		for off := 0; off < len(host); {
			v = v[:0]
			for len(v) < 512 && off < len(host) {
				i := off / PageSize
				v = append(v, heads[i*8:(i+1)*8], host[off:off+PageSize])
				off += PageSize
			}
			u := v
			if _, err := u.WriteTo(conn); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.ReportMetric(bound/ours, "of-writev")
}

// BenchmarkSendCaptureTCP sends a captured checkpoint of 4096 pages; the bound
// is a bare write of as many bytes.
func BenchmarkSendCaptureTCP(b *testing.B) {
	const n = 4096
	g := benchGuest(b)
	conn, peer := loopback(b)
	go io.Copy(io.Discard, onlyReader{peer})
	w := qemufile.NewWriter(conn)
	s := NewSaver(g.blocks, g, SaverConfig{})
	if err := s.SaveSetup(w); err != nil {
		b.Fatal(err)
	}
	if err := s.SaveComplete(w); err != nil {
		b.Fatal(err)
	}
	flat := make([]byte, n*(PageSize+8))
	var o, d turns
	b.ReportAllocs()
	for b.Loop() {
		d.time(func() {
			if _, err := conn.Write(flat); err != nil {
				b.Fatal(err)
			}
		})
		g.dirty["ram"].SetRange(0, n)
		if whole, err := s.Capture(); err != nil || !whole {
			b.Fatal(whole, err)
		}
		o.time(func() {
			if err := s.SaveComplete(w); err != nil {
				b.Fatal(err)
			}
			if err := w.Flush(); err != nil {
				b.Fatal(err)
			}
		})
	}
	b.ReportMetric(float64(len(flat))/o.median(), "GB/s")
	b.ReportMetric(d.median()/o.median(), "of-write")
}

// onlyReader hides the fast paths of a connection, which splice and would make
// the peer another than a reader of pages.
type onlyReader struct{ io.Reader }

// BenchmarkReceiveTCP stages a round of pages from a loopback connection; the
// bound reads as many bytes from it straight into the same memory.
func BenchmarkReceiveTCP(b *testing.B) {
	g := benchGuest(b)
	conn, peer := loopback(b)
	c := newCache(b, g, CacheConfig{})
	in := body(b, func(w *qemufile.Writer) {
		s := NewSaver(g.blocks, g, SaverConfig{MaxCapture: 2 * benchPages * PageSize})
		if err := s.SaveSetup(w); err != nil {
			b.Fatal(err)
		}
		if err := s.SaveComplete(w); err != nil {
			b.Fatal(err)
		}
	})
	in = in[8+4+8+8:] // the block list's section
	go func() {
		for {
			if _, err := conn.Write(in); err != nil {
				return
			}
		}
	}()
	r := qemufile.NewReader(peer)
	mem := c.blocks[0].page
	rest := make([]byte, len(in)-len(mem))
	// The bound has to take the stream where the reader left it: it reads as
	// much as is sent, less what is in the reader's buffer, from both.
	ours, bound := versus(b, len(mem), func() {
		if err := c.LoadState(r, Version); err != nil {
			b.Fatal(err)
		}
	}, func() {
		n := r.Buffered()
		head := r.Next(n)
		copy(mem, head)
		if _, err := io.ReadFull(peer, mem[n:]); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(peer, rest); err != nil {
			b.Fatal(err)
		}
	})
	b.ReportMetric(bound/ours, "of-read")
	peer.Close()
}

// scattered returns n pages of a guest in random order.
func scattered(n int) []int {
	return rand.New(rand.NewPCG(5, 6)).Perm(benchPages)[:n]
}

// captures measures what scattered dirty pages add to a capture, and what the bound takes:
// one core that copies the same pages, of memory as scattered, to memory that is reused in
// the same way. The three are medians in nanoseconds: of a copy, of what n pages add, and of
// a capture of none.
func captures(b *testing.B, cfg SaverConfig, n int) (copied, growth, idle float64) {
	b.Helper()
	g := benchGuest(b)
	s := NewSaver(g.blocks, g, cfg)
	w := qemufile.NewWriter(io.Discard)
	if err := s.SaveSetup(w); err != nil {
		b.Fatal(err)
	}
	if err := s.SaveComplete(w); err != nil {
		b.Fatal(err)
	}
	s.arena.prepare(2 * n * PageSize)
	host, dst, order := g.blocks[0].Host, make([]byte, n*PageSize), scattered(n)
	var none, some, bound turns
	for b.Loop() {
		// Each finds the processor's cache as the other left it.
		bound.time(func() {
			for j, i := range order {
				copy(dst[j*PageSize:(j+1)*PageSize], host[i*PageSize:])
			}
		})
		none.time(func() {
			if _, err := s.Capture(); err != nil {
				b.Fatal(err)
			}
		})
		for _, i := range order {
			g.dirty["ram"].Set(i)
		}
		some.time(func() {
			if whole, err := s.Capture(); err != nil || !whole {
				b.Fatal(whole, err)
			}
		})
		if err := s.SaveComplete(w); err != nil {
			b.Fatal(err)
		}
	}
	return bound.median(), some.median() - none.median(), none.median()
}

// BenchmarkCapture captures scattered dirty pages, which is what the guest waits for.
func BenchmarkCapture(b *testing.B) {
	for _, n := range []int{64, 1000, 4000} {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			copied, growth, idle := captures(b, SaverConfig{}, n)
			b.ReportMetric(growth/float64(n), "ns/page")
			b.ReportMetric(copied/float64(n), "copy-ns/page")
			b.ReportMetric(growth/copied, "x-copy")
			b.ReportMetric(idle, "idle-ns")
		})
	}
}

// BenchmarkFlush commits scattered pages; the bound is as for Capture.
func BenchmarkFlush(b *testing.B) {
	const n = 4000
	g := benchGuest(b)
	c := newCache(b, g, CacheConfig{})
	if err := c.Flush(); err != nil {
		b.Fatal(err)
	}
	host, cache := g.blocks[0].Host, c.blocks[0].page
	order := scattered(n)
	ours, bound := versus(b, n*PageSize, func() {
		for _, i := range order {
			g.dirty["ram"].Set(i)
		}
		if err := c.Flush(); err != nil {
			b.Fatal(err)
		}
	}, func() {
		for _, i := range order {
			copy(host[i*PageSize:(i+1)*PageSize], cache[i*PageSize:])
		}
	})
	b.ReportMetric(ours/bound, "x-copy")
	b.ReportMetric(ours/n, "ns/page")
}

// BenchmarkCommit takes checkpoints of scattered pages, of which the secondary's
// guest wrote half too, with a cache that keeps a copy and one that does not, in
// turns. "hot" checkpoints are of the same pages, "cold" ones of others each time.
func BenchmarkCommit(b *testing.B) {
	const n = 4000
	for _, name := range []string{"hot", "cold"} {
		b.Run(name, func(b *testing.B) {
			g := [2]*guest{benchGuest(b), benchGuest(b)}
			c := [2]*Cache{newCache(b, g[0], CacheConfig{}), kind{cfg: CacheConfig{StagedOnly: true}}.cache(b, g[1], CacheConfig{})}
			for _, c := range c {
				flush(b, c)
			}
			order := scattered(benchPages)
			data := page(7)
			var load, commit, settle [2]turns
			var most uint64
			var list int
			for turn := 0; b.Loop(); turn++ {
				some := order[:n]
				if name == "cold" {
					some = order[turn*n%(benchPages-n):][:n]
				}
				in := body(b, func(w *qemufile.Writer) {
					data[0]++
					for _, i := range some {
						w.PutBE64(uint64(i)*PageSize | flagPage)
						w.PutCountedString("ram")
						w.Write(data)
					}
					w.PutBE64(flagEOS)
				})
				for i := range g {
					for _, p := range some[:n/2] {
						g[i].write(0, p*PageSize, 1)
					}
					load[i].time(func() {
						if i == 1 {
							list = len(dirtyList(b, c[i]))
						}
						if err := loadBytes(c[i], in); err != nil {
							b.Fatal(err)
						}
					})
					commit[i].time(func() { flush(b, c[i]) })
					most = max(most, c[1].Memory())
					settle[i].time(func() {
						if err := c[i].Settle(); err != nil {
							b.Fatal(err)
						}
					})
				}
			}
			b.ReportMetric(load[1].median()/load[0].median(), "x-load")
			b.ReportMetric(commit[1].median()/commit[0].median(), "x-commit")
			b.ReportMetric(settle[1].median()/commit[0].median(), "settle-of-commit")
			b.ReportMetric(commit[1].median()/n, "commit-ns/page")
			b.ReportMetric(float64(most)/(n*PageSize), "x-dirty-set")
			b.ReportMetric(float64(list)/n, "list-B/page")
		})
	}
}

// The codec alone, memory to memory: the bound is a copy of the same bytes, page
// by page. (A copy of all of them at once goes round the processor's cache, which
// pays only where nobody reads the bytes next.)
