package main

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/colo/protect"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// ableHost is a machine that can do all that a job asks a guest for, with such a log, and
// notes what they are asked.
type ableHost struct {
	machine
	asked []string
}

func (h *ableHost) did(what string) { h.asked = append(h.asked, what) }

func (h *ableHost) DirtyLog() ram.DirtyLog { return (*ableLog)(h) }
func (h *ableHost) Throttle(int) error     { h.did("Throttle"); return nil }
func (h *ableHost) Stopped() time.Duration { h.did("Stopped"); return time.Second }
func (h *ableHost) EnsureMemory(func(string, uint64, uint64) error) {
	h.did("EnsureMemory")
}

type ableLog ableHost

func (l *ableLog) did(what string) { (*ableHost)(l).did(what) }

var errLog = errors.New("the log's answer")

func (l *ableLog) ReadDirty(string, []uint64) error { l.did("ReadDirty"); return errLog }
func (l *ableLog) StartDirtyLog() error             { l.did("StartDirtyLog"); return errLog }
func (l *ableLog) StopDirtyLog() error              { l.did("StopDirtyLog"); return errLog }
func (l *ableLog) KeepDirty(string, []uint64) bool  { l.did("KeepDirty"); return true }
func (l *ableLog) ForgetDirty(string)               { l.did("ForgetDirty") }
func (l *ableLog) IdleCPUs() int                    { l.did("IdleCPUs"); return 3 }

// What a guest may do besides, a job asks what it was given for: the guest as the job has it
// must be all that the machine in it and its log are.
func TestAJobAsksTheMachineForAllThatItCanDo(t *testing.T) {
	h := &ableHost{}
	g := newGuest()
	g.machine = h
	job := any(g)
	for what, ask := range map[string]func() bool{
		"ReadDirty":     func() bool { l, ok := job.(ram.DirtyLog); return ok && l.ReadDirty("ram", nil) == errLog },
		"StartDirtyLog": func() bool { l, ok := job.(ram.LogSwitch); return ok && l.StartDirtyLog() == errLog },
		"StopDirtyLog":  func() bool { l, ok := job.(ram.LogSwitch); return ok && l.StopDirtyLog() == errLog },
		"KeepDirty":     func() bool { l, ok := job.(ram.DirtyKeeper); return ok && l.KeepDirty("ram", nil) },
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
		"EnsureMemory": func() bool {
			v, ok := job.(protect.EnsuredGuest)
			if ok {
				v.EnsureMemory(nil)
			}
			return ok
		},
	} {
		h.asked = nil
		if !ask() || !slices.Contains(h.asked, what) {
			t.Errorf("%s has not come to the machine, which was asked for %q", what, h.asked)
		}
	}
}
