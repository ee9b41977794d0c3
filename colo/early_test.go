package colo_test

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/colo/colotest"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/vmstate"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// A guest runs on while the secondary loads the first state, however long that takes, and
// nothing of what it does then leaves before. Where its memory is not captured it stands
// still for as long.
func TestAGuestRunsOnWhileTheSecondaryLoadsTheFirstState(t *testing.T) {
	const slow = 2 * time.Second
	for name, c := range map[string]struct {
		late   bool
		save   ram.SaverConfig
		stands bool
	}{
		"captured":            {},
		"more than may be":    {save: ram.SaverConfig{MaxCapture: 1}, stands: true},
		"as a QEMU's primary": {late: true, stands: true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var x *pair
				x = newPair(t, options{saver: c.save, primary: func(p *colo.PrimaryConfig) {
					p.LateResume = c.late
					p.Step = func(op string, epoch uint64) {
						if op == "pause" && epoch == 0 {
							x.p.step(3) // so that something is left to be captured
						}
					}
				}})
				x.s.disk.Fail = func(call colotest.Call) error {
					if call.Name == "start" {
						time.Sleep(slow)
					}
					return nil
				}
				var first event.CheckpointCommit
				event.Subscribe(&x.p.bus, func(c event.CheckpointCommit) {
					if c.Epoch == 0 {
						first = c
						x.primary.End()
					}
				})
				x.start(t.Context())
				time.Sleep(slow / 2)
				if x.p.guest.Paused() != c.stands {
					t.Errorf("while the secondary loads, the guest stands still: %t, want %t", !c.stands, c.stands)
				}
				if !c.stands {
					x.p.step(3)
					if held := x.p.net.Held(); held < 3 {
						t.Errorf("%d frames are held", held)
					}
				}
				x.wait()
				if first.EarlyResume == c.stands || time.Duration(first.PauseNS) > slow/10 != c.stands || time.Duration(first.CommitNS+first.TransferNS) < slow {
					t.Errorf("%+v", first)
				}
				x.wantWhole(t)
				x.close()
			})
		})
	}
}

// A still is a device that is saved and described while its guest stands still.
type still struct {
	t     *testing.T
	guest *colotest.VM
	v     uint64
	reads int
}

func (d *still) VMState(f *vmstate.Fields) {
	if d.reads++; !d.guest.Paused() {
		d.t.Error("a device is asked for its fields while the guest runs")
	}
	f.Uint64("v", &d.v)
}

// The first state is that of one moment, though it is sent while the guest runs on.
func TestTheFirstStateIsTakenOfAGuestThatStandsStill(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		runs := map[string]bool{}
		var x *pair
		x = newPair(t, options{primary: func(p *colo.PrimaryConfig) {
			p.Step = func(op string, epoch uint64) {
				if epoch > 0 {
					return
				}
				if op == "pause" {
					x.p.step(3) // so that something is left to be captured
				}
				runs[op] = !x.p.guest.Paused()
			}
		}})
		d := &still{t: t, guest: x.p.guest}
		if err := errors.Join(x.p.reg.Register(vmstate.Entry{Name: "still"}, d), x.s.reg.Register(vmstate.Entry{Name: "still"}, &plain{guest: x.s.guest})); err != nil {
			t.Fatal(err)
		}
		event.Subscribe(&x.p.bus, func(c event.CheckpointCommit) { x.primary.End() })
		x.start(t.Context())
		x.wait()
		for op, want := range map[string]bool{"mark": false, "save devices": false, "capture": false, "early resume": false, "send state": true, "expect checkpoint-ready": true} {
			if got, seen := runs[op]; !seen || got != want {
				t.Errorf("at step %q the guest runs: %t, want %t (there was such a step: %t)", op, got, want, seen)
			}
		}
		if d.reads < 2 {
			t.Errorf("the device was asked for its fields %d times, want to be saved and described", d.reads)
		}
		x.wantWhole(t)
		x.close()
	})
}
