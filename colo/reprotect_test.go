package colo_test

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/colo/colotest"
	"github.com/gocolo/lockstep/event"
	"github.com/google/go-cmp/cmp"
)

func TestSurvivorIsProtectedAgainTwiceInARow(t *testing.T) {
	for _, m := range manners {
		t.Run(m.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				x := cutRun(t, m, colotest.Flow{}, colotest.Flow{}, true, nil)
				for generation := 1; generation <= 3; generation++ {
					if x.survivor(t) != x.s {
						t.Fatalf("generation %d: the secondary did not take over", generation)
					}
					if generation == 3 {
						break
					}
					x = reprotect(t, x, m)
				}
				if h := x.wantWhole(t); len(h.disk.Content()) < 20 {
					t.Errorf("three generations have run %d rounds", len(h.disk.Content()))
				}
				x.close()
			})
		})
	}
}

// reprotect makes the survivor of a pair the primary of another, whose world is
// the same.
func reprotect(t testing.TB, old *pair, m manner) *pair {
	t.Helper()
	old.p.close()
	x := &pair{world: old.world, p: old.s, s: newHost(t, old.world, "secondary")}
	x.witness.Next()
	x.p.step(2) // alone
	x.p.disk.Follow(x.s.disk)
	x.witness.Deny = func(c colo.Claim) error {
		if c.Mode == event.ModePrimary {
			return errors.New("dead")
		}
		return nil
	}
	x.pc, x.sc = colotest.Pipe(colotest.Flow{}, colotest.Flow{})
	x.join(t, x.pc, x.sc, options{
		primary: func(c *colo.PrimaryConfig) {
			m.apply(c)
			c.Step = func(string, uint64) { x.p.step(1) }
		},
		secondary: func(c *colo.SecondaryConfig) { c.Step = func(string, uint64) { x.s.step(1) } },
	})
	defer event.Subscribe(&x.p.bus, func(c event.CheckpointCommit) {
		if c.Epoch == checkpoints {
			x.pc.Break()
		}
	})()
	x.start(t.Context())
	x.wait()
	return x
}

func TestEpochsComeInOrderEverywhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, m := range manners {
			x := cutRun(t, m, colotest.Flow{}, colotest.Flow{}, true, nil)
			x.wantWhole(t)
			var net, snet, disk, sdisk []string
			net = append(net, "mark(0)", "received(0)", "loaded(0)")
			disk = append(disk, "mark(0)", "start(0)", "loaded(0)")
			snet = append(snet, "commit(0)", "resumed(0)")
			sdisk = append(sdisk, "start(0)")
			for e := 1; e <= checkpoints; e++ {
				net = append(net, fmt.Sprintf("mark(%d)", e), fmt.Sprintf("received(%d)", e), fmt.Sprintf("loaded(%d)", e))
				disk = append(disk, fmt.Sprintf("mark(%d)", e), fmt.Sprintf("loaded(%d)", e))
				snet = append(snet, fmt.Sprintf("commit(%d)", e), fmt.Sprintf("resumed(%d)", e))
				sdisk = append(sdisk, fmt.Sprintf("checkpoint(%d)", e))
			}
			net = append(net, fmt.Sprintf("drop(%d)", checkpoints)) // it is refused
			disk = append(disk, fmt.Sprintf("stop(%d)", checkpoints))
			snet = append(snet, fmt.Sprintf("failover(%d)", checkpoints))
			sdisk = append(sdisk, fmt.Sprintf("failover(%d)", checkpoints))
			for _, c := range []struct {
				name string
				want []string
				got  []colotest.Call
			}{
				{"primary's network", net, x.p.net.Calls()},
				{"secondary's network", snet, x.s.net.Calls()},
				{"primary's disk", disk, x.p.disk.Calls()},
				{"secondary's disk", sdisk, x.s.disk.Calls()},
			} {
				var got []string
				for _, call := range c.got {
					got = append(got, call.String())
				}
				if d := cmp.Diff(c.want, got); d != "" {
					t.Errorf("%s: the %s was told (-want +got):\n%s", m.name, c.name, d)
				}
			}
			x.close()
		}
	})
}
