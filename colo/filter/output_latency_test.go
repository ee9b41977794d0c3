package filter_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/colo/filter"
	"github.com/gocolo/lockstep/event"
)

func TestAPacketThatHasLeftIsCountedWithAllItsTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := start(t, filter.NewBuffer(filter.BufferConfig{}))
		var before event.Latency
		want := func(why string, n uint64, total time.Duration) {
			t.Helper()
			synctest.Wait()
			all := x.OutputLatency()
			l := all.Since(&before)
			if before = all; l.N() != n || l.Total() != total {
				t.Errorf("%s: %d packets, together %v, want %d with %v", why, l.N(), l.Total(), n, total)
			}
		}
		x.send("passes")
		want("without a session", 1, 0)
		x.must(x.Mark(0))
		x.must(x.Received(0))
		x.send("a")
		time.Sleep(2 * time.Millisecond)
		x.send("b")
		time.Sleep(time.Millisecond)
		x.must(x.Mark(1))
		x.send("c")
		time.Sleep(time.Millisecond)
		want("until their checkpoint", 0, 0)
		x.must(x.Received(1))
		want("at their checkpoint", 2, (4+2)*time.Millisecond)
		time.Sleep(time.Millisecond)
		x.must(x.Failover())
		want("at a failover", 1, 2*time.Millisecond)
		x.must(x.Commit(0))
		x.send("void", "void")
		time.Sleep(time.Second)
		x.must(x.Commit(1))
		x.send("the survivor's")
		time.Sleep(time.Millisecond)
		x.must(x.Failover())
		want("what was void has never left", 1, time.Millisecond)
		x.end()
	})
}
