package colo_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/colo/colotest"
	"github.com/gocolo/lockstep/event"
)

// idle starts a pair without a timer to speak of, lets do happen while it runs,
// and returns the checkpoints that were made, with their times since the start.
func idle(t *testing.T, delay time.Duration, do func(*pair)) (*pair, []stamp) {
	x := newPair(t, options{primary: func(c *colo.PrimaryConfig) { c.CheckpointDelay = delay }})
	start := time.Now()
	var list []stamp
	x.p.bus.SubscribeAll(func(r event.Record) {
		if c, ok := r.Event.(event.CheckpointCommit); ok {
			list = append(list, stamp{r.Time.Sub(start), c.Epoch, c.Cause})
		}
	})
	ctx, cancel := context.WithCancel(t.Context())
	x.start(ctx)
	synctest.Wait()
	do(x)
	synctest.Wait()
	cancel()
	x.wait()
	return x, list
}

type stamp struct {
	At    time.Duration
	Epoch uint64
	Cause event.Cause
}

func TestTimerCountsFromTriggerToTrigger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x, got := idle(t, time.Second, func(x *pair) {
			time.Sleep(1500 * time.Millisecond)
			x.primary.RequestCheckpoint(event.CauseDivergence) // the timer starts anew
			time.Sleep(2 * time.Second)
			x.primary.SetCheckpointDelay(300 * time.Millisecond) // counts from the last trigger
			time.Sleep(700 * time.Millisecond)
		})
		defer x.close()
		ms := time.Millisecond
		want := []stamp{
			{0, 0, event.CauseInitial}, {1000 * ms, 1, event.CauseTimer}, {1500 * ms, 2, event.CauseDivergence},
			{2500 * ms, 3, event.CauseTimer}, {3500 * ms, 4, event.CauseTimer}, {3800 * ms, 5, event.CauseTimer},
			{4100 * ms, 6, event.CauseTimer},
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("checkpoints (-want +got):\n%s", d)
		}
		in := x.primary.Info()
		if in.Checkpoints != 6 || in.Epoch != 6 || in.TookOver {
			t.Errorf("%+v", in)
		}
		if d := cmp.Diff(map[event.Cause]uint64{event.CauseTimer: 5, event.CauseDivergence: 1}, in.Causes); d != "" {
			t.Errorf("causes (-want +got):\n%s", d)
		}
		if s := x.secondary.Info(); s.Checkpoints != 6 || s.Bytes == 0 {
			t.Errorf("the secondary counts %+v", s)
		}
	})
}

func TestRequestsCoalesce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x, got := idle(t, time.Hour, func(x *pair) {
			for _, c := range []event.Cause{event.CauseLimit, event.CauseDivergence, event.CauseRequest} {
				x.primary.RequestCheckpoint(c)
			}
		})
		defer x.close()
		want := []stamp{{0, 0, event.CauseInitial}, {0, 1, event.CauseLimit}}
		if len(got) == 3 { // the first was under way when the others came
			want = append(want, stamp{0, 2, event.CauseDivergence})
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("checkpoints (-want +got):\n%s", d)
		}
	})
}

// TestMemoryIsSentAhead compares what a timer's checkpoint sends while the guest
// stands still with what it sends before.
func TestMemoryIsSentAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var x *pair
		var ahead, behind int64
		var sent int64
		x = newPair(t, options{
			guest: colotest.VMConfig{Pages: 1024, Touch: 64}, // few pages are touched twice
			primary: func(c *colo.PrimaryConfig) {
				c.CheckpointDelay, c.AheadThreshold = time.Second, 64<<10
				c.Step = func(op string, epoch uint64) {
					now := x.pc.Sent().Bytes
					switch {
					case epoch != 2:
					case op == "send ram ahead":
						sent = now
					case op == "pause":
						ahead = now - sent
						sent = now
						x.p.step(1) // dirty again
					case op == "expect vmstate-loaded":
						behind = now - sent
					}
				}
			},
		})
		defer x.close()
		event.Subscribe(&x.p.bus, func(c event.CheckpointCommit) {
			x.p.step(3)
			if c.Epoch == 2 {
				x.pc.Break()
			}
		})
		x.start(t.Context())
		x.wait()
		x.wantWhole(t)
		if ahead < 80*4096 || behind < 60*4096 || behind > 80*4096 {
			t.Errorf("%d bytes were sent ahead and %d while the guest waited, of some 90 dirty pages and 64 that were dirtied again", ahead, behind)
		}
	})
}

func TestHostFaultEndsTheSessionAndLosesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		whole := cutRun(t, manners[0], colotest.Flow{}, colotest.Flow{}, false, nil)
		type fault struct {
			mode event.Mode
			call colotest.Call
		}
		var faults []fault
		for e := uint64(0); e <= 2; e++ {
			faults = append(faults, fault{event.ModePrimary, colotest.Call{Name: "err", Epoch: e}}, fault{event.ModeSecondary, colotest.Call{Name: "err", Epoch: e}})
		}
		for _, m := range []event.Mode{event.ModePrimary, event.ModeSecondary} {
			h, _ := whole.side(m)
			for _, c := range h.disk.Calls() {
				faults = append(faults, fault{m, c})
			}
		}
		x := whole
		for _, f := range faults {
			if f.call.Name == "failover" || f.call.Name == "stop" {
				continue // the end itself
			}
			x = cutRunWith(t, manners[0], colotest.Flow{}, colotest.Flow{}, false, x, func(x *pair) {
				h, _ := x.side(f.mode)
				h.disk.Fail = func(c colotest.Call) error {
					if c == f.call {
						return errDisk
					}
					return nil
				}
			})
			h, _ := x.side(f.mode)
			said := h.err != nil && errors.Is(h.err, errDisk)
			for _, c := range x.witness.Claims() {
				said = said || c.Mode == f.mode && errors.Is(c.Cause, errDisk)
			}
			if !said {
				t.Errorf("%s, %v: Run: %v; nobody was told of the fault", f.mode, f.call, h.err)
			}
			x.wantWhole(t)
			if t.Failed() {
				t.Fatalf("the disk of the %s fails at %v", f.mode, f.call)
			}
		}
		x.close()
	})
}

func TestTakeoverWithErrorsIsStillATakeover(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, ordered := range []bool{false, true} {
			x := newPair(t, options{})
			refuse(event.ModePrimary)(x)
			x.s.disk.Fail = func(c colotest.Call) error {
				if c.Name == "failover" {
					return errDisk
				}
				return nil
			}
			event.Subscribe(&x.s.bus, func(c event.CheckpointCommit) {
				switch {
				case c.Epoch < 2:
				case ordered:
					if err := x.secondary.Failover(); err != nil {
						t.Error(err)
					}
				default:
					x.sc.Break()
				}
			})
			x.start(t.Context())
			x.wait()
			if !errors.Is(x.s.err, colo.ErrDegraded) || !errors.Is(x.s.err, errDisk) {
				t.Errorf("ordered %v: the secondary ended with %v, want ErrDegraded and why", ordered, x.s.err)
			}
			if x.survivor(t) != x.s || !x.secondary.Info().TookOver {
				t.Errorf("ordered %v: the secondary did not take over", ordered)
			}
			stand(t, x.s)
			x.close()
		}
	})
}

func TestWithoutAnArbiterASideWaitsForAnOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newPair(t, options{
			primary:   func(c *colo.PrimaryConfig) { c.Arbiter, c.CheckpointDelay = nil, time.Hour },
			secondary: func(c *colo.SecondaryConfig) { c.Arbiter, c.IdleTimeout = nil, -1 },
		})
		ctx, cancel := context.WithCancel(t.Context())
		x.start(ctx)
		synctest.Wait()
		x.pc.Break()
		time.Sleep(2 * time.Hour)
		if !x.p.guest.Paused() || !x.s.guest.Paused() {
			t.Error("a guest runs and nobody has decided that it may")
		}
		if err := x.secondary.Failover(); err != nil {
			t.Errorf("Failover: %v", err)
		}
		if err := x.s.wait(); err != nil {
			t.Errorf("the secondary ended with %v", err)
		}
		cancel()
		if err := x.p.wait(); !errors.Is(err, context.Canceled) || !errors.Is(err, colotest.ErrBroken) {
			t.Errorf("the primary ended with %v, want why it stopped and why it had to wait", err)
		}
		if err := x.primary.Failover(); !errors.Is(err, colo.ErrEnded) {
			t.Errorf("Failover of the primary, too late: %v", err)
		}
		x.wantWhole(t)
		x.close()
	})
}

