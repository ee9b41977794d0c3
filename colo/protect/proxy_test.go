package protect

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/colo/filter"
)

// Connections live through any number of takeovers, with the numbers that the client
// knows, whenever they were opened; and the network is told where the guest is.
func TestConnectionsLiveThroughTakeoversInBothDirections(t *testing.T) {
	for _, how := range []string{"compared", "continuous"} {
		for _, orderly := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, switchover %v", how, orderly), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					change := func(c *ProxyConfig) { c.Continuous = how == "continuous" }
					w := newWorld(t)
					h := newHub()
					first, second := h.protected(w, change)
					h.ask(t, "who has", arp(1, clientMAC, clientAddr, serverAddr), func(x heard) bool {
						return bytes.Contains(x.frame, serverAddr) && x.host == first.name
					})
					var conns []*caller
					left := make(map[Network]uint64)
					for round := range 4 {
						for _, host := range []*host{first, second} {
							n := host.job.cfg.Network[0].(*Proxy)
							l := n.OutputLatency()
							if l.N() < left[n] || orderly && round >= 2 && l.N() == 0 {
								t.Errorf("round %d: %d packets have left from %s, after %d", round, l.N(), host.name, left[n])
							}
							left[n] = l.N()
						}
						conns = append(conns, h.dial(t, uint16(4000+round)))
						for _, c := range conns {
							c.say(fmt.Sprint("in ", round))
						}
						if orderly {
							if err := first.job.Switchover(t.Context()); err != nil {
								t.Fatal(err)
							}
							second.is(Protected)
						} else {
							first.kill(false)
						}
						h.ask(t, "announcement", nil, func(x heard) bool {
							return x.host == second.name && len(x.frame) > 40 && x.frame[12] == 8 && x.frame[13] == 6 && bytes.Equal(x.frame[28:32], serverAddr)
						})
						for _, c := range conns {
							c.say(fmt.Sprint("after ", round))
						}
						if !orderly {
							first.bury()
							first = h.serving(w, first.name, false, change)
							second.is(Protected)
						}
						for _, c := range conns {
							c.say(fmt.Sprint("again ", round))
						}
						first, second = second, first
					}
					second.halt()
					first.halt()
				})
			})
		}
	}
}

// Losses of the link, pauses, orders, switchovers and deaths in any order: all
// connections go on, and none of it is noticed at the client's end.
func TestConnectionsLiveThroughWhateverHappensToAPair(t *testing.T) {
	seeds := uint64(6)
	if testing.Short() {
		seeds = 2
	}
	for seed := range seeds {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				rng := rand.New(rand.NewPCG(seed, 5))
				w := newWorld(t)
				h := newHub()
				follows := h.serving(w, "b", false, nil)
				leads := h.serving(w, "a", true, nil)
				var conns []*caller
				for round := range 8 {
					leads.is(Protected)
					follows.is(Following)
					if round < 6 {
						conns = append(conns, h.dial(t, uint16(4000+round)))
					}
					for _, c := range conns {
						c.say(fmt.Sprint("in ", round))
					}
					switch rng.IntN(6) {
					case 0, 1:
						w.f.part("a", "b", rng.IntN(2) == 0)
						leads.is(Alone)
						for _, c := range conns {
							c.say("alone")
						}
						w.f.join("a", "b")
					case 2:
						if err := leads.job.Pause(t.Context(), "test"); err != nil {
							t.Fatal(err)
						}
						for _, c := range conns {
							c.say("paused")
						}
						if err := leads.job.Resume(); err != nil {
							t.Fatal(err)
						}
					case 3:
						if err := leads.job.Switchover(t.Context()); err != nil {
							t.Fatal(err)
						}
						leads, follows = follows, leads
					default:
						leads.kill(rng.IntN(2) == 0)
						follows.is(Alone)
						for _, c := range conns {
							c.say("taken")
						}
						leads.bury()
						leads, follows = follows, h.serving(w, leads.name, false, nil)
					}
				}
				leads.is(Protected)
				follows.halt()
				leads.halt()
			})
		})
	}
}

// What is compared leaves long before its checkpoint.
func TestWhatBothGuestsSayLeavesWithoutACheckpoint(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		h := newHub()
		a, b := h.protected(w, nil)
		c := h.dial(t, 4000)
		for range 10 {
			c.say("again")
		}
		if p, s := a.job.cfg.Network[0].(*Proxy).Stats(); s != nil || p.Matched == 0 {
			t.Errorf("the primary: %d matched", p.Matched)
		}
		if l, ok := a.job.OutputLatency(); !ok || l.N() == 0 {
			t.Errorf("the primary: %d have left, %v", l.N(), ok)
		}
		if p, s := b.job.cfg.Network[0].(*Proxy).Stats(); p != nil || s.Delivered == 0 {
			t.Error("nothing was delivered to the secondary")
		}
		b.halt()
		a.halt()
	})
}

