package proxy_test

import (
	"errors"
	"io"
	"net"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/colo/filter"
	"github.com/gocolo/lockstep/colo/proxy"
	"github.com/gocolo/lockstep/event"
)

func TestEqualOutputLeavesAtOnceAndTheRestWithItsCheckpoint(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		defer w.end()
		w.connect()
		w.say(w.pg, "before")
		w.wantLeft("without a session packets pass", w.pw, "before")
		w.checkpoint()
		w.say(w.pg, "a", "b")
		w.wantLeft("held until the secondary's guest says it", w.pw, "before")
		w.say(w.sg, "a")
		w.wantLeft("the same was said", w.pw, "before", "a")
		if r := w.requests(); r != nil {
			t.Errorf("asked for %v", r)
		}
		w.say(w.sg, "other")
		time.Sleep(25 * time.Millisecond) // or they may be crossing
		if r := w.requests(); !slices.Equal(r, []event.Cause{event.CauseDivergence}) {
			t.Errorf("asked for %v", r)
		}
		w.checkpoint()
		w.wantLeft("the checkpoint covers it", w.pw, "before", "a", "b")
		w.say(w.sg, "c", "d")
		w.say(w.pg, "c", "d")
		w.wantLeft("the other was there first", w.pw, "before", "a", "b", "c", "d")
		w.wantLeft("the secondary's network hears nothing", w.sw)
		s := w.p.Stats()
		if s.Matched != 3 || s.Checkpoint != 1 || s.Diverged != 1 || s.Waits.N() != 3 || s.Held != 0 {
			t.Errorf("%+v", s)
		}
	})
}

func TestAPacketWaitsInTheCountForAsLongAsItWaited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		defer w.end()
		w.connect()
		w.checkpoint()
		w.say(w.pg, "a")
		time.Sleep(10 * time.Millisecond)
		w.say(w.sg, "a", "b")
		w.say(w.pg, "b")
		w.wantLeft("", w.pw, "a", "b")
		if s := w.p.Stats(); s.Waits.Max() != 10*time.Millisecond || s.Waits.Quantile(0.5) > time.Millisecond || s.Waits.Quantile(1) != 10*time.Millisecond {
			t.Errorf("longest %v, p50 %v", s.Waits.Max(), s.Waits.Quantile(0.5))
		}
	})
}

func TestInputIsForBothGuestsInTheSameEpoch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		defer w.end()
		w.connect()
		w.arrive("0a")
		w.wantTold("", w.pg, "0a")
		w.checkpoint()
		w.wantTold("it came with the state, and only so", w.sg, "0a")
		w.arrive("1a", "1b")
		w.wantTold("mirrored", w.sg, "0a", "1a", "1b")

		x := w.mark()
		w.arrive("2a")
		w.wantTold("the primary's guest runs on", w.pg, "0a", "1a", "1b", "2a")
		w.must(w.p.Received(w.epoch))
		w.wantTold("not for the guest that is rolled back", w.sg, "0a", "1a", "1b")
		w.commit(x)
		w.wantTold("nor for one that stands still", w.sg, "0a", "1a", "1b")
		w.run()
		w.must(w.p.Loaded(w.epoch))
		w.epoch++
		w.wantTold("but for the one that the commit made", w.sg, "0a", "1a", "1b", "2a")

		// The secondary is slow: its guest is paused before it has read all.
		w.must(w.s.Pause(w.ctx))
		w.arrive("2b", "2c")
		synctest.Wait()
		x = w.mark()
		w.must(w.p.Received(w.epoch))
		w.commit(x)
		w.run()
		w.must(w.p.Loaded(w.epoch))
		w.epoch++
		w.arrive("3a")
		w.wantTold("what the state has is not delivered again", w.sg, "0a", "1a", "1b", "2a", "2b", "2c", "3a")
		if s := w.s.Stats(); s.Stale == 0 || s.Refused != 0 {
			t.Errorf("%+v", s)
		}
	})
}

