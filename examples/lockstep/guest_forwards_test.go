package main

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/internal/trial"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// able is a machine that can do all that a job asks a guest for, and notes what it is asked.
type able struct {
	machine
	memory []byte
	asked  []string
}

func (m *able) did(what string) { m.asked = append(m.asked, what) }

func (m *able) Pause(context.Context) error      { m.did("Pause"); return nil }
func (m *able) Resume(context.Context) error     { m.did("Resume"); return nil }
func (m *able) Paused() bool                     { return true }
func (m *able) StartDirtyLog() error             { m.did("StartDirtyLog"); return nil }
func (m *able) StopDirtyLog() error              { m.did("StopDirtyLog"); return nil }
func (m *able) ReadDirty(string, []uint64) error { m.did("ReadDirty"); return nil }
func (m *able) KeepDirty(string, []uint64) bool  { m.did("KeepDirty"); return true }
func (m *able) ForgetDirty(string)               { m.did("ForgetDirty") }
func (m *able) IdleCPUs() int                    { m.did("IdleCPUs"); return 3 }
func (m *able) Throttle(int) error               { m.did("Throttle"); return nil }
func (m *able) Stopped() time.Duration           { m.did("Stopped"); return time.Second }
func (m *able) Blocks() []ram.Block              { return []ram.Block{{Name: "ram", Host: m.memory}} }

// What a guest may do besides, a job asks what it was given for: the guest as the job has it
// must be all that the machine in it is.
func TestAJobAsksTheMachineForAllThatItCanDo(t *testing.T) {
	for _, verified := range []bool{false, true} {
		name := "as it is"
		if verified {
			name = "with a verified log"
		}
		t.Run(name, func(t *testing.T) {
			m := &able{memory: make([]byte, 2*ram.PageSize)}
			g, err := newGuest(trial.SideConfig{VerifyDirty: verified, Missed: func(string, uint64) {}}, m, nil)
			if verified {
				require.Granted(t, require.Userfaultfd, err)
			}
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := g.Close(); err != nil {
					t.Error(err)
				}
			}()
			job := any(g)
			for what, ask := range map[string]func() bool{
				"StartDirtyLog": func() bool { l, ok := job.(ram.LogSwitch); return ok && l.StartDirtyLog() == nil },
				"KeepDirty":     func() bool { l, ok := job.(ram.DirtyKeeper); return ok && l.KeepDirty("ram", make([]uint64, 1)) },
				"IdleCPUs":      func() bool { l, ok := job.(ram.Idler); return ok && l.IdleCPUs() == 3 },
				"ForgetDirty": func() bool {
					l, ok := job.(ram.Forgetter)
					if ok {
						l.ForgetDirty("ram")
					}
					return ok
				},
				"Throttle": func() bool { v, ok := job.(colo.Throttler); return ok && v.Throttle(10) == nil },
				"Stopped":  func() bool { v, ok := job.(colo.Stopper); return ok && v.Stopped() == time.Second },
			} {
				m.asked = nil
				if !ask() || !slices.Contains(m.asked, what) {
					t.Errorf("%s has not come to the machine, which was asked for %q", what, m.asked)
				}
			}
		})
	}
}
