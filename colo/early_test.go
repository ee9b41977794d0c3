package colo_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/colo/colotest"
	"github.com/gocolo/lockstep/event"
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