func TestAfterAFailoverTheSecondaryHasItsNetwork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		defer w.end()
		w.connect()
		w.checkpoint()
		w.say(w.pg, "a")
		w.arrive("x")
		w.sw.in <- datagram("y") // for whoever goes on
		w.wantTold("", w.sg, "x")
		w.say(w.sg, "a", "b")
		w.sconn.Close()
		if err := <-w.sserve; err == nil {
			t.Error("Serve ended well without its connection")
		}
		w.must(w.s.Pause(w.ctx))
		w.must(w.s.Failover())
		w.must(w.s.Resume(w.ctx))
		w.wantLeft("what its guest has said since the checkpoint, and may have left", w.sw, "a", "b")
		w.wantTold("its network is read", w.sg, "x", "y")
		w.say(w.sg, "c")
		w.wantLeft("packets pass", w.sw, "a", "b", "c")
	})
}

func TestAfterAFailoverThePrimaryHoldsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		defer w.end()
		w.connect()
		w.checkpoint()
		w.say(w.pg, "a", "b")
		w.must(w.p.Pause(w.ctx))
		w.must(w.p.Failover())
		w.must(w.p.Resume(w.ctx))
		w.wantLeft("", w.pw, "a", "b")
		if err := <-w.pserve; err != nil {
			t.Errorf("Serve after a failover: %v", err)
		}
		w.arrive("x")
		w.wantTold("", w.pg, "x")
		if r := w.requests(); r != nil {
			t.Errorf("asked for %v", r)
		}
	})
}

func TestASurvivorIsProtectedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		defer w.end()
		w.connect()
		w.checkpoint()
		w.checkpoint()
		w.say(w.pg, "a")
		w.arrive("x")
		w.sconn.Close()
		w.must(w.p.Pause(w.ctx))
		w.must(w.p.Failover())
		w.must(w.p.Resume(w.ctx))
		w.say(w.pg, "b")
		w.wantLeft("alone", w.pw, "a", "b")
		w.requests()

		w.replaceSecondary()
		w.connect()
		w.arrive("y")
		w.checkpoint()
		w.arrive("z")
		w.wantTold("", w.sg, "x", "y", "z")
		w.say(w.pg, "c")
		w.wantLeft("held again", w.pw, "a", "b")
		w.say(w.sg, "c")
		w.wantLeft("compared again", w.pw, "a", "b", "c")
		w.checkpoint()
		if r := w.requests(); r != nil {
			t.Errorf("asked for %v", r)
		}
	})
}

func TestALostConnectionLeavesAPrimaryThatGoesOnByCheckpoints(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		defer w.end()
		w.connect()
		w.checkpoint()
		w.say(w.pg, "a")
		w.pconn.Close()
		if err := <-w.pserve; err == nil {
			t.Error("Serve ended well without its connection")
		}
		<-w.sserve
		if r := w.requests(); len(r) != 1 {
			t.Errorf("asked for %v because of what is held", r)
		}
		w.say(w.pg, "b")
		w.wantLeft("held", w.pw)
		w.checkpoint()
		w.wantLeft("", w.pw, "a", "b")
		if r := w.requests(); r != nil {
			t.Errorf("asked for %v with nothing held", r)
		}
		w.say(w.pg, "c")
		w.say(w.pg, "d")
		if r := w.requests(); !slices.Equal(r, []event.Cause{event.CauseDivergence}) {
			t.Errorf("asked for %v, want once in an epoch", r)
		}
		w.say(w.sg, "c") // nobody hears it
		w.arrive("x")
		w.wantTold("nor is it told", w.sg)

		w.connect()
		if r := w.requests(); len(r) != 1 {
			t.Errorf("a new connection asked for %v", r)
		}
		w.say(w.sg, "d")
		w.wantLeft("a connection is of no use before its first mark", w.pw, "a", "b")
		w.arrive("y")
		w.wantTold("", w.sg)
		w.checkpoint()
		w.wantLeft("", w.pw, "a", "b", "c", "d")
		w.wantTold("it came with the state", w.sg, "x", "y")
		w.requests()
		w.say(w.sg, "e")
		w.say(w.pg, "e")
		w.wantLeft("compared again", w.pw, "a", "b", "c", "d", "e")
		w.arrive("z")
		w.wantTold("mirrored again", w.sg, "x", "y", "z")
		if r := w.requests(); r != nil {
			t.Errorf("asked for %v", r)
		}
	})
}

