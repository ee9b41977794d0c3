package protect

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/failover"
)

// The gate is part of what a packet waits for.
func TestANICCountsHowLongAPacketWaitedAtTheGate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, g := newWire(), failover.NewGate()
		n, err := NewNIC(NICConfig{Uplink: w})
		if err != nil {
			t.Fatal(err)
		}
		stop := runNIC(t, n, g)
		if err := n.WritePacket([]byte("1")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		g.Until(time.Now().Add(time.Hour))
		synctest.Wait()
		if l := n.OutputLatency(); l.N() != 1 || l.Max() != time.Second {
			t.Errorf("%d packets, the longest %v", l.N(), l.Max())
		}
		stop()
	})
}

func TestAJobMergesWhatItsNetworksCount(t *testing.T) {
	j := &Job{cfg: Config{Network: []Network{timed{wait: time.Second}, timed{wait: time.Minute}, silent{}}}}
	if l, ok := j.OutputLatency(); !ok || l.N() != 2 || l.Max() != time.Minute {
		t.Errorf("%d packets, the longest %v, %v", l.N(), l.Max(), ok)
	}
	j = &Job{cfg: Config{Network: []Network{silent{}}}}
	if _, ok := j.OutputLatency(); ok {
		t.Error("nobody counts, and it says otherwise")
	}
}

type silent struct{ Network }

type timed struct {
	Network
	wait time.Duration
}

func (c timed) OutputLatency() (l event.Latency) { l.Add(c.wait); return l }
