package proxy_test

import (
	"bytes"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/colo/compare"
	"github.com/gocolo/lockstep/colo/proxy"
	"github.com/gocolo/lockstep/event"
)

// lease is a gate. Its zero value is shut.
type lease struct {
	mu     sync.Mutex
	open   bool
	opened chan struct{}
	asked  int
}

func (l *lease) Open() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.asked++
	return l.open
}

func (l *lease) Opened() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.opened == nil {
		l.opened = make(chan struct{})
	}
	return l.opened
}

func (l *lease) set(open bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open = open; open && l.opened != nil {
		close(l.opened)
		l.opened = nil
	}
}

func TestNothingLeavesWhileTheGateIsShut(t *testing.T) {
	for _, continuous := range []bool{false, true} {
		t.Run(fmt.Sprintf("continuous=%t", continuous), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				gates := [2]lease{}
				w := newWorld(t, func(p *proxy.PrimaryConfig, s *proxy.SecondaryConfig) {
					p.Continuous, s.Continuous = continuous, continuous
					p.Gate, s.Gate = &gates[0], &gates[1]
				})
				defer w.end()
				w.connect()
				w.say(w.pg, "a")
				w.wantLeft("not even before a session", w.pw)
				gates[0].set(true)
				w.wantLeft("it opens", w.pw, "a")
				w.checkpoint()
				gates[0].set(false)
				w.say(w.pg, "b", "c")
				w.say(w.sg, "b", "c")
				w.checkpoint()
				w.wantLeft("shut, though a checkpoint covers it", w.pw, "a")
				time.Sleep(time.Hour)
				w.wantLeft("for however long", w.pw, "a")
				gates[0].set(true)
				w.wantLeft("in order", w.pw, "a", "b", "c")

				w.sconn.Close()
				<-w.sserve
				w.must(w.s.Pause(w.ctx))
				w.must(w.s.Failover())
				w.must(w.s.Resume(w.ctx))
				w.say(w.sg, "d")
				w.wantLeft("who takes over without its lease says nothing", w.sw)
				gates[1].set(true)
				synctest.Wait()
				if got := w.sw.left(); len(got) == 0 || got[len(got)-1] != "d" {
					t.Errorf("with it, %q have left", got)
				}
			})
		})
	}
}

func TestAShutGateEndsWithRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(p *proxy.PrimaryConfig, _ *proxy.SecondaryConfig) { p.Gate = &lease{} })
		w.say(w.pg, "a")
		synctest.Wait()
		w.end() // which waits for Run
		if got := w.pw.left(); len(got) > 0 {
			t.Errorf("%q have left", got)
		}
	})
}

// vnetWire is a network that is told of virtio-net headers.
type vnetWire struct {
	*wire
	hdrs []int
}

func (v *vnetWire) WriteVNetPacket(p []byte, hdrLen int) error {
	v.hdrs = append(v.hdrs, hdrLen)
	return nil
}

func TestAGateHidesNothingOfTheNetworkBehindIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &lease{open: true}
		n := &vnetWire{wire: newWire()}
		p := proxy.NewPrimary(proxy.PrimaryConfig{VM: &guest{t: t}, Deliver: func([]byte) error { return nil }, Gate: g, VNetHdr: 12})
		var group sync.WaitGroup
		group.Go(func() { p.Run(t.Context(), n) })
		if err := p.WritePacket(append(make([]byte, 12), datagram("a")...)); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if fmt.Sprint(n.hdrs) != "[12]" || g.asked != 1 {
			t.Errorf("headers of %d bytes, asked %d times", n.hdrs, g.asked)
		}
		n.Close()
		group.Wait()
	})
}

