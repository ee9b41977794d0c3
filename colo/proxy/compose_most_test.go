package proxy_test

import (
	"testing"
	"testing/synctest"

	"github.com/gocolo/lockstep/colo/filter"
	"github.com/gocolo/lockstep/colo/proxy"
)

// A reader could not take back what it has read: without room it is not called.
func TestNothingIsReadFromTheGuestWithoutRoom(t *testing.T) {
	for _, continuous := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, func(p *proxy.PrimaryConfig, s *proxy.SecondaryConfig) {
				p.Continuous, s.Continuous = continuous, continuous
				p.Limit, s.Limit = 1<<20, 1<<20
			})
			w.connect()
			w.checkpoint()
			p := append(datagram("large"), make([]byte, 60000)...)
			reads, err := 0, error(nil)
			read := func() error {
				return w.p.ComposeAtMost(filter.MaxFrame, func(b []byte) int { reads++; return copy(b, p) })
			}
			taken := 0
			for ; err == nil && taken < 100; taken++ {
				err = read()
			}
			if err != proxy.ErrFull || reads != taken-1 || reads < 10 {
				t.Errorf("continuous %v: %v at packet %d, %d were read", continuous, err, taken, reads)
			}
			w.checkpoint()
			<-w.p.Room()
			if was := reads; read() != nil || reads != was+1 {
				t.Errorf("continuous %v: after a checkpoint %d packets were read, %d before", continuous, reads, was)
			}
			w.end()
		})
	}
}

func TestAPacketThatIsReadTakesNoNewMemory(t *testing.T) {
	g := &guest{t: t}
	p := datagram("word")
	for _, continuous := range []bool{false, true} {
		pri := proxy.NewPrimary(proxy.PrimaryConfig{VM: g, Deliver: g.deliver, Continuous: continuous})
		sec := proxy.NewSecondary(proxy.SecondaryConfig{VM: g, Deliver: g.deliver, Continuous: continuous})
		read := func(b []byte) int { return copy(b, p) }
		none := func([]byte) int { return 0 }
		if n := testing.AllocsPerRun(1000, func() {
			if sec.ComposeAtMost(filter.MaxFrame, none) == nil || pri.ComposeAtMost(filter.MaxFrame, none) == nil {
				t.Error("a packet of no bytes")
			}
		}); n > 0 {
			t.Errorf("continuous %v, nothing to read: %v allocations", continuous, n)
		}
		for epoch := range uint64(2) {
			if err := sec.Commit(epoch); err != nil {
				t.Fatal(err)
			}
			if n := testing.AllocsPerRun(1000, func() {
				if err := sec.ComposeAtMost(filter.MaxFrame, read); err != nil {
					t.Fatal(err)
				}
			}); n != 0 && epoch > 0 { // in the first it takes the memory that it has in the end
				t.Errorf("continuous %v: %v allocations", continuous, n)
			}
		}
	}
}
