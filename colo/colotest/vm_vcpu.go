package colotest

import (
	"context"
	"fmt"
	"math"
	"runtime"
	"time"

	"github.com/gocolo/lockstep/internal/guest"
	"github.com/gocolo/lockstep/vmstate"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// vcpu is one vCPU, and its device state.
type vcpu struct {
	g       *VM
	regs    guest.Regs
	frame   uint64              // address of the frame that waits to be taken; 0: none
	pages   []uint32            // that the present round has written, to be marked after it
	touched func(off, n uint64) // touch, as one value
	tsc     func() uint64

	image image
}

// image is a vCPU's registers in the stream.
type image struct{ n, x, k, acc, frame uint64 }

// loop runs the vCPU until ctx ends.
func (v *vcpu) loop(ctx context.Context) error {
	g := v.g
	interval := g.cfg.Interval
	if interval == 0 {
		interval = defaultInterval
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	<-timer.C
	for due := time.Now(); ; {
		if err := g.there(); err != nil {
			return err
		}
		if err := g.admit(ctx); err != nil {
			return err
		}
		wait, err := v.burst(ctx, interval, &due)
		g.rest()
		if err != nil {
			return err
		}
		if wait > 0 {
			// Asleep is as good as paused, so nobody has to wake a vCPU in
			// order to pause it.
			timer.Reset(wait)
			select {
			case <-timer.C:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
	}
}

// burst does the rounds that are due and returns for how long there is nothing
// to do.
func (v *vcpu) burst(ctx context.Context, interval time.Duration, due *time.Time) (time.Duration, error) {
	for n := 1; !v.g.stop.Load(); n++ {
		if ctx.Err() != nil {
			return 0, context.Cause(ctx)
		}
		if interval > 0 {
			now := time.Now()
			if wait := due.Sub(now); wait > 0 {
				return wait, nil
			} else if wait < -maxBehind {
				*due = now
			}
		}
		if v.emit() != nil {
			return max(retryInterval, interval/retriesInRound), nil
		}
		if err := v.round(); err != nil {
			return 0, err
		}
		*due = due.Add(interval)
		if v.emit() != nil {
			return max(retryInterval, interval/retriesInRound), nil
		}
		if interval < 0 && n%64 == 0 {
			runtime.Gosched() // whoever wants to pause us may need this CPU
		}
	}
	return 0, nil
}

// round does one round, with what it writes to the disk. The pages that it wrote are marked after they were
// written: a reader that clears a mark and then reads the page must find in it
// what the mark was for.
func (v *vcpu) round() error {
	v.pages = v.pages[:0]
	frame, err := guest.Round(v.g.mem, &v.regs, v.tsc, v.touched)
	if err == nil {
		err = v.write()
	}
	if v.g.logs.Load() {
		for _, p := range v.pages {
			v.g.mark(p)
		}
	}
	if err != nil {
		return err
	}
	v.frame = frame
	return nil
}

// write carries out what the round has asked the disk for, if anything.
func (v *vcpu) write() error {
	w, asked, err := guest.Asked(v.g.mem, v.regs.VCPU)
	if err != nil || !asked {
		return err
	}
	if v.g.cfg.Write != nil {
		if err := v.g.cfg.Write(w.Data, w.Off, w.Flush); err != nil {
			return fmt.Errorf("colotest: vCPU %d, round %d, %d bytes at %d of the disk: %w", v.regs.VCPU, w.Round, len(w.Data), w.Off, err)
		}
	}
	v.touch(w.Done(v.g.mem))
	return nil
}

// touch notes which pages the round writes.
func (v *vcpu) touch(off, n uint64) {
	for p := uint32(off / ram.PageSize); uint64(p)*ram.PageSize < off+n; p++ {
		if len(v.pages) == 0 || v.pages[len(v.pages)-1] != p {
			v.pages = append(v.pages, p)
		}
	}
}

// emit offers the frame that waits, if there is one.
func (v *vcpu) emit() error {
	if v.frame == 0 {
		return nil
	}
	if v.g.cfg.Output != nil {
		b, err := guest.Emitted(v.g.mem, v.frame)
		if err != nil {
			return err
		}
		if err := v.g.cfg.Output(b); err != nil {
			return err
		}
	}
	v.frame = 0
	return nil
}

// PreSave implements vmstate.PreSaver. It fails while the guest runs, as a real
// hypervisor does not give out the registers of a vCPU that runs.
func (v *vcpu) PreSave() error {
	if !v.g.Paused() {
		return ErrRunning
	}
	v.image = v.now()
	return nil
}

func (v *vcpu) now() image {
	return image{v.regs.N, v.regs.X, v.regs.K, math.Float64bits(v.regs.Acc), v.frame}
}

// VMState implements vmstate.Device.
func (v *vcpu) VMState(f *vmstate.Fields) {
	if f.Loading() && !v.g.Paused() {
		f.Fail(ErrRunning)
		return
	}
	f.Uint64("n", &v.image.n)
	f.Uint64("x", &v.image.x)
	f.Uint64("k", &v.image.k)
	f.Uint64("acc", &v.image.acc)
	f.Uint64("frame", &v.image.frame)
	f.Check("frame within memory", v.image.frame < uint64(len(v.g.mem)))
}

// PostLoad implements vmstate.PostLoader.
func (v *vcpu) PostLoad(uint32) error {
	if !v.g.Paused() {
		return ErrRunning
	}
	i := v.image
	v.regs.N, v.regs.X, v.regs.K, v.regs.Acc = i.n, i.x, i.k, math.Float64frombits(i.acc)
	v.frame = i.frame
	return nil
}
