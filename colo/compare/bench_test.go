package compare_test

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo/compare"
	"github.com/gocolo/lockstep/internal/packet"
)

// The bound is a bare parse of both headers and a comparison of the payloads. The
// two take turns, and the best turn of each counts: whoever else uses the machine
// is in the way of both.
func BenchmarkPair(b *testing.B) {
	for _, c := range []struct {
		name  string
		size  int
		conns int
	}{{"64B", 64 - 54, 10}, {"1460B", 1460, 10}, {"64KiB", 65000, 10}, {"64B-10000conns", 10, 10000}} {
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
			bare := func() {
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
			}
			engine := func() {
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
			}
			best := func(fn func(), was time.Duration) time.Duration {
				begin := time.Now()
				fn()
				if d := time.Since(begin); was == 0 || d < was {
					return d
				}
				return was
			}
			engine() // each connection has been there
			var bares, engines time.Duration
			b.ReportAllocs()
			for b.Loop() {
				bares = best(bare, bares)
				engines = best(engine, engines)
			}
			b.ReportMetric(float64(engines.Nanoseconds())/float64(pairs), "ns/pair")
			b.ReportMetric(float64(engines)/float64(bares), "x-bare")
		})
	}
}