func TestAStalledConnectionIsReplacedByTheNext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		defer w.end()
		w.connect()
		w.checkpoint()
		old := w.pserve
		w.connect()
		if err := <-old; err == nil {
			t.Error("the connection before ended well")
		}
		w.checkpoint()
		w.requests()
		w.say(w.sg, "a")
		w.say(w.pg, "a")
		w.wantLeft("", w.pw, "a")
	})
}

// A connection takes every write and delivers nothing: the hosts have not noticed that the
// network between them is gone.
func TestAStalledConnectionIsAReasonForACheckpointAtOnceFromTheSecondEpochOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		defer w.end()
		w.connect()
		w.checkpoint()
		a, b := net.Pipe()
		go io.Copy(io.Discard, b)
		defer b.Close()
		w.group.Go(func() { w.p.Serve(w.ctx, a) })
		b.Write([]byte("COLOprx1SC\x00\x00\x04\x00\x00\x00"))
		synctest.Wait()
		w.checkpoint()
		w.requests()
		w.say(w.pg, "a")
		if r := w.requests(); r != nil {
			t.Errorf("asked for %v without patience", r)
		}
		time.Sleep(5 * time.Second)
		if r := w.requests(); len(r) == 0 {
			t.Error("no checkpoint was asked for")
		}
		w.checkpoint()
		w.requests()
		w.say(w.pg, "b")
		w.say(w.pg, "c")
		if r := w.requests(); len(r) != 1 {
			t.Errorf("asked for %v, want one at once", r)
		}
		w.checkpoint()
		w.wantLeft("", w.pw, "a", "b", "c")
	})
}

func TestASilentSecondaryIsAReasonForACheckpoint(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		defer w.end()
		w.connect()
		w.checkpoint()
		w.say(w.pg, "a")
		if r := w.requests(); r != nil {
			t.Errorf("asked for %v at once", r)
		}
		time.Sleep(4 * time.Second)
		if r := w.requests(); len(r) == 0 {
			t.Error("no checkpoint was asked for, though a packet has waited for four seconds")
		}
		w.checkpoint()
		w.wantLeft("", w.pw, "a")
	})
}

func TestThePeerMustFit(t *testing.T) {
	for name, change := range map[string]func(*proxy.PrimaryConfig, *proxy.SecondaryConfig){
		"mode":    func(p *proxy.PrimaryConfig, s *proxy.SecondaryConfig) { p.Continuous = true },
		"limit":   func(p *proxy.PrimaryConfig, s *proxy.SecondaryConfig) { s.Limit = 2 << 20 },
		"vnet":    func(p *proxy.PrimaryConfig, s *proxy.SecondaryConfig) { s.VNetHdr = 12 },
		"perfect": nil,
	} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, change)
			w.connect()
			if change == nil {
				w.end()
				return
			}
			perr, serr := <-w.pserve, <-w.sserve
			if !errors.Is(perr, proxy.ErrPeer) && !errors.Is(serr, proxy.ErrPeer) {
				t.Errorf("%s: %v and %v", name, perr, serr)
			}
			w.end()
		})
	}
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		a, b := net.Pipe()
		done := make(chan error, 1)
		go func() { done <- w.p.Serve(w.ctx, a) }()
		go io.Copy(io.Discard, b)
		b.Write([]byte("GET / HTTP/1.1\r\n"))
		if err := <-done; !errors.Is(err, proxy.ErrPeer) {
			t.Errorf("%v", err)
		}
		b.Close()
		w.end()
	})
}

func TestAGuestPausedPastItsProxyIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		defer w.end()
		if err := w.p.Mark(0); !errors.Is(err, proxy.ErrRunning) {
			t.Errorf("mark: %v", err)
		}
		w.checkpoint()
		if err := w.s.Commit(1); !errors.Is(err, proxy.ErrRunning) {
			t.Errorf("commit: %v", err)
		}
		w.pg.onPause = func() {}
		if err := w.p.Pause(w.ctx); err == nil {
			t.Error("a pause that failed did not")
		}
		if err := w.p.Mark(1); !errors.Is(err, proxy.ErrRunning) {
			t.Errorf("mark after a pause that failed: %v", err)
		}
	})
}

