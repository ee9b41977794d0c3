package zstd

import (
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/gocolo/lockstep/internal/lanes"
	"github.com/gocolo/lockstep/internal/slow"
	"github.com/gocolo/lockstep/vmstate/ram/multifd"
)

// sections is how often a channel brings all pages, once before the time is taken.
const sections = 5

// manner is how pages go.
type manner struct {
	method multifd.Method
	choose bool
}

// transfer returns how long one channel, over a link of 1 Gbit/s if it is paced, takes to
// bring all pages of mem, so many times.
func transfer(b *testing.B, mem []byte, m manner, paced bool) time.Duration {
	b.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	x, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	y, err := l.Accept()
	if err != nil {
		b.Fatal(err)
	}
	to := make([]byte, len(mem))
	v := lanes.NewReceiver(lanes.ReceiverConfig{
		Conns: []io.ReadCloser{y}, Decoder: Decoder,
		Place: func(_ string, off uint64, page []byte) error { copy(to[off:], page); return nil },
	})
	if paced {
		x = &slow.Gigabit{Conn: x}
	}
	s, err := lanes.NewSender(lanes.SenderConfig{Conns: []io.WriteCloser{x}, Method: m.method, Choose: m.choose, Compressor: Compressor})
	if err != nil {
		b.Fatal(err)
	}
	v.Start()
	s.Start()
	defer v.Close()
	defer s.Close()
	var begun time.Time
	for n := range sections {
		if n == 1 {
			begun = time.Now()
		}
		sent := make(chan error, 1)
		go func() {
			for off := 0; off < len(mem); off += 4096 {
				if err := s.SendPage("ram", uint64(off), mem[off:off+4096]); err != nil {
					sent <- err
					return
				}
			}
			sent <- s.Sync()
		}()
		if err := v.Begin(); err != nil {
			b.Fatal(err)
		}
		if err := v.Sync(); err != nil {
			b.Fatal(err)
		}
		if err := <-sent; err != nil {
			b.Fatal(err)
		}
	}
	took := time.Since(begun)
	if !slices.Equal(mem, to) {
		b.Fatal("it is not what was sent")
	}
	return took
}

// mix returns n bytes of pages: three quarters of each are text, the rest noise.
func mix(n int) []byte {
	r := rand.New(rand.NewPCG(1, 2))
	mem := make([]byte, n)
	for i := range mem {
		if i%4096 < 1024 {
			mem[i] = byte(r.Uint32())
		} else {
			mem[i] = "the quick brown fox jumps over the lazy dog "[i%44]
		}
	}
	return mem
}

// noise returns n bytes of pages, every other one of which is all noise, the rest text.
func noise(n int) []byte {
	r := rand.New(rand.NewPCG(3, 4))
	mem := mix(n)
	for i := range mem {
		if i/4096%2 == 0 {
			mem[i] = byte(r.Uint32())
		}
	}
	return mem
}

// BenchmarkGigabit sends 16 MiB over one channel of 1 Gbit/s, plain, all of it compressed, and
// what pays compressed, in turns, and reports how many times as fast as plain the others are.
// Of the mix, three quarters of each page are text and the rest noise; of the halves every
// other page is noise alone. BenchmarkLoopback does so where nothing paces it.
func BenchmarkGigabit(b *testing.B)  { waysInTurns(b, true) }
func BenchmarkLoopback(b *testing.B) { waysInTurns(b, false) }

func waysInTurns(b *testing.B, paced bool) {
	manners := []manner{{multifd.None, false}, {multifd.Zstd, false}, {multifd.Zstd, true}}
	for name, mem := range map[string][]byte{"mix": mix(16 << 20), "halves": noise(16 << 20)} {
		b.Run(name, func(b *testing.B) {
			took := make([][]time.Duration, len(manners))
			for b.Loop() {
				for i, m := range manners {
					took[i] = append(took[i], transfer(b, mem, m, paced))
				}
			}
			for i := range took {
				slices.Sort(took[i])
			}
			median := func(i int) float64 { return float64(took[i][len(took[i])/2]) }
			b.ReportMetric(median(0)/median(1), "x-always")
			b.ReportMetric(median(0)/median(2), "x-chosen")
			b.ReportMetric(float64(took[0][0])/float64(took[2][0]), "x-chosen-best")
		})
	}
}

// BenchmarkCompress measures the cost of compression alone.
func BenchmarkCompress(b *testing.B) {
	const packet = 512 << 10
	mem := mix(32 << 20) // more than the window, so that nothing is found in it
	for _, m := range []multifd.Method{multifd.Zlib, multifd.Zstd} {
		b.Run(m.String(), func(b *testing.B) {
			c := newCompressor(b, m)
			b.SetBytes(packet)
			var z []byte
			in, out, at := 0, 0, 0
			for b.Loop() {
				z = compress(b, c, z[:0], mem[at:at+packet])
				in, out, at = in+packet, out+len(z), (at+packet)%len(mem)
			}
			b.ReportMetric(float64(in)/float64(out), "ratio")
		})
	}
}
