package zstd

import (
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/gocolo/lockstep/internal/lanes"
	"github.com/gocolo/lockstep/vmstate/ram/multifd"
)

// gigabit is a connection over a link of 1 Gbit/s of its own.
type gigabit struct {
	net.Conn
	free time.Time // when the link has carried what was written
}

func (g *gigabit) Write(p []byte) (int, error) {
	now := time.Now()
	if g.free.Before(now) {
		g.free = now
	}
	g.free = g.free.Add(time.Duration(len(p)) * time.Second / 125e6)
	if ahead := g.free.Sub(now); ahead > 2*time.Millisecond {
		time.Sleep(ahead)
	}
	return g.Conn.Write(p)
}

// transfer returns how long one channel takes to bring all pages of mem.
func transfer(b *testing.B, mem []byte, method multifd.Method) time.Duration {
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
	s, err := lanes.NewSender(lanes.SenderConfig{Conns: []io.WriteCloser{&gigabit{Conn: x}}, Method: method, Compressor: Compressor})
	if err != nil {
		b.Fatal(err)
	}
	v.Start()
	s.Start()
	defer v.Close()
	defer s.Close()
	begun := time.Now()
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
	took := time.Since(begun)
	if err := <-sent; err != nil {
		b.Fatal(err)
	}
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

// BenchmarkGigabit sends 16 MiB, three quarters of each page of which are text and the rest
// noise, over one channel of 1 Gbit/s, plain and compressed in turns, and reports how many
// times as fast the compressed ones are.
func BenchmarkGigabit(b *testing.B) {
	mem := mix(16 << 20)
	methods := []multifd.Method{multifd.None, multifd.Zstd}
	took := make([][]time.Duration, len(methods))
	for b.Loop() {
		for i, m := range methods {
			took[i] = append(took[i], transfer(b, mem, m))
		}
	}
	for i := range took {
		slices.Sort(took[i])
	}
	median := func(i int) float64 { return float64(took[i][len(took[i])/2]) }
	b.ReportMetric(median(0)/median(1), "x-plain")
	b.ReportMetric(float64(took[0][0])/float64(took[1][0]), "x-plain-best")
}

// BenchmarkCompress is what compression alone costs.
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
