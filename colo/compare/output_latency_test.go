package compare_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/colo/compare"
)

// Whatever lets a packet leave, its time is that from the guest to the network.
func TestAPacketThatHasLeftIsCountedWithAllItsTime(t *testing.T) {
	for name, cfg := range map[string]compare.Config{"default": {Marks: true}, "strict": {Marks: true, Strict: true}} {
		t.Run(name, func(t *testing.T) {
			between(t, cfg, func(x *pairing) {
				var before compare.Latency
				want := func(why string, n uint64, waited time.Duration) {
					t.Helper()
					synctest.Wait()
					all := x.OutputLatency()
					l := all.Since(&before)
					if before = all; l.N() != n || l.Total() != time.Duration(n)*waited {
						t.Errorf("%s: %d packets, together %v, want %d with %v each", why, l.N(), l.Total(), n, waited)
					}
				}
				x.pri <- udp("a").Data
				want("without a session", 1, 0)
				x.Mark(0)
				x.Received(0)
				x.SecondaryMark(0)
				x.Loaded(0)
				x.pri <- udp("b").Data
				time.Sleep(3 * time.Millisecond)
				want("while it waits", 0, 0)
				x.sec <- udp("b").Data
				want("at its twin", 1, 3*time.Millisecond)
				x.pri <- udp("c").Data
				time.Sleep(4 * time.Millisecond)
				x.Mark(1)
				time.Sleep(4 * time.Millisecond)
				x.Received(1)
				want("at its checkpoint", 1, 8*time.Millisecond)
				x.pri <- udp("d").Data
				time.Sleep(5 * time.Millisecond)
				x.Failover()
				want("at a failover", 1, 5*time.Millisecond)
				x.out.mu.Lock()
				x.out.gate = make(chan struct{})
				x.out.mu.Unlock()
				x.pri <- udp("e").Data
				time.Sleep(time.Second)
				close(x.out.gate)
				want("behind a network that takes none", 1, time.Second)
			})
		})
	}
}

// What a call has released is not released again by a Failover of an engine through
// which packets pass.
func TestAFailoverOfNoSessionReleasesNothing(t *testing.T) {
	for name, cfg := range map[string]compare.Config{"default": {}, "strict": {Strict: true}} {
		e := compare.NewEngine(cfg)
		e.Failover()
		if r := e.Primary(udp("a"), time.Unix(1, 0)); len(r.Release) != 1 {
			t.Fatalf("%s: %d leave", name, len(r.Release))
		}
		if r := e.Failover(); len(r.Release) != 0 {
			t.Errorf("%s: %d packets leave again", name, len(r.Release))
		}
	}
}
