package proxy_test

import (
	"encoding/binary"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/colo/proxy"
	"github.com/gocolo/lockstep/event"
)

// A workload says how many requests a client makes, and whether the guests agree about the
// answers: over TLS they never do, since those are random.
type workload struct {
	every  time.Duration // the client asks after the last answer
	agrees bool
	quick  time.Duration // how many times as quick checkpoints are; 0: they take what is said below
}

// A way configures both sides for one mode of the comparison.
type way struct {
	name   string
	change func(p *proxy.PrimaryConfig, s *proxy.SecondaryConfig)
}

// outcomeOf counts the answers that a client gets, and the cost of them.
type outcomeOf struct {
	answers     int
	p50         time.Duration
	checkpoints int
}

const (
	pauseTime = 2 * time.Millisecond  // of a checkpoint; the guests stand still
	sendTime  = 3 * time.Millisecond  // then, to its receipt
	delay     = 20 * time.Millisecond // between checkpoints that nobody asks for: of output commit
	apartTime = time.Millisecond      // how much later the secondary's guest answers
)

// serve lets a client talk to a pair for long, in virtual time: a checkpoint takes
// pauseTime and sendTime, and nothing else but the client takes any.
func (l workload) serve(t *testing.T, y way, long time.Duration) (o outcomeOf) {
	synctest.Test(t, func(t *testing.T) {
		asked := make(chan event.Cause, 1)
		w := newWorld(t, func(p *proxy.PrimaryConfig, s *proxy.SecondaryConfig) {
			p.RequestCheckpoint = func(c event.Cause) {
				select {
				case asked <- c:
				default:
				}
			}
			y.change(p, s)
		})
		defer w.end()
		w.connect()
		w.checkpoint()
		end := time.Now().Add(long)
		var paused atomic.Bool
		w.group.Go(func() { // the session
			timer := time.NewTimer(delay)
			for time.Now().Before(end) {
				period := (<-chan time.Time)(nil)
				if y.name == "continuous" {
					period = timer.C
				}
				select {
				case <-asked:
				case <-period:
				case <-time.After(time.Until(end)):
				}
				paused.Store(true)
				x := w.mark()
				time.Sleep(pauseTime / max(l.quick, 1))
				paused.Store(false)
				time.Sleep(sendTime / max(l.quick, 1))
				w.must(w.p.Received(w.epoch))
				w.commit(x)
				w.run()
				w.must(w.p.Loaded(w.epoch))
				w.epoch++
				o.checkpoints++
				timer.Reset(delay)
			}
		})
		var took []time.Duration
		for n := 0; time.Now().Before(end); n++ {
			begin := time.Now()
			for paused.Load() {
				time.Sleep(100 * time.Microsecond)
			}
			p, s := answer(n, 'p'), answer(n, 's')
			if l.agrees {
				s = p
			}
			w.must(w.p.WritePacket(p))
			w.group.Go(func() {
				time.Sleep(apartTime)
				w.s.WritePacket(s)
			})
			for len(w.pw.left()) <= n && time.Now().Before(end.Add(time.Second)) {
				time.Sleep(100 * time.Microsecond)
			}
			took = append(took, time.Since(begin))
			time.Sleep(l.every)
		}
		slices.Sort(took)
		o.answers, o.p50 = len(took), took[len(took)/2]
	})
	return o
}

// answer returns a segment of one connection.
func answer(n int, by byte) []byte {
	f := datagram(string(make([]byte, 12)) + "xxxx")
	f[23] = 6
	h := f[34:]
	binary.BigEndian.PutUint32(h, 443<<16|40000)
	binary.BigEndian.PutUint32(h[4:], uint32(1000+4*n))
	binary.BigEndian.PutUint32(h[8:], 1)
	h[12], h[13], h[14] = 5<<4, 0x18, 16
	copy(h[20:], fmt.Sprintf("%c%03d", by, n%1000))
	return f
}

// Compared, a flow that agrees leaves at once and needs no checkpoint; one that
// does not needs one for each answer. Output commit needs as many for both. The
// adaptive way is nearly as good as the better of the two for either.
func TestTheAdaptiveWayIsNearlyAsGoodAsTheBetterOne(t *testing.T) {
	ways := []way{
		{"compare", func(p *proxy.PrimaryConfig, _ *proxy.SecondaryConfig) { p.CompareAlways = true }},
		{"continuous", func(p *proxy.PrimaryConfig, s *proxy.SecondaryConfig) { p.Continuous, s.Continuous = true, true }},
		{"adaptive", func(*proxy.PrimaryConfig, *proxy.SecondaryConfig) {}},
	}
	for name, l := range map[string]workload{
		"a flow that agrees":       {time.Millisecond, true, 0},
		"one that does not":        {time.Millisecond, false, 0},
		"one that does not, quick": {time.Millisecond, false, 5},
		"one that does not, idler": {30 * time.Millisecond, false, 0},
	} {
		t.Run(name, func(t *testing.T) {
			if testing.Short() && l.quick == 0 {
				t.Skip("short: only the quick flow")
			}
			var o [3]outcomeOf
			long := 3 * time.Second
			if l.quick > 0 {
				long /= l.quick // as many answers
			}
			for i, y := range ways {
				o[i] = l.serve(t, y, long)
				t.Logf("%-10s: %4d answers, p50 %v, %3d checkpoints", y.name, o[i].answers, o[i].p50, o[i].checkpoints)
			}
			best := min(o[0].p50, o[1].p50)
			if o[2].p50 > best+best/10 {
				t.Errorf("the client waits for %v, and might for %v", o[2].p50, best)
			}
			if most := max(o[0].answers, o[1].answers); o[2].answers < most-most/10 {
				t.Errorf("%d answers, and might be %d", o[2].answers, most)
			}
			if l.agrees && o[2].checkpoints > 3 {
				t.Errorf("%d checkpoints, and nothing differs", o[2].checkpoints)
			}
		})
	}
}
