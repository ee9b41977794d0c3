package proxy_test

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/colo/proxy"
	"github.com/gocolo/lockstep/event"
)

var _ colo.OutputHolder = (*proxy.Primary)(nil)

func TestAPrimaryTellsWhatItHoldsInEitherMode(t *testing.T) {
	for _, continuous := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, func(p *proxy.PrimaryConfig, s *proxy.SecondaryConfig) {
				p.Continuous, s.Continuous = continuous, continuous
			})
			want := func(why string, packets int, age time.Duration) {
				t.Helper()
				synctest.Wait()
				h := w.p.HeldOutput()
				if h != (colo.Held{Packets: packets, Bytes: int64(packets * len(datagram("a"))), Age: age}) {
					t.Errorf("continuous %v, %s: %+v, want %d packets, %v old", continuous, why, h, packets, age)
				}
			}
			w.connect()
			w.say(w.pg, "0")
			want("without a session", 0, 0)
			w.checkpoint()
			w.say(w.pg, "a")
			time.Sleep(time.Second)
			w.say(w.pg, "b")
			time.Sleep(time.Second)
			w.say(w.sg, "c")
			want("two of the primary's guest", 2, 2*time.Second)
			if n := testing.AllocsPerRun(10, func() { w.p.HeldOutput() }); n != 0 {
				t.Errorf("continuous %v: %v allocations", continuous, n)
			}
			x := w.mark()
			w.say(w.pg, "d")
			want("a mark alone lets nothing leave", 3, 2*time.Second)
			w.must(w.p.Received(w.epoch))
			w.commit(x)
			want("what the checkpoint does not cover", 1, 0)
			w.must(w.p.Failover())
			want("alone", 0, 0)
			w.wantLeft("all", w.pw, "0", "a", "b", "d")
			w.end()
		})
	}
}

// The secondary's guest says the same, so that nothing waits; or all of it waits for the
// checkpoints.
func TestOnlyWhatIsSentInOneEpochAsksForACheckpointByItsSize(t *testing.T) {
	for _, continuous := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			w, big := ofOneMebibyte(t, continuous)
			defer w.end()
			sends := func(n int) {
				for range n {
					w.must(w.p.WritePacket(big))
					w.must(w.s.WritePacket(big))
					synctest.Wait()
				}
			}
			for range 3 {
				sends(40)
				if r := w.requests(); r != nil {
					t.Errorf("continuous %t: asked for %v", continuous, r)
				}
				w.checkpoint()
			}
			sends(70)
			if r := w.requests(); !slices.Equal(r, []event.Cause{event.CauseLimit}) {
				t.Errorf("continuous %t: asked for %v in an epoch of more than half of the limit", continuous, r)
			}
			w.checkpoint()
			if got := len(w.pw.left()); got != 3*40+70 {
				t.Errorf("continuous %t: %d packets have left", continuous, got)
			}
		})
	}
}