func TestFencedSettlesWhileTheArbiterThinks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newPair(t, options{primary: func(c *colo.PrimaryConfig) { c.CheckpointDelay = time.Hour }, secondary: func(c *colo.SecondaryConfig) {
			c.Arbiter = colo.ArbiterFunc(func(ctx context.Context, _ colo.Claim) error {
				<-ctx.Done()
				return ctx.Err()
			})
		}})
		refuse(event.ModePrimary)(x)
		x.start(t.Context())
		synctest.Wait()
		x.sc.Break()
		x.primary.RequestCheckpoint(event.CauseRequest) // so that it notices
		time.Sleep(time.Minute)
		if err := x.secondary.Fenced(); err != nil {
			t.Error(err)
		}
		x.wait()
		if x.s.err != nil || x.wantWhole(t) != x.s {
			t.Errorf("the secondary ended with %v", x.s.err)
		}
		x.close()
	})
}

// bare hides everything of a connection but the three methods.
type bare struct{ io.ReadWriteCloser }

func TestConnectionWithoutDeadlinesIsClosedWhenItIsTooSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := colotest.Pipe(colotest.Flow{}, colotest.Flow{})
		l := colo.NewLink(bare{a}, time.Second)
		start := time.Now()
		if err := l.Expect(colo.CheckpointReady); !errors.Is(err, colo.ErrTimeout) {
			t.Errorf("%v, want ErrTimeout", err)
		}
		if d := time.Since(start); d != time.Second {
			t.Errorf("after %v", d)
		}
		if _, err := b.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("the other end reads %v, want the end", err)
		}
	})
}

func TestLinkIsAsLongAsItMakesProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := colotest.Pipe(colotest.Flow{}, colotest.Flow{})
		l := colo.NewLink(a, time.Second)
		go func() {
			for _, c := range be32(uint32(colo.VMStateReceived)) {
				time.Sleep(900 * time.Millisecond)
				b.Write([]byte{c})
			}
		}()
		if err := l.Expect(colo.VMStateReceived); err != nil {
			t.Error(err)
		}
		l.Close()
		l.Close()
	})
}

func TestMessagesAreThoseOfQEMU(t *testing.T) {
	var out bytes.Buffer
	l := colo.NewLink(&sink{w: &out}, 0)
	var said []string
	l.Trace = func(dir string, m colo.Message, v uint64) { said = append(said, dir+" "+m.String()) }
	for m := colo.CheckpointReady; m <= colo.VMStateLoaded; m++ {
		if err := l.Send(m); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(l.SendValue(colo.VMStateSize, 183), l.Flush()); err != nil {
		t.Fatal(err)
	}
	// QAPI COLOMessage, in its order; a size as QEMU 7.2 sends it.
	want := append(be32(0, 1, 2, 3, 4, 5, 6, 4), 0, 0, 0, 0, 0, 0, 0, 0xb7)
	if !bytes.Equal(out.Bytes(), want) {
		t.Errorf("% x, want % x", out.Bytes(), want)
	}
	if d := cmp.Diff([]string{"> checkpoint-ready", "> checkpoint-request", "> checkpoint-reply", "> vmstate-send",
		"> vmstate-size", "> vmstate-received", "> vmstate-loaded", "> vmstate-size"}, said); d != "" {
		t.Errorf("trace (-want +got):\n%s", d)
	}
	if s := colo.Message(9).String(); s != "message(9)" {
		t.Errorf("an unknown message prints %q", s)
	}
}
