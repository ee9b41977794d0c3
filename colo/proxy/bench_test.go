package proxy_test

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo/proxy"
)

// count is a network that counts what leaves.
type count struct {
	*wire
	n, want atomic.Uint64
	there   chan struct{} // sent to when there are as many as are wanted
}

func (c *count) WritePacket([]byte) error {
	if c.n.Add(1) == c.want.Load() {
		c.there <- struct{}{}
	}
	return nil
}

// cpuTime returns the processor time of this process, where it is known.
var cpuTime func() time.Duration

// BenchmarkMatchedPackets: both guests say the same over a TCP connection between
// the sides, and everything leaves. The processor time is that of both sides, with the
// kernel's for the connection: a profile tells them apart.
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
	out := &count{wire: newWire(), there: make(chan struct{}, 1)}
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
	out.want.Store(256)
	var begin time.Duration
	if cpuTime != nil {
		begin = cpuTime()
	}
	for b.Loop() {
		for p.WritePacket(packet) != nil || s.WritePacket(packet) != nil {
			mark()
		}
		if n++; n%256 == 0 { // or they would be lost on the way to the comparison
			<-out.there
			out.want.Add(256)
		}
		if n%8192 == 0 { // and kept without end
			mark()
		}
	}
	b.StopTimer()
	if cpuTime != nil {
		b.ReportMetric(float64(cpuTime()-begin)/float64(n), "cpu-ns/op")
	}
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
