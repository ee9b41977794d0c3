package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/gocolo/lockstep/kvm/gokvmhost"
	"github.com/gocolo/lockstep/vmstate"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// A guest is the machine of this host as package protect sees it, able to be either
// side any number of times.
type guest struct {
	machine

	// loaded receives a value when a checkpoint has been loaded into the machine: a guest
	// that had ended runs on from there.
	loaded chan struct{}
}

func newGuest() *guest { return &guest{loaded: make(chan struct{}, 1)} }

// Register registers the devices of the machine, and at last a device whose PostLoad tells
// that all of them have been loaded.
func (g *guest) Register(reg *vmstate.Registry) error {
	if err := g.machine.Register(reg); err != nil {
		return err
	}
	return reg.Register(vmstate.Entry{Name: "gokvm/loaded", Version: 1, MinVersion: 1}, (*loaded)(g))
}

// loaded is a device without a state of its own.
type loaded guest

// VMState implements vmstate.Device. A device has at least one field: nothing uses this one.
func (*loaded) VMState(f *vmstate.Fields) {
	var unused uint8
	f.Uint8("unused", &unused)
}

// PostLoad implements vmstate.PostLoader.
func (l *loaded) PostLoad(uint32) error {
	select {
	case l.loaded <- struct{}{}:
	default: // nobody has looked since the last one
	}
	return nil
}

// ReadDirty, StartDirtyLog and StopDirtyLog are the machine's dirty log.
func (g *guest) ReadDirty(block string, bitmap []uint64) error {
	return g.DirtyLog().ReadDirty(block, bitmap)
}

func (g *guest) StartDirtyLog() error {
	if s, ok := g.DirtyLog().(ram.LogSwitch); ok {
		return s.StartDirtyLog()
	}
	return nil
}

func (g *guest) StopDirtyLog() error {
	if s, ok := g.DirtyLog().(ram.LogSwitch); ok {
		return s.StopDirtyLog()
	}
	return nil
}

// KeepDirty makes the log leave pages writable, if it can.
func (g *guest) KeepDirty(block string, pages []uint64) bool {
	k, ok := g.DirtyLog().(ram.DirtyKeeper)
	return ok && k.KeepDirty(block, pages)
}

// IdleCPUs returns how many CPUs the paused machine leaves idle, 0 if the log does not say.
func (g *guest) IdleCPUs() int {
	if i, ok := g.DirtyLog().(ram.Idler); ok {
		return i.IdleCPUs()
	}
	return 0
}

// ForgetDirty makes the log forget the pages that loading a checkpoint has written, if it logs
// those.
func (g *guest) ForgetDirty(block string) {
	if f, ok := g.DirtyLog().(ram.Forgetter); ok {
		f.ForgetDirty(block)
	}
}

// Throttle slows the machine down, if it can be.
func (g *guest) Throttle(percent int) error {
	t, ok := g.machine.(interface{ Throttle(int) error })
	if !ok {
		return fmt.Errorf("throttle: %w", errors.ErrUnsupported)
	}
	return t.Throttle(percent)
}

// Stopped returns how long the machine's last pause was, 0 if it does not say.
func (g *guest) Stopped() time.Duration {
	s, ok := g.machine.(interface{ Stopped() time.Duration })
	if !ok {
		return 0
	}
	return s.Stopped()
}

// cpu returns a description of this host's CPU for the other host, and the function that
// judges the description of the other; nothing if the machine has none.
func (g *guest) cpu() (offer []byte, judge func([]byte) error, err error) {
	m, ok := g.machine.(interface {
		MatchCPU() ([]byte, func([]byte) error, error)
	})
	if !ok {
		return nil, nil, nil
	}
	return m.MatchCPU()
}

// ensured is a machine whose devices can wait for memory.
type ensured interface {
	EnsureMemory(ensure func(block string, offset, n uint64) error)
}

// EnsureMemory implements protect.EnsuredGuest, for a machine that is ensured.
func (g *guest) EnsureMemory(ensure func(block string, offset, n uint64) error) {
	if m, ok := g.machine.(ensured); ok {
		m.EnsureMemory(ensure)
	}
}

// laterMemory makes the devices of the guest wait for memory that comes after it has begun to
// run.
func (g *guest) laterMemory(memory *ram.Lazy) error {
	m, ok := g.machine.(ensured)
	if !ok {
		return fmt.Errorf("%w: %w", errNoMemory, errors.ErrUnsupported)
	}
	if err := memory.Probe(); err != nil {
		return fmt.Errorf("%w: %w", errNoMemory, err)
	}
	m.EnsureMemory(memory.Ensure)
	return nil
}

// run runs the guest until it fails or ctx ends. When the guest ends by itself, run calls
// ended with how it did. If ended returns nil the guest has ended for good. On a host that
// follows, the end of the guest only means that the primary's guest may end next: ended waits
// until that has, or until a checkpoint has been loaded, from which the guest runs on.
func (g *guest) run(ctx context.Context, ended func(ctx context.Context, how string) error) error {
	for {
		err := g.machine.Run(ctx)
		how := howEnded(err)
		if ctx.Err() != nil || how == "" {
			return err
		}
		select {
		case <-g.loaded: // it has ended since
		default:
		}
		until, cancel := context.WithCancel(ctx)
		revived := make(chan bool, 1)
		go func() { // joined below
			select {
			case <-g.loaded:
				revived <- true
				cancel()
			case <-until.Done():
				revived <- false
			}
		}()
		err = ended(until, how)
		cancel()
		if again := <-revived; err == nil || !again {
			return err
		}
	}
}

// howEnded says in words how a guest ended by itself, "" if err is something
// else.
func howEnded(err error) string {
	var fault *gokvmhost.TripleFaultError
	switch {
	case errors.As(err, &fault):
		return "the guest restarts, which ends it here: " + fault.Error()
	case errors.Is(err, gokvmhost.ErrPowerOff):
		return "the guest switched itself off"
	case errors.Is(err, gokvmhost.ErrReset):
		return "the guest restarts, which ends it here"
	}
	return ""
}

// receive gives a frame to the machine. The machine is made after its network.
func (g *guest) receive(frame []byte) error { return g.ReceivePacket(frame) }
