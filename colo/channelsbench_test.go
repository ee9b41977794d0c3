package colo_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/internal/mapping"
	"github.com/gocolo/lockstep/vmstate"
	"github.com/gocolo/lockstep/vmstate/ram"
	"github.com/gocolo/lockstep/vmstate/ram/multifd"
)

// shared is a link of 1 Gbit/s that several connections share.
type shared struct {
	mu   sync.Mutex
	free time.Time // when it has carried what was written
}

// over returns a connection over it.
func (s *shared) over(c net.Conn) net.Conn { return &sharing{c, s} }

type sharing struct {
	net.Conn
	link *shared
}

func (s *sharing) Write(p []byte) (int, error) {
	s.link.mu.Lock()
	now := time.Now()
	if s.link.free.Before(now) {
		s.link.free = now
	}
	s.link.free = s.link.free.Add(time.Duration(len(p)) * time.Second / 125e6)
	ahead := s.link.free.Sub(now)
	s.link.mu.Unlock()
	if ahead > 2*time.Millisecond {
		time.Sleep(ahead)
	}
	return s.Conn.Write(p)
}

// channelsRun returns the median transfer of checkpoints of so many pages, three quarters
// of each page text, over n channels; link: how a connection reaches the other side.
func channelsRun(b *testing.B, pages, checkpoints, n int, method multifd.Method, always bool, link func(net.Conn) net.Conn) time.Duration {
	b.Helper()
	side := func() *written {
		mem, err := mapping.New(pages * ram.PageSize)
		if err != nil {
			b.Fatal(err)
		}
		return &written{mem: mem, dirty: ram.NewBitmap(pages)}
	}
	p, s := side(), side()
	defer mapping.Free(p.mem)
	defer mapping.Free(s.mem)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range p.mem {
		if i%ram.PageSize < ram.PageSize/4 {
			p.mem[i] = byte(r.Uint32())
		} else {
			p.mem[i] = "the quick brown fox jumps over the lazy dog "[i%44]
		}
	}
	saver := ram.NewSaver([]ram.Block{{Name: "ram", Host: p.mem}}, p, ram.SaverConfig{})
	cache, err := ram.NewCache([]ram.Block{{Name: "ram", Host: s.mem}}, s, ram.CacheConfig{})
	if err != nil {
		b.Fatal(err)
	}
	defer cache.Close()
	var ps, ss vmstate.Registry
	if err := errors.Join(saver.Register(&ps), cache.Register(&ss)); err != nil {
		b.Fatal(err)
	}
	pc, sc := loopback(b)
	lc, fc := colo.Channels{Method: method, Always: always}, colo.Channels{}
	for range n {
		a, b := loopback(b)
		lc.Conns, fc.Conns = append(lc.Conns, link(a)), append(fc.Conns, b)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var bus, unheard event.Bus
	var took []time.Duration
	ends := make(chan struct{})
	event.Subscribe(&bus, func(c event.CheckpointCommit) { // on the session's goroutine
		p.write(0, pages)
		if c.Epoch < 2 {
			return
		}
		took = append(took, time.Duration(c.TransferNS))
		if len(took) == checkpoints {
			close(ends)
			<-ctx.Done()
		}
	})
	lead, err := colo.NewPrimary(link(pc), colo.PrimaryConfig{
		VM: p, State: &ps, RAM: saver, Events: &bus, Channels: lc, CheckpointDelay: -1, AheadThreshold: -1,
	})
	if err != nil {
		b.Fatal(err)
	}
	follow, err := colo.NewSecondary(sc, colo.SecondaryConfig{VM: s, State: &ss, RAM: cache, Events: &unheard, Channels: fc})
	if err != nil {
		b.Fatal(err)
	}
	var sessions sync.WaitGroup
	ended := make(chan error, 2)
	sessions.Go(func() { ended <- lead.Run(ctx) })
	sessions.Go(func() { ended <- follow.Run(ctx) })
	select {
	case <-ends:
		if got := lead.Info().Channels; got != n {
			b.Errorf("%d channels of %d", got, n)
		}
	case err := <-ended:
		b.Error("a session has ended: ", err)
	}
	cancel()
	sessions.Wait()
	slices.Sort(took)
	return took[len(took)/2]
}

// BenchmarkChannels makes checkpoints of 16 MiB, three quarters of which can be
// compressed, over the session's connection and over channels in turns, and reports how
// many times as fast the channels are: over a link of 1 Gbit/s, and over loopback.
func BenchmarkChannels(b *testing.B) {
	for name, link := range map[string]func() func(net.Conn) net.Conn{
		"gigabit":  func() func(net.Conn) net.Conn { return new(shared).over },
		"loopback": func() func(net.Conn) net.Conn { return func(c net.Conn) net.Conn { return c } },
	} {
		b.Run(name, func(b *testing.B) {
			ways := []struct {
				unit   string
				n      int
				method multifd.Method
				always bool
				took   time.Duration
			}{{n: 0}, {unit: "x-1-plain", n: 1}, {unit: "x-2-plain", n: 2},
				{unit: "x-1-zlib", n: 1, method: multifd.Zlib}, {unit: "x-2-zlib", n: 2, method: multifd.Zlib},
				{unit: "x-1-zlib-always", n: 1, method: multifd.Zlib, always: true}, {unit: "x-2-zlib-always", n: 2, method: multifd.Zlib, always: true}}
			for b.Loop() {
				for i := range ways {
					w := &ways[i]
					w.took += channelsRun(b, 4096, 5, w.n, w.method, w.always, link())
				}
			}
			for _, w := range ways[1:] {
				b.ReportMetric(float64(ways[0].took)/float64(w.took), w.unit)
			}
		})
	}
}
