package compare_test

import (
	"context"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/colo/compare"
)

func TestLatencyIsExactToASixteenth(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	var l compare.Latency
	if l.Quantile(0.5) != 0 || l.N() != 0 {
		t.Error("of nothing there is something")
	}
	var all []time.Duration
	for range 10000 {
		d := time.Duration(rnd.ExpFloat64() * float64(time.Duration(1)<<rnd.IntN(40)))
		all = append(all, d)
		l.Add(d)
	}
	slices.Sort(all)
	for _, q := range []float64{0.01, 0.5, 0.9, 0.99, 1} {
		want, got := all[int(q*10000)-1], l.Quantile(q)
		if got < want || got > want+want/16+time.Microsecond {
			t.Errorf("quantile %v is %v, want %v", q, got, want)
		}
	}
	if l.Max() != all[9999] || l.N() != 10000 {
		t.Errorf("%v of %d", l.Max(), l.N())
	}
	l.Add(-time.Second)
	l.Add(1 << 62)
	if l.Quantile(0) > time.Microsecond || l.Quantile(1) <= all[9999] {
		t.Errorf("%v to %v", l.Quantile(0), l.Quantile(1))
	}
}

// Nothing leaves, so nothing but the first packet that waits can tell Run that
// there is something to watch.
func TestAPacketThatIsTheFirstToWaitExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := compare.NewComparer(compare.Config{Timeout: 50 * time.Millisecond, Scan: 10 * time.Millisecond})
		reasons := make(chan compare.Reason, 10)
		c.Diverged = func(r compare.Reason) { reasons <- r }
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- c.Run(ctx, nil) }()
		if err := c.Mark(0); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if err := c.WritePacket(udp("a").Data); err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		if r := <-reasons; r != compare.ReasonTimeout || time.Since(begin) > 70*time.Millisecond {
			t.Errorf("%v after %v", r, time.Since(begin))
		}
		cancel()
		<-done
	})
}