// The connection between the two sides of a NIC breaks, and nothing else: what the
// guest says leaves with its checkpoints, until the next session compares again.
func TestWithoutTheNICsConnectionOutputLeavesWithCheckpoints(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		h := newHub()
		a, b := h.protected(w, nil)
		c := h.dial(t, 4000)
		c.say("compared")
		nic := a.job.cfg.Network[0].(*Proxy)
		a.job.session().peer.more[chNIC+"0"].Close()
		synctest.Wait()
		before, _ := nic.Stats()
		for range 5 {
			c.say("waits")
		}
		if now, _ := nic.Stats(); now.Connected || now.Matched != before.Matched || now.Checkpoint == before.Checkpoint {
			t.Errorf("connected %v, %d matched, %d with checkpoints", now.Connected, now.Matched-before.Matched, now.Checkpoint-before.Checkpoint)
		}
		if a.job.State() != Protected {
			t.Errorf("a is %v", a.job.State())
		}
		alone := a.passes(Alone) // b lives, and may follow again at once
		if err := a.job.Failover(); err != nil {
			t.Fatal(err)
		}
		<-alone
		a.is(Protected)
		for range 10 {
			c.say("again")
		}
		if now, _ := nic.Stats(); now.Matched == before.Matched {
			t.Error("the next session compares nothing")
		}
		b.halt()
		a.halt()
	})
}

func TestNetworksThatDoNotFitAreRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		h := newHub()
		b := h.serving(w, "b", false, func(c *ProxyConfig) { c.Continuous = true })
		a := h.serving(w, "a", true, nil)
		time.Sleep(3 * time.Second)
		if err := a.job.Query().LastError; err == nil || !bytes.Contains([]byte(err.Error()), []byte("continuous")) {
			t.Errorf("%v", err)
		}
		b.halt()
		a.halt()
	})
}

func TestAProxyTakesPacketsWithoutAllocating(t *testing.T) {
	h := newHub()
	frame := segment{port: 1}.frame(false)
	gather := func(b []byte) bool { return copy(b, frame) == len(b) }
	read := func(b []byte) int { return copy(b, frame) }
	for _, follows := range []bool{false, true} {
		n, err := NewProxy(ProxyConfig{Uplink: h.plug("a"), Deliver: func([]byte) error { return nil }, Continuous: true, Limit: 64 << 20})
		if err != nil {
			t.Fatal(err)
		}
		if follows {
			n.second = n.newSecondary()
		}
		for name, send := range map[string]func() error{
			"written":  func() error { return n.WritePacket(frame) },
			"composed": func() error { return n.ComposePacket(len(frame), gather) },
			"read":     func() error { return n.ComposeAtMost(filter.MaxFrame, read) },
		} {
			if got := testing.AllocsPerRun(1000, func() {
				if err := send(); err != nil {
					t.Fatal(err)
				}
			}); got > 0 {
				t.Errorf("%v allocations for a packet of the guest, %s; follows: %v", got, name, follows)
			}
		}
	}
	l := newLane()
	if got := testing.AllocsPerRun(1000, func() {
		l.give(t.Context(), frame)
		l.ReadPacket()
	}); got > 0 {
		t.Errorf("%v allocations for a packet of the network", got)
	}
}

func TestAProxyNeedsItsEnds(t *testing.T) {
	for _, cfg := range []ProxyConfig{{}, {Uplink: &plug{}}, {Deliver: func([]byte) error { return nil }}} {
		if _, err := NewProxy(cfg); err == nil {
			t.Errorf("%+v", cfg)
		}
	}
	n, err := NewProxy(ProxyConfig{Uplink: &plug{closed: make(chan struct{})}, Deliver: func([]byte) error { return nil }})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := n.Follow(ctx); err != context.Canceled {
		t.Errorf("a side before Run: %v", err)
	}
	if err := n.WritePacket(nil); err == nil || err == filter.ErrFull {
		t.Errorf("an empty packet: %v", err)
	}
	called := false
	for _, size := range []int{-1, 0, filter.MaxFrame + 1, 60} { // the last is not composed after all
		if err := n.ComposePacket(size, func([]byte) bool { called = true; return false }); err == nil || err == filter.ErrFull || called != (size == 60) {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
	for _, says := range []int{0, -1, 61, math.MaxInt} {
		if err := n.ComposeAtMost(60, func([]byte) int { return says }); !errors.Is(err, filter.ErrFrame) {
			t.Errorf("a packet of %d bytes in 60: %v", says, err)
		}
	}
	n.swaps = true
	if err := n.ComposeAtMost(60, func([]byte) int { t.Error("read for nobody"); return 1 }); err != filter.ErrFull {
		t.Errorf("between two sides: %v", err)
	}
	if err := n.ComposePacket(60, func([]byte) bool { t.Error("composed for nobody"); return true }); err != filter.ErrFull {
		t.Errorf("between two sides: %v", err)
	}
}
