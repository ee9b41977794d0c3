package compare_test

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo/compare"
	"github.com/gocolo/lockstep/internal/packet"
)

// The bound is a bare parse of both headers and a comparison of the payloads; a second one
// copies the first packet before. They take turns, and the best turn of each counts: whoever
// else uses the machine is in the way of all. A composed packet is one that the guest's NIC has put where it
// can wait, as Comparer.ComposePacket has it do; another one is copied there. In the last two cases the
// secondary's packet comes first, and what leaves is kept, as a Comparer does.
func BenchmarkPair(b *testing.B) {
	for _, c := range []struct {
		name     string
		size     int
		conns    int
		composed bool
		second   bool
	}{
		{"64B", 64 - 54, 10, false, false}, {"1460B", 1460, 10, false, false}, {"64KiB", 65000, 10, false, false},
		{"64KiB-composed", 65000, 10, true, false}, {"64B-10000conns", 10, 10000, false, false},
		{"1460B-second", 1460, 10, false, true}, {"64KiB-second", 65000, 10, false, true},
	} {
		b.Run(c.name, func(b *testing.B) {
			cfg := everything()
			cfg.LowerAcks = true
			e := compare.NewEngine(cfg)
			if err := e.Mark(0); err != nil {
				b.Fatal(err)
			}
			if _, err := e.SecondaryMark(0); err != nil {
				b.Fatal(err)
			}
			now := time.Now() // as a Comparer has it: with a monotonic clock
			ps, ss := make([]compare.Frame, c.conns), make([]compare.Frame, c.conns)
			for i := range ps {
				s := seg{port: uint16(i + 1), seq: 1, ack: 1, flags: push, data: strings.Repeat("d", c.size)}
				ps[i], ss[i] = s.frame(), s.frame()
			}
			const turn = 2000
			pairs := (turn*100/(100+c.size)/c.conns + 1) * c.conns // so that each turn begins with the first
			i, seq := 0, uint32(1)
			bare := func() time.Duration {
				begin := time.Now()
				var p, s packet.Packet
				for range pairs {
					p.Parse(ps[i].Data)
					s.Parse(ss[i].Data)
					if !bytes.Equal(p.TCP().Payload(), s.TCP().Payload()) {
						b.Fatal("differ")
					}
					if i++; i == c.conns {
						i = 0
					}
				}
				return time.Since(begin)
			}
			mem := make([]byte, c.size+54)
			copying := func() time.Duration {
				begin := time.Now()
				var p, s packet.Packet
				for range pairs {
					copy(mem, ps[i].Data)
					p.Parse(mem)
					s.Parse(ss[i].Data)
					if !bytes.Equal(p.TCP().Payload(), s.TCP().Payload()) {
						b.Fatal("differ")
					}
					if i++; i == c.conns {
						i = 0
					}
				}
				return time.Since(begin)
			}
			drafts := make([]compare.Draft, c.conns)
			composed := func() (took time.Duration) {
				for range pairs / c.conns {
					for i := range drafts {
						drafts[i] = e.Draft(len(ps[i].Data))
						copy(drafts[i].Data(), ps[i].Data)
						setSeq(compare.Frame{Data: drafts[i].Data()}, seq)
						setSeq(ss[i], seq)
					}
					begin := time.Now()
					for i, d := range drafts {
						e.Composed(d, 0, now)
						if r := e.Secondary(ss[i], now); len(r.Release) != 1 {
							b.Fatal("not released")
						}
					}
					took += time.Since(begin)
					seq += uint32(c.size)
				}
				return took
			}
			second := func() time.Duration {
				begin := time.Now()
				for range pairs {
					setSeq(ps[i], seq)
					setSeq(ss[i], seq)
					e.Secondary(ss[i], now)
					r := e.Primary(ps[i], now)
					if len(r.Release) != 1 {
						b.Fatal("not released")
					}
					e.GiveBack(e.TakeOver(0, r.Release[0]))
					if i++; i == c.conns {
						i = 0
						seq += uint32(c.size)
					}
				}
				return time.Since(begin)
			}
			engine := func() time.Duration {
				switch {
				case c.composed:
					return composed()
				case c.second:
					return second()
				}
				begin := time.Now()
				for range pairs {
					setSeq(ps[i], seq)
					setSeq(ss[i], seq)
					e.Primary(ps[i], now)
					if r := e.Secondary(ss[i], now); len(r.Release) != 1 {
						b.Fatal("not released")
					}
					if i++; i == c.conns {
						i = 0
						seq += uint32(c.size)
					}
				}
				return time.Since(begin)
			}
			best := func(fn func() time.Duration, was time.Duration) time.Duration {
				if d := fn(); was == 0 || d < was {
					return d
				}
				return was
			}
			engine() // each connection has been there
			var bares, copies, engines time.Duration
			b.ReportAllocs()
			for b.Loop() {
				bares = best(bare, bares)
				copies = best(copying, copies)
				engines = best(engine, engines)
			}
			b.ReportMetric(float64(engines.Nanoseconds())/float64(pairs), "ns/pair")
			b.ReportMetric(float64(engines)/float64(bares), "x-bare")
			b.ReportMetric(float64(engines)/float64(copies), "x-copied")
		})
	}
}
