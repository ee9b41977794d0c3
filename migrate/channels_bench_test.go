package migrate

import (
	"context"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/gocolo/lockstep/vmstate/ram/multifd"
)

// BenchmarkChannels sends packets that the sender compresses, which is what bounds
// it, over one channel and over two in turns.
func BenchmarkChannels(b *testing.B) {
	const pages = 4096
	g := newSource(b, 4)
	mem := g.blocks[0].Host
	var took [2][]time.Duration
	for b.Loop() {
		for n := range took {
			var c Channels
			c.Method = multifd.Zlib
			l, err := net.Listen("tcp", "127.0.0.1:0")
			check(b, err)
			for range n + 1 {
				conn, err := net.Dial("tcp", l.Addr().String())
				check(b, err)
				peer, err := l.Accept()
				check(b, err)
				go func() {
					defer peer.Close()
					p := make([]byte, 256<<10)
					for {
						if _, err := peer.Read(p); err != nil {
							return
						}
					}
				}()
				c.Conns = append(c.Conns, conn)
			}
			check(b, l.Close())
			s, err := newSender(context.Background(), &c, nil)
			check(b, err)
			begun := time.Now()
			for i := range pages {
				off := i * page % len(mem)
				check(b, s.SendPage("pc.ram", uint64(off), mem[off:off+page]))
			}
			check(b, s.Sync())
			took[n] = append(took[n], time.Since(begun))
			s.close()
		}
	}
	for n := range took {
		slices.Sort(took[n])
	}
	b.ReportMetric(float64(took[0][len(took[0])/2])/float64(took[1][len(took[1])/2]), "x-one-channel")
}
