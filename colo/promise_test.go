package colo_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/colo/colotest"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/failover"
	"github.com/gocolo/lockstep/vmstate"
	"github.com/google/go-cmp/cmp"
)

// badDevice cannot be saved.
type badDevice struct{ v uint64 }

func (*badDevice) PreSave() error { return errors.New("it cannot be saved now") }

func (d *badDevice) VMState(f *vmstate.Fields) { f.Uint64("v", &d.v) }

func TestAFailedFirstAttemptLeavesTheGuestAsItWas(t *testing.T) {
	for _, c := range []struct {
		name    string
		prepare func(*pair) error
		why     string
	}{
		{"a device cannot be saved", func(x *pair) error {
			return x.p.reg.Register(vmstate.Entry{Name: "odd"}, &badDevice{})
		}, "it cannot be saved now"},
		{"the secondary has no such device", func(x *pair) error {
			return x.p.reg.Register(vmstate.Entry{Name: "odd"}, &plain{guest: x.p.guest})
		}, "odd"},
		{"the secondary is of another machine", func(x *pair) error { return nil }, "machine"},
		{"a device blocks it", func(x *pair) error {
			return errors.Join(
				x.p.reg.Register(vmstate.Entry{Name: "disk", Unmigratable: "it is the host's"}, &plain{guest: x.p.guest}),
				x.p.reg.Register(vmstate.Entry{Name: "card", Unmigratable: "it is hardware"}, &plain{guest: x.p.guest}),
			)
		}, "it is the host's"},
	} {
		for _, arbiter := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, arbiter %t", c.name, arbiter), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					x := newPair(t, options{
						primary: func(p *colo.PrimaryConfig) {
							if !arbiter {
								p.Arbiter = nil
							}
							if strings.Contains(c.name, "another machine") {
								p.Machine = "other"
							}
						},
						secondary: func(s *colo.SecondaryConfig) {
							if !arbiter {
								s.Arbiter = nil
							}
						},
					})
					if err := c.prepare(x); err != nil {
						t.Fatal(err)
					}
					x.p.step(3)
					x.start(t.Context())
					x.wait()
					if x.p.err == nil || !strings.Contains(x.p.err.Error(), c.why) {
						t.Errorf("the primary ended with %v, which does not say why", x.p.err)
					}
					if n := len(x.witness.Claims()); n > 0 {
						t.Errorf("the arbiter was asked %d times for a guest that there is once", n)
					}
					refused := 0
					for _, e := range x.p.events {
						if _, ok := e.(event.ProtectionRefused); ok {
							refused++
						}
					}
					if refused != 1 {
						t.Errorf("PROTECTION_REFUSED %d times", refused)
					}
					var blocked []string
					if c.name == "a device blocks it" {
						blocked = []string{"non-migratable device: card", "non-migratable device: disk"}
					}
					if d := cmp.Diff(blocked, x.primary.Info().BlockedReasons); d != "" {
						t.Errorf("the reasons (-want +got):\n%s", d)
					}
					x.p.step(3)
					if x.p.net.Held() != 0 {
						t.Errorf("%d frames are held", x.p.net.Held())
					}
					if x.wantWhole(t) != x.p {
						t.Error("the guest does not run")
					}
					x.close()
				})
			})
		}
	}
}

func TestRunIsCalledOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := afterCheckpoint(t, t.Context(), 2, options{}, func(x *pair) { x.primary.End() })
		x.wait()
		for _, r := range []runner{x.primary, x.secondary} {
			if err := r.Run(t.Context()); !errors.Is(err, colo.ErrEnded) {
				t.Errorf("again: %v", err)
			}
		}
		if x.wantWhole(t) != x.p {
			t.Error("the primary's guest does not run")
		}
		x.close()
	})
}

