package migrate

import (
	"context"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/gocolo/lockstep/internal/mapping"
	"github.com/gocolo/lockstep/vmstate"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// BenchmarkPostcopyFault moves a guest of 64 MiB by postcopy over loopback, all of which it has
// just written, and touches its pages in a random order meanwhile, one as soon as the last
// is there, in the same process and on the same processors. It reports how long a
// touch of a missing page takes as a ratio to a bare round trip with an answer of 4 KiB on a
// connection of the same run, the median of each, and how long the guest stood still.
func BenchmarkPostcopyFault(b *testing.B) {
	const pages = 16384
	var touches, trips, paused []time.Duration
	for b.Loop() {
		src, dst := benchSide(b, pages), benchSide(b, pages)
		src.r, src.running = rand.New(rand.NewPCG(1, 1)), true
		for i := 0; i < len(src.blocks[0].Host); i += page {
			src.blocks[0].Host[i] = 1
		}
		src.saver = ram.NewLazySaver(src.blocks, src, ram.SaverConfig{})
		var err error
		dst.lazy, err = ram.NewLazy(dst.blocks)
		check(b, err, dst.lazy.Probe(), src.saver.Register(&src.state), dst.lazy.Register(&dst.state))
		for _, g := range []*guest{src, dst} {
			check(b, g.state.Register(vmstate.Entry{Name: "device", Version: 1, MinVersion: 1}, &g.device))
		}
		src.onPause = func() { src.dirty["ram"].SetRange(0, pages) }
		started := make(chan struct{})
		dst.onRun = func() { close(started) }
		x, y := overLoopback(b)
		s := NewSource(SourceConfig{VM: src, State: &src.state, Memory: src.saver, Blocks: src.blocks, Postcopy: true, MaxDowntime: 1})
		d := NewDestination(DestinationConfig{VM: dst, State: &dst.state, Memory: dst.lazy, Blocks: dst.blocks, Postcopy: true})
		ended := make(chan error, 2)
		src.write = 1 // enough not to end in precopy
		go func() { ended <- s.Run(context.Background(), x) }()
		go func() { ended <- d.Run(context.Background(), y) }()
		<-started
		order := rand.New(rand.NewPCG(2, 2))
		for range pages / 8 {
			_, before := dst.lazy.Placed()
			at := time.Now()
			check(b, dst.lazy.Ensure("ram", uint64(order.IntN(pages))*page, 1))
			took := time.Since(at)
			if _, after := dst.lazy.Placed(); after > before {
				touches = append(touches, took)
			}
		}
		check(b, <-ended, <-ended, dst.lazy.Close())
		paused = append(paused, s.Stats.Paused)
		trips = append(trips, roundTrips(b, 200)...)
		for _, g := range []*guest{src, dst} {
			check(b, mapping.Free(g.blocks[0].Host))
		}
	}
	if len(touches) == 0 {
		b.Fatal("no page was missing when it was touched")
	}
	median := func(d []time.Duration) float64 {
		slices.Sort(d)
		return float64(d[len(d)/2].Nanoseconds())
	}
	b.ReportMetric(median(touches)/median(trips), "touch/round-trip")
	b.ReportMetric(float64(len(touches))/float64(b.N), "touches/op")
	b.ReportMetric(median(paused)/1e3, "paused-µs")
	b.ReportMetric(median(trips)/1e3, "round-trip-µs")
}

func benchSide(b *testing.B, pages int) *guest {
	b.Helper()
	mem, err := mapping.New(pages * page)
	check(b, err)
	return &guest{blocks: []ram.Block{{Name: "ram", Host: mem}}, dirty: map[string]ram.Bitmap{"ram": ram.NewBitmap(pages)}}
}

func overLoopback(b *testing.B) (x, y net.Conn) {
	b.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(b, err)
	defer l.Close()
	x, err = net.Dial("tcp", l.Addr().String())
	check(b, err)
	y, err = l.Accept()
	check(b, err)
	return x, y
}

// roundTrips times requests of 16 bytes that are answered with a page.
func roundTrips(b *testing.B, n int) (took []time.Duration) {
	b.Helper()
	x, y := overLoopback(b)
	defer x.Close()
	go func() {
		defer y.Close()
		request, answer := make([]byte, 16), make([]byte, page)
		for {
			if _, err := io.ReadFull(y, request); err != nil {
				return
			}
			if _, err := y.Write(answer); err != nil {
				return
			}
		}
	}()
	request, answer := make([]byte, 16), make([]byte, page)
	for range n {
		at := time.Now()
		_, err := x.Write(request)
		check(b, err)
		_, err = io.ReadFull(x, answer)
		check(b, err)
		took = append(took, time.Since(at))
	}
	return took
}
