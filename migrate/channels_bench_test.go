package migrate

import (
	"context"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/gocolo/lockstep/vmstate/ram/multifd"
)

// BenchmarkChannels sends packets that the sender compresses, which is what bounds it, in
// turns over one channel, over two, and half of them over one channel each of two senders
// that know nothing of each other: what the host's processors can do with two. It reports
// how much faster the last two are than the first: the shortest time of each, which what
// else the host does touches least, and the median of the rounds.
func BenchmarkChannels(b *testing.B) {
	const pages = 4096
	g := newSource(b, 4)
	mem := g.blocks[0].Host
	send := func(s *sender, pages int) {
		for i := range pages {
			off := i * page % len(mem)
			check(b, s.SendPage("pc.ram", uint64(off), mem[off:off+page]))
		}
		check(b, s.Sync())
	}
	var took [3][]time.Duration
	for b.Loop() {
		for n, counts := range [][]int{{1}, {2}, {1, 1}} {
			var senders []*sender
			for _, channels := range counts {
				c := Channels{Method: multifd.Zlib}
				for range channels {
					c.Conns = append(c.Conns, swallowed(b))
				}
				s, err := newSender(context.Background(), &c, nil)
				check(b, err)
				senders = append(senders, s)
			}
			begun := time.Now()
			var all sync.WaitGroup
			for _, s := range senders {
				all.Go(func() { send(s, pages/len(senders)) })
			}
			all.Wait()
			took[n] = append(took[n], time.Since(begun))
			for _, s := range senders {
				s.close()
			}
		}
	}
	ratio := func(n int) (best, median float64) {
		var each []float64
		for i := range took[0] {
			each = append(each, float64(took[0][i])/float64(took[n][i]))
		}
		slices.Sort(each)
		return float64(slices.Min(took[0])) / float64(slices.Min(took[n])), each[len(each)/2]
	}
	for n, name := range map[int]string{1: "x-one-channel", 2: "x-two-senders"} {
		best, median := ratio(n)
		b.ReportMetric(best, name)
		b.ReportMetric(median, "median-"+name)
	}
}

// swallowed returns a connection of which the other end is read, until it is closed.
func swallowed(b *testing.B) net.Conn {
	b.Helper()
	conn, peer := overLoopback(b)
	go func() {
		defer peer.Close()
		p := make([]byte, 256<<10)
		for {
			if _, err := peer.Read(p); err != nil {
				return
			}
		}
	}()
	return conn
}