func TestATornGuestOfEpoch0SaysSo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newPair(t, options{})
		x.s.disk.Fail = func(c colotest.Call) error {
			if c.Name == "start" {
				return errDisk
			}
			return nil
		}
		x.start(t.Context())
		x.wait()
		torn := 0
		for _, e := range x.s.events {
			if e, ok := e.(event.GuestTorn); ok && strings.Contains(e.Error, errDisk.Error()) {
				torn++
			}
		}
		if !errors.Is(x.s.err, failover.ErrTorn) || !errors.Is(x.s.err, errDisk) || len(x.s.exits()) != 1 || torn != 1 {
			t.Errorf("%v; COLO_EXIT %d times, GUEST_TORN %d times", x.s.err, len(x.s.exits()), torn)
		}
		if !errors.Is(x.p.err, colo.ErrGoodbye) || len(x.witness.Claims()) > 0 {
			t.Errorf("the primary ended with %v, though the secondary has said that it has no guest", x.p.err)
		}
		if x.p.guest.Paused() {
			t.Error("no guest runs")
		}
		x.close()
	})
}

// What has torn it is told as well where the session was about to end for another reason.
func TestATornGuestSaysWhatHasTornItAlthoughItsSessionEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newPair(t, options{})
		gone := errors.New("gone")
		x.s.disk.Fail = func(c colotest.Call) error {
			if c.Name == "start" {
				x.secondary.Lost(gone)
				return errDisk
			}
			return nil
		}
		x.start(t.Context())
		x.wait()
		for _, want := range []error{failover.ErrTorn, errDisk, gone} {
			if !errors.Is(x.s.err, want) {
				t.Errorf("%v: not %v", x.s.err, want)
			}
		}
		x.close()
	})
}

func TestPausesOfOthersAreNotUndone(t *testing.T) {
	for _, mode := range []event.Mode{event.ModePrimary, event.ModeSecondary} {
		synctest.Test(t, func(t *testing.T) {
			x := afterCheckpoint(t, t.Context(), 2, options{}, func(x *pair) {
				h, _ := x.side(mode)
				if err := h.guest.Pause(t.Context()); err != nil {
					t.Fatal(err)
				}
			})
			h, r := x.side(mode)
			for range 5 {
				time.Sleep(time.Second)
				if !h.guest.Paused() {
					t.Fatalf("the %s runs after checkpoint %d", mode, r.Info().Epoch)
				}
			}
			r.Failover()
			x.wait()
			if h.err != nil || !h.guest.Paused() {
				t.Errorf("after the takeover, %v, the guest is paused: %t", h.err, h.guest.Paused())
			}
			if err := h.guest.Resume(t.Context()); err != nil {
				t.Error(err)
			}
			if x.wantWhole(t) != h {
				t.Errorf("the %s does not run when the operator has resumed it", mode)
			}
			x.close()
		})
	}
}

func TestADivergenceEndsTheSendingAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var x *pair
		x = newPair(t, options{
			guest: colotest.VMConfig{Pages: 1024, Touch: 128},
			primary: func(c *colo.PrimaryConfig) {
				c.CheckpointDelay, c.AheadThreshold = time.Second, 1
				c.Step = func(op string, epoch uint64) {
					if op == "send ram ahead" && epoch == 2 {
						x.primary.RequestCheckpoint(event.CauseDivergence)
					}
				}
			},
		})
		var causes []event.Cause
		event.Subscribe(&x.p.bus, func(c event.CheckpointCommit) {
			x.p.step(3)
			if causes = append(causes, c.Cause); c.Epoch == 3 {
				x.primary.End()
			}
		})
		x.start(t.Context())
		x.wait()
		if want := []event.Cause{event.CauseInitial, event.CauseTimer, event.CauseDivergence, event.CauseTimer}; fmt.Sprint(causes) != fmt.Sprint(want) {
			t.Errorf("causes %v, want %v: one checkpoint is enough for both", causes, want)
		}
		x.wantWhole(t)
		x.close()
	})
}