func TestAFullRingOfThePrimaryIsNotMirroredAndOneOfTheSecondaryIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		defer w.end()
		w.connect()
		w.checkpoint()
		full := func(g *guest, is bool) { g.mu.Lock(); g.full = is; g.mu.Unlock() }
		full(w.pg, true)
		w.arrive("lost")
		synctest.Wait()
		full(w.pg, false)
		full(w.sg, true)
		w.arrive("a")
		time.Sleep(20 * time.Millisecond)
		full(w.sg, false)
		time.Sleep(20 * time.Millisecond)
		w.wantTold("", w.pg, "a")
		w.wantTold("", w.sg, "a")
		full(w.sg, true)
		w.arrive("b")
		time.Sleep(time.Second)
		full(w.sg, false)
		w.wantTold("not for ever", w.sg, "a")
		if p, s := w.p.Stats(), w.s.Stats(); p.Refused != 1 || s.Refused != 1 || p.Mirrored != 2 {
			t.Errorf("%+v %+v", p, s)
		}
	})
}

func TestContinuousComparesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(p *proxy.PrimaryConfig, s *proxy.SecondaryConfig) { p.Continuous, s.Continuous = true, true })
		defer w.end()
		w.connect()
		w.checkpoint()
		w.say(w.pg, "a")
		w.say(w.sg, "a", "z")
		w.arrive("x")
		w.wantLeft("", w.pw)
		w.wantTold("", w.sg)
		w.checkpoint()
		w.wantLeft("", w.pw, "a")
		w.wantTold("with the state", w.sg, "x")
		if r := w.requests(); r != nil {
			t.Errorf("asked for %v", r)
		}
		w.say(w.sg, "b")
		w.must(w.s.Pause(w.ctx))
		w.must(w.s.Failover())
		w.must(w.s.Resume(w.ctx))
		w.wantLeft("what was inherited, then its own", w.sw, "a", "b")
	})
}

// ofOneMebibyte returns a world in step whose sides hold 1 MiB at most, and a packet of 8,000 bytes.
func ofOneMebibyte(t *testing.T, continuous bool) (w *world, big []byte) {
	w = newWorld(t, func(p *proxy.PrimaryConfig, s *proxy.SecondaryConfig) {
		p.Limit, s.Limit, p.Continuous, s.Continuous = 1<<20, 1<<20, continuous, continuous
	})
	w.connect()
	w.checkpoint()
	return w, datagram(string(make([]byte, 8000)))
}

func TestHalfOfTheLimitAsksForACheckpointAndAllOfItIsFull(t *testing.T) {
	for _, continuous := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			w, big := ofOneMebibyte(t, continuous)
			defer w.end()
			n := 0
			for ; ; n++ {
				err := w.p.WritePacket(big)
				if errors.Is(err, proxy.ErrFull) {
					break
				}
				w.must(err)
			}
			if r := w.requests(); len(r) == 0 || r[0] != event.CauseLimit {
				t.Errorf("asked for %v", r)
			}
			if n < 50 || n > 131 {
				t.Errorf("%d packets of 8 KB are full", n)
			}
			w.checkpoint()
			select {
			case <-w.p.Room():
			default:
				t.Error("there is no word of room")
			}
			for range n {
				w.must(w.s.WritePacket(big))
			}
			if got := len(w.pw.left()); got != n {
				t.Errorf("%d packets left of %d", got, n)
			}
			w.must(w.p.WritePacket(big))
		})
	}
}

func TestPacketsThatAreNoneAreRefused(t *testing.T) {
	w := newWorld(t, nil)
	defer w.end()
	for _, p := range [][]byte{nil, make([]byte, filter.MaxFrame+1)} {
		var e *filter.Error
		if err := w.p.WritePacket(p); !errors.As(err, &e) {
			t.Errorf("%d bytes: %v", len(p), err)
		}
		if err := w.s.WritePacket(p); !errors.As(err, &e) {
			t.Errorf("%d bytes: %v", len(p), err)
		}
	}
}
