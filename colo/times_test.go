package colo_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/colo/colotest"
	"github.com/gocolo/lockstep/event"
)

func TestAWaitingPrimaryReadsItsLink(t *testing.T) {
	for _, c := range []struct {
		name string
		do   func(*pair)
		want func(error) bool
	}{
		{"the link ends", func(x *pair) { x.sc.Close() }, nil},
		{"the link breaks", func(x *pair) { x.sc.Break() }, is(colotest.ErrBroken)},
		{"a byte", func(x *pair) { x.sc.Write([]byte{0}) }, is(colo.ErrOutOfTurn)},
		{"a word", func(x *pair) { x.sc.Write(be32(6)) }, func(err error) bool {
			var m *colo.MessageError
			return errors.Is(err, colo.ErrOutOfTurn) && errors.As(err, &m) && m.Got == colo.VMStateLoaded
		}},
		{"the first byte of a goodbye", func(x *pair) { x.sc.Write([]byte{0x4c}) }, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var at time.Time
				o := options{primary: func(c *colo.PrimaryConfig) { c.CheckpointDelay = time.Hour }}
				x := newPair(t, o)
				refuse(event.ModeSecondary)(x)
				x.start(t.Context())
				time.Sleep(10 * time.Minute)
				at = time.Now()
				c.do(x)
				x.p.wait()
				if d := time.Since(at); d >= time.Second {
					t.Errorf("noticed after %v", d)
				}
				claims := x.witness.Claims()
				if c.want != nil && !c.want(claims[0].Cause) && !c.want(claims[len(claims)-1].Cause) {
					t.Errorf("the session ended with %v", claims)
				}
				x.s.wait()
				x.wantWhole(t)
				x.close()
			})
		})
	}
}

func TestAHealthyPairOutlivesAnyDelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, idle := range []time.Duration{0, time.Minute} {
			ctx, cancel := context.WithCancel(t.Context())
			x := newPair(t, options{
				primary:   func(c *colo.PrimaryConfig) { c.CheckpointDelay, c.PeerTimeout = time.Second, 0 },
				secondary: func(c *colo.SecondaryConfig) { c.IdleTimeout, c.PeerTimeout = idle, 0 },
			})
			x.start(ctx)
			time.Sleep(5 * time.Second)
			x.primary.SetCheckpointDelay(24 * time.Hour)
			time.Sleep(100 * time.Hour)
			if n := len(x.witness.Claims()); n > 0 || x.primary.Info().Epoch < 4 {
				t.Errorf("idle timeout %v: %d claims after 100 hours", idle, n)
			}
			// And a primary that hangs is still noticed.
			x.pc.Stall()
			start := time.Now()
			x.s.wait()
			if d := time.Since(start); d > 6*time.Minute {
				t.Errorf("noticed after %v", d)
			}
			cancel()
			x.p.wait()
			x.close()
		}
	})
}

// slowDisk takes its time for a checkpoint.
type slowDisk struct {
	*colotest.Disk
	commit time.Duration
}

func (d *slowDisk) Checkpoint(ctx context.Context, epoch uint64) error {
	if epoch == 2 {
		time.Sleep(d.commit)
	}
	return d.Disk.Checkpoint(ctx, epoch)
}

