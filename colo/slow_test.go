package colo_test

import (
	"context"
	"errors"
	"io"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/colo/colotest"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/internal/wait"
	"github.com/gocolo/lockstep/replication"
)

// beating is a heartbeat that is alive, or not.
type beating struct{ alive atomic.Bool }

func (b *beating) Alive() bool { return b.alive.Load() }

// slowAt runs a pair of which one side takes three times PeerTimeout before one
// step, until checkpoint 2 is whole and the link is cut.
func slowAt(t *testing.T, when moment, h colo.Heartbeat, conn func(*colotest.Conn) io.ReadWriteCloser) (x *pair, hit bool) {
	t.Helper()
	step := func(mode event.Mode) func(string, uint64) {
		return func(op string, epoch uint64) {
			side, _ := x.side(mode)
			side.step(1)
			if when == (moment{mode, op, epoch}) {
				hit = true
				time.Sleep(3 * time.Minute)
			}
		}
	}
	o := options{
		primary: func(c *colo.PrimaryConfig) {
			c.Step, c.Heartbeat, c.CheckpointTimeout = step(event.ModePrimary), h, -1
		},
		secondary: func(c *colo.SecondaryConfig) { c.Step, c.Heartbeat = step(event.ModeSecondary), h },
	}
	x = newPair(t, o)
	x.join(t, conn(x.pc), conn(x.sc), o)
	defer event.Subscribe(&x.p.bus, func(c event.CheckpointCommit) {
		if c.Epoch == 2 {
			x.pc.Break()
		}
	})()
	x.start(t.Context())
	x.wait()
	return x, hit
}

func TestASlowPeerThatBeatsIsWaitedFor(t *testing.T) {
	conns := map[string]func(*colotest.Conn) io.ReadWriteCloser{
		"deadlines":    func(c *colotest.Conn) io.ReadWriteCloser { return c },
		"no deadlines": func(c *colotest.Conn) io.ReadWriteCloser { return bare{c} },
	}
	for name, conn := range conns {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var list []moment
				x := watched(t, manners[0], func(_ *pair, at moment) {
					if at.epoch <= 1 && at.op != "take over" {
						list = append(list, at)
					}
				}, options{})
				x.close()
				if len(list) < 20 {
					t.Fatalf("a run of %d steps", len(list))
				}
				h := new(beating)
				h.alive.Store(true)
				for i, when := range list {
					if testing.Short() && i%9 != 0 {
						continue
					}
					x, hit := slowAt(t, when, h, conn)
					if !hit {
						t.Errorf("%v: it did not come to that", when)
					}
					if got := x.primary.Info().Epoch; got < 2 {
						t.Errorf("slow before %v: the session ended after checkpoint %d: primary %v, secondary %v", when, got, x.p.err, x.s.err)
					}
					x.wantWhole(t)
					x.close()
				}
			})
		})
	}
}

// A peer that does not beat is lost when it has said nothing for PeerTimeout, with
// a Heartbeat that says so and without one.
func TestASlowPeerThatDoesNotBeatIsLost(t *testing.T) {
	when := moment{event.ModeSecondary, "commit", 1}
	for _, h := range []colo.Heartbeat{nil, new(beating)} {
		synctest.Test(t, func(t *testing.T) {
			x, hit := slowAt(t, when, h, func(c *colotest.Conn) io.ReadWriteCloser { return c })
			if !hit || !errors.Is(x.s.err, colo.ErrRefused) || x.p.err != nil {
				t.Errorf("the primary ended with %v, the secondary with %v", x.p.err, x.s.err)
			}
			if claims := x.witness.Claims(); len(claims) == 0 || !errors.Is(claims[0].Cause, colo.ErrTimeout) {
				t.Errorf("the arbiter was asked %+v, want a timeout", claims)
			}
			if x.wantWhole(t) != x.p {
				t.Error("the primary does not run")
			}
			x.close()
		})
	}
}

// A heartbeat keeps nobody waiting beyond the age that a checkpoint may have, nor
// for the answer to a goodbye.
func TestAHeartbeatExcusesNoOutage(t *testing.T) {
	h := new(beating)
	h.alive.Store(true)
	for _, conn := range []func(*colotest.Conn) io.ReadWriteCloser{
		func(c *colotest.Conn) io.ReadWriteCloser { return c },
		func(c *colotest.Conn) io.ReadWriteCloser { return bare{c} },
	} {
		synctest.Test(t, func(t *testing.T) {
			o := options{primary: func(c *colo.PrimaryConfig) {
				c.Heartbeat, c.CheckpointTimeout, c.PeerTimeout = h, 30*time.Second, 7*time.Second
			}}
			x := newPair(t, o)
			x.join(t, conn(x.pc), x.sc, o)
			defer event.Subscribe(&x.p.bus, func(c event.CheckpointStart) {
				if c.Epoch == 2 {
					x.pc.Stall()
					x.sc.Stall()
				}
			})()
			begin := time.Now()
			x.start(t.Context())
			if x.p.wait(); x.p.err != nil {
				t.Errorf("the primary ended with %v", x.p.err)
			}
			if d := time.Since(begin); d < 30*time.Second || d > 40*time.Second {
				t.Errorf("the primary gave its secondary up after %v, want 30 s", d)
			}
			x.sc.Break()
			x.s.wait()
			x.close()

			x = newPair(t, o)
			x.join(t, conn(x.pc), x.sc, o)
			defer event.Subscribe(&x.p.bus, func(c event.CheckpointCommit) {
				if c.Epoch == 2 {
					x.pc.Stall()
					x.sc.Stall()
					x.primary.End()
				}
			})()
			begin = time.Now()
			x.start(t.Context())
			x.p.wait()
			if d := time.Since(begin); d > 2*time.Minute {
				t.Errorf("the end took %v", d)
			}
			x.sc.Break()
			x.s.wait()
			x.close()
		})
	}
}

// heavyDisk takes its time to prepare a checkpoint, or to mark one.
type heavyDisk struct {
	*colotest.Disk
	prepare, mark time.Duration
}

func (d heavyDisk) Prepare(ctx context.Context, epoch uint64) error {
	return wait.For(ctx, d.prepare)
}

func (d heavyDisk) Mark(ctx context.Context, epoch uint64) error {
	if epoch == 0 { // the secondary does not know yet how long it has to wait
		return d.Disk.Mark(ctx, epoch)
	}
	return errors.Join(wait.For(ctx, d.mark), d.Disk.Mark(ctx, epoch))
}

// A host that allows its checkpoints a minute may have disks that are slower than
// PeerTimeout.
func TestDisksHaveAsLongAsTheCheckpoint(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newPair(t, options{
			primary: func(c *colo.PrimaryConfig) {
				c.PeerTimeout, c.CheckpointTimeout = 5*time.Second, time.Minute
				c.Disks = replication.Group{heavyDisk{c.Disks[0].(*colotest.Disk), 0, 12 * time.Second}}
			},
			secondary: func(c *colo.SecondaryConfig) {
				c.PeerTimeout = 5 * time.Second
				c.Disks = replication.Group{heavyDisk{c.Disks[0].(*colotest.Disk), 12 * time.Second, 0}}
			},
		})
		defer event.Subscribe(&x.p.bus, func(c event.CheckpointCommit) {
			if c.Epoch == 2 {
				x.pc.Break()
			}
		})()
		x.start(t.Context())
		x.wait()
		if got := x.primary.Info().Epoch; got < 2 {
			t.Errorf("the session ended after checkpoint %d: primary %v, secondary %v", got, x.p.err, x.s.err)
		}
		x.wantWhole(t)
		x.close()
	})
}
