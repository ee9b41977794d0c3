package proxy_test

import (
	"context"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/gocolo/lockstep/colo/proxy"
)

// count is a network that counts what leaves.
type count struct {
	*wire
	n atomic.Uint64
}

func (c *count) WritePacket([]byte) error { c.n.Add(1); return nil }

// BenchmarkMatchedPackets: both guests say the same over a TCP connection between
// the sides, and everything leaves.
func BenchmarkMatchedPackets(b *testing.B) {
	ctx, cancel := context.WithCancel(b.Context())
	vm := &guest{paused: true}
	pc := proxy.PrimaryConfig{VM: vm, Deliver: func([]byte) error { return nil }}
	pc.Compare.MaxQueue = 1 << 20
	p := proxy.NewPrimary(pc)
	s := proxy.NewSecondary(proxy.SecondaryConfig{VM: vm, Deliver: pc.Deliver})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	out := &count{wire: newWire()}
	var group sync.WaitGroup
	group.Go(func() {
		if c, err := l.Accept(); err == nil {
			s.Serve(ctx, c)
		}
	})
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	l.Close()
	group.Go(func() { p.Serve(ctx, c) })
	group.Go(func() { p.Run(ctx, out) })
	defer group.Wait()
	defer out.Close()
	defer cancel()
	epoch := uint64(0)
	mark := func() {
		if err := checkpointOf(ctx, p, s, epoch); err != nil {
			b.Fatal(err)
		}
		epoch++
	}
	if p.Connected(ctx) != nil || s.Connected(ctx) != nil {
		b.Fatal("no connection")
	}
	mark()
	packet := datagram(string(make([]byte, 1000)))
	b.SetBytes(int64(len(packet)))
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		for p.WritePacket(packet) != nil || s.WritePacket(packet) != nil {
			mark()
		}
		if n++; n%256 == 0 { // or they would be lost on the way to the comparison
			for out.n.Load() < uint64(n) {
				runtime.Gosched()
			}
		}
		if n%8192 == 0 { // and kept without end
			mark()
		}
	}
	b.StopTimer()
	if st := p.Stats(); st.Matched < uint64(n)-256 {
		b.Errorf("%d of %d packets matched", st.Matched, n)
	}
}

func checkpointOf(ctx context.Context, p *proxy.Primary, s *proxy.Secondary, epoch uint64) error {
	for _, step := range []func() error{
		func() error { return s.Pause(ctx) }, func() error { return p.Pause(ctx) },
		func() error { return p.Mark(epoch) }, func() error { return p.Resume(ctx) },
		func() error { return p.Received(epoch) }, func() error { return s.Commit(epoch) },
		func() error { return s.Resume(ctx) }, func() error { return s.Resumed(epoch) }, func() error { return p.Loaded(epoch) },
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}