func TestSlowIsNotLostUntilItCostsTooMuch(t *testing.T) {
	for _, c := range []struct {
		name    string
		commit  time.Duration // of the secondary's disk
		timeout time.Duration // CheckpointTimeout
		lasts   bool
	}{
		{"a commit within the default", 4 * time.Second, 0, true},
		{"a commit that the host waits for", 50 * time.Second, time.Minute, true},
		{"a commit that takes too long", 50 * time.Second, 0, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				x := newPair(t, options{
					primary: func(p *colo.PrimaryConfig) {
						p.CheckpointDelay, p.PeerTimeout, p.CheckpointTimeout = time.Second, 10*time.Second, c.timeout
					},
					secondary: func(s *colo.SecondaryConfig) {
						s.PeerTimeout = 10 * time.Second
						s.Disks[0] = &slowDisk{s.Disks[0].(*colotest.Disk), c.commit}
					},
				})
				ctx, cancel := context.WithCancel(t.Context())
				x.start(ctx)
				time.Sleep(5 * time.Minute)
				claims := x.witness.Claims()
				if c.lasts != (len(claims) == 0) {
					t.Fatalf("after five minutes the arbiter was asked %+v", claims)
				}
				if !c.lasts {
					if claims[0].Mode != event.ModePrimary || !errors.Is(claims[0].Cause, colo.ErrStalled) || !errors.Is(claims[0].Cause, colo.ErrTimeout) {
						t.Errorf("the first claim is %+v", claims[0])
					}
					var said []event.OutputStalled
					for _, e := range x.p.events {
						if e, ok := e.(event.OutputStalled); ok {
							said = append(said, e)
						}
					}
					if len(said) != 1 || said[0].Epoch != 2 || time.Duration(said[0].AgeNS) != colo.DefaultCheckpointTimeout || said[0].Step != "expect vmstate-loaded" {
						t.Errorf("it said %+v", said)
					}
					if x.p.guest.Paused() {
						t.Error("the primary's guest does not run")
					}
				}
				cancel()
				x.wait()
				x.close()
			})
		})
	}
}

func TestTimesThatCannotWorkAreRefused(t *testing.T) {
	x := newPair(t, options{})
	defer x.close()
	for name, change := range map[string]func(*colo.PrimaryConfig){
		"MaxDowntime": func(c *colo.PrimaryConfig) { c.MaxDowntime, c.CheckpointTimeout = time.Second, time.Second },
		"MinInterval": func(c *colo.PrimaryConfig) { c.MinInterval = time.Minute },
	} {
		cfg := x.p.primary()
		change(&cfg)
		if _, err := colo.NewPrimary(x.pc, cfg); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	cfg := x.s.secondary()
	cfg.IdleTimeout, cfg.PeerTimeout = time.Second, time.Minute
	if _, err := colo.NewSecondary(x.sc, cfg); err == nil || !strings.Contains(err.Error(), "IdleTimeout") {
		t.Errorf("IdleTimeout: %v", err)
	}
}

func TestRequestsFollowEachOtherAtAMeasuredPace(t *testing.T) {
	for _, c := range []struct{ interval, want time.Duration }{{0, colo.DefaultMinInterval}, {100 * time.Millisecond, 100 * time.Millisecond}} {
		synctest.Test(t, func(t *testing.T) {
			x := newPair(t, options{primary: func(p *colo.PrimaryConfig) { p.CheckpointDelay, p.MinInterval = time.Hour, c.interval }})
			ctx, cancel := context.WithCancel(t.Context())
			event.Subscribe(&x.p.bus, func(event.CheckpointCommit) { x.primary.RequestCheckpoint(event.CauseDivergence) })
			x.start(ctx)
			const while = 10 * time.Second
			time.Sleep(while + c.want/2)
			cancel()
			x.wait()
			if n, most := x.primary.Info().Checkpoints, uint64(while/c.want)+1; n > most || n < most-2 {
				t.Errorf("MinInterval %v: %d checkpoints in %v, want %d", c.interval, n, while, most)
			}
			x.close()
		})
	}
}

func TestALinkThatTakesFewBytesMakesProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := colotest.Pipe(colotest.Flow{Capacity: 16}, colotest.Flow{})
		l := colo.NewLink(a, time.Second)
		done := make(chan struct{})
		go func() {
			defer close(done)
			p := make([]byte, 8)
			for {
				time.Sleep(900 * time.Millisecond)
				if _, err := b.Read(p); err != nil {
					return
				}
			}
		}()
		l.W.Write(make([]byte, 200))
		if err := l.Flush(); err != nil {
			t.Errorf("a write of which some is taken all the time: %v", err)
		}
		l.Close()
		<-done
	})
}