func TestFlowsThatDifferAreNamed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var bus event.Bus
		var got []event.Event
		defer bus.SubscribeAll(func(r event.Record) { got = append(got, r.Event) })()
		w := newWorld(t, func(p *proxy.PrimaryConfig, _ *proxy.SecondaryConfig) {
			p.Events, p.Compare = &bus, compare.Config{Strikes: 2, Retry: time.Second, Pace: time.Second}
		})
		defer w.end()
		w.connect()
		w.checkpoint()
		for i := range 3 {
			w.say(w.pg, fmt.Sprint("p", i))
			w.say(w.sg, fmt.Sprint("s", i))
			time.Sleep(25 * time.Millisecond)
			if i < 2 {
				w.checkpoint()
			}
		}
		time.Sleep(time.Second)
		if r := w.requests(); fmt.Sprint(r) != "[divergence divergence pace]" {
			t.Errorf("asked for %v", r)
		}
		w.checkpoint()
		flow := event.Flow{Source: "10.0.0.1:53", Destination: "10.0.0.2:5000", Protocol: 17}
		want := []event.Event{
			event.NetworkDiverged{Flow: flow, Reason: "packet"},
			event.NetworkDiverged{Flow: flow, Reason: "packet"},
			event.NetworkFlowApart{Flow: flow, Reason: "packet", RetryNS: 1e9},
			event.NetworkFlowTogether{Flow: flow},
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("got  %+v\nwant %+v", got, want)
		}
		if s := w.p.Stats(); s.Diverged != 2 || s.Compare.SetApart != 1 || s.Compare.Apart != 0 {
			t.Errorf("%+v", s.Compare)
		}
	})
}

func TestEventsOfFlowsAreNotMoreThanAnybodyCanRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var bus event.Bus
		n, omitted := 0, uint64(0)
		defer bus.SubscribeAll(func(r event.Record) {
			n++
			omitted += r.Event.(event.NetworkDiverged).Omitted
		})()
		p := proxy.NewPrimary(proxy.PrimaryConfig{VM: stillVM{}, Deliver: func([]byte) error { return nil }, Events: &bus, CompareAlways: true})
		proxied(t, p, 0)
		port := func(i int) []byte { // a connection for each, which is refused with data in its SYN
			f := datagram(string(make([]byte, 12)) + "data")
			f[23], f[36], f[37], f[46], f[47] = 6, byte(i>>8), byte(i), 5<<4, 2
			return f
		}
		for i := range 1000 {
			if err := p.WritePacket(port(i)); err != nil {
				t.Fatal(err)
			}
		}
		if n != 10 {
			t.Errorf("%d events at once", n)
		}
		time.Sleep(time.Second)
		if err := p.WritePacket(port(1000)); err != nil {
			t.Fatal(err)
		}
		if n != 11 || omitted != 990 {
			t.Errorf("%d events, %d left out", n, omitted)
		}
	})
}

// proxied takes a primary through the steps of a checkpoint.
func proxied(t *testing.T, p *proxy.Primary, epoch uint64) {
	t.Helper()
	for _, err := range []error{
		p.Pause(t.Context()), p.Mark(epoch), p.Resume(t.Context()), p.Received(epoch), p.Loaded(epoch),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
}

// With PassUncompared a frame that is not compared waits for no checkpoint.
func TestWhatAHostLetsPassPasses(t *testing.T) {
	lldp := append(make([]byte, 12), 0x88, 0xcc, 1, 2, 3)
	for _, pass := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			var left [][]byte
			n := &keepWire{wire: newWire(), left: &left}
			p := proxy.NewPrimary(proxy.PrimaryConfig{VM: stillVM{}, Deliver: func([]byte) error { return nil }, PassUncompared: pass})
			var group sync.WaitGroup
			group.Go(func() { p.Run(t.Context(), n) })
			proxied(t, p, 0)
			if err := p.WritePacket(lldp); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			if (len(left) == 1) != pass {
				t.Errorf("pass %t: %d have left", pass, len(left))
			}
			proxied(t, p, 1)
			synctest.Wait()
			if len(left) != 1 || !bytes.Equal(left[0], lldp) {
				t.Errorf("pass %t: %x have left", pass, left)
			}
			n.Close()
			group.Wait()
		})
	}
}

type keepWire struct {
	*wire
	left *[][]byte
}

func (k *keepWire) WritePacket(p []byte) error {
	*k.left = append(*k.left, bytes.Clone(p))
	return nil
}
