//go:build linux && amd64

package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gocolo/lockstep/colo/filter"
	"github.com/gocolo/lockstep/colo/proxy"
	"github.com/gocolo/lockstep/internal/guest"
	"github.com/gocolo/lockstep/internal/threads"
	"github.com/gocolo/lockstep/internal/trial"
	"github.com/gocolo/lockstep/kvm"
	"github.com/gocolo/lockstep/vmstate"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// kvmMachine is the guest on KVM.
type kvmMachine struct {
	vm     *kvm.VM
	nic    nic
	pauses atomic.Int32 // that have not been taken back
}

func newKVMMachine(cfg trial.SideConfig, boot bool, out sender, write writer) (_ machine, err error) {
	vm, err := kvm.Create(kvm.Config{VCPUs: cfg.Guest.VCPUs, Memory: cfg.Memory})
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			vm.Close()
		}
	}()
	m := &kvmMachine{vm: vm}
	if err := m.Pause(context.Background()); err != nil {
		return nil, err
	}
	m.nic = nic{pace: cfg.Pace, out: out, in: newInputs(cfg.Guest.VCPUs), write: write, vm: vm, mem: vm.Memory(), ports: make([]port, cfg.Guest.VCPUs)}
	m.nic.pausing.Store(true)
	if boot {
		if err := m.boot(cfg.Guest); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// boot loads the program and starts every vCPU at its beginning.
func (m *kvmMachine) boot(p guest.Params) error {
	if err := guest.Load(m.vm.Memory(), p); err != nil {
		return err
	}
	for i, v := range m.vm.VCPUs() {
		regs, err := v.Regs()
		if err != nil {
			return err
		}
		sregs, err := v.Sregs()
		if err != nil {
			return err
		}
		guest.SetBootState(i, &regs, &sregs)
		if err := errors.Join(v.SetSregs(sregs), v.SetRegs(regs), v.SetRunnable()); err != nil {
			return err
		}
	}
	return nil
}

// Run runs each vCPU on a goroutine of its own until the context ends or one
// of them fails.
func (m *kvmMachine) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := context.AfterFunc(ctx, m.nic.hold) // nobody waits to send any more
	defer stop()
	var group sync.WaitGroup
	// A thread that comes back from the guest is to find a place to run Go code.
	defer threads.More(len(m.vm.VCPUs()))()
	for i, v := range m.vm.VCPUs() {
		handle := v.Dispatch(kvm.Handler{IO: func(io *kvm.IO) error { return m.nic.access(i, io) }})
		group.Go(func() { cancel(v.Run(ctx, handle)) })
	}
	group.Wait()
	return context.Cause(ctx)
}

func (m *kvmMachine) Stopped() time.Duration     { return m.vm.Stopped() }
func (m *kvmMachine) Throttle(percent int) error { return m.vm.Throttle(percent) }

func (m *kvmMachine) Pause(ctx context.Context) error {
	m.nic.hold()
	if err := m.vm.Pause(ctx); err != nil {
		return err
	}
	m.pauses.Add(1)
	return nil
}

func (m *kvmMachine) Resume(ctx context.Context) error {
	m.nic.open()
	if m.pauses.Add(-1) < 0 {
		m.pauses.Store(0)
	}
	err := m.vm.Resume(ctx)
	if err != nil {
		m.pauses.Add(1)
	}
	return err
}

// Paused reports whether the guest stands still.
func (m *kvmMachine) Paused() bool { return m.pauses.Load() > 0 }

func (m *kvmMachine) Blocks() []ram.Block {
	return []ram.Block{{Name: kvm.RAMBlock, Host: m.vm.Memory()}}
}

func (m *kvmMachine) StartDirtyLog() error { return m.vm.StartDirtyLog() }
func (m *kvmMachine) StopDirtyLog() error  { return m.vm.StopDirtyLog() }
func (m *kvmMachine) ReadDirty(block string, bitmap []uint64) error {
	return m.vm.ReadDirty(block, bitmap)
}
func (m *kvmMachine) KeepDirty(block string, pages []uint64) bool {
	return m.vm.KeepDirty(block, pages)
}

// IdleCPUs implements ram.Idler: the CPUs of a paused guest copy its pages.
func (m *kvmMachine) IdleCPUs() int { return m.vm.IdleCPUs() }

// Register registers the devices.
func (m *kvmMachine) Register(reg *vmstate.Registry) error {
	return errors.Join(
		m.vm.Register(reg),
		reg.Register(vmstate.Entry{Name: "lockstep-nic", Version: 1, MinVersion: 1}, &m.nic),
		reg.Register(m.nic.in.entry(), m.nic.in),
	)
}

func (m *kvmMachine) Deliver(packet []byte) error { return m.nic.in.deliver(packet) }

func (m *kvmMachine) Memory() []byte { return m.vm.Memory() }

func (m *kvmMachine) Close() error { return m.vm.Close() }

// nic is the paravirtual port that the guest sends its frames, takes its input
// and writes its disk through, one port per vCPU. It is a vmstate.Device: a frame that it has
// taken and could not pass on is part of the guest. A write leaves nothing
// behind: the exit that asks for it ends with the write done, and a pause waits
// for that.
type nic struct {
	pace  time.Duration // from one frame of a vCPU to the next, on average
	out   sender
	in    *inputs
	write writer
	vm    marker
	mem   []byte
	ports []port

	pausing atomic.Bool    // the guest is paused, or about to be
	changed threads.Signal // raised when it has become true
}

// marker is told what the host writes into guest memory.
type marker interface{ MarkDirty(gpa, n uint64) }

type port struct {
	due     time.Time // when the vCPU may send again
	answers bool      // it has been given an input
	size    uint32    // of pending
	pending []byte    // the frame that found the buffer full
}

// fullPoll is how often a frame that found the buffer full is tried again.
const fullPoll = time.Millisecond

// hold makes whoever waits in access return.
func (n *nic) hold() {
	n.pausing.Store(true)
	n.changed.Raise()
}

func (n *nic) open() { n.pausing.Store(false) }

// wait returns true after d, or false when the guest is to be paused. The thread of the vCPU
// itself waits, so that nothing but the kernel is between hold and it.
func (n *nic) wait(d time.Duration) bool {
	for due := time.Now().Add(d); ; {
		seen := n.changed.Seen()
		if n.pausing.Load() {
			return false
		}
		left := time.Until(due)
		if left <= 0 {
			return true
		}
		n.changed.Wait(seen, left)
	}
}

// access handles an exit of a vCPU, on its goroutine.
func (n *nic) access(vcpu int, io *kvm.IO) error {
	p := &n.ports[vcpu]
	switch {
	case io.In && io.Port == guest.PortStatus && io.Size == 1 && io.Count == 1:
		io.Data[0], p.answers = 0, false
		if !n.ready(p) {
			return nil
		}
		io.Data[0] = guest.StatusReady
		var err error
		if p.answers, err = n.in.take(vcpu, func(frame []byte) error { return n.put(vcpu, frame) }); p.answers {
			io.Data[0] |= guest.StatusInput
		}
		return err
	case !io.In && io.Port == guest.PortEmit && io.Size == 4 && io.Count == 1:
		frame, err := guest.Emitted(n.mem, uint64(binary.LittleEndian.Uint32(io.Data)))
		if err != nil {
			return err
		}
		return n.emit(p, frame)
	case n.write != nil && !io.In && io.Port == guest.PortDisk && io.Size == 4 && io.Count == 1:
		w, err := guest.Requested(n.mem, uint64(binary.LittleEndian.Uint32(io.Data)))
		if err != nil {
			return err
		}
		if err := n.write(w.Data, w.Off, w.Flush); err != nil {
			return fmt.Errorf("vCPU %d, round %d: disk: %w", vcpu, w.Round, err)
		}
		n.vm.MarkDirty(w.Done(n.mem))
		return nil
	}
	return fmt.Errorf("vCPU %d accesses port %#x (in: %v, %d times %d bytes)", vcpu, io.Port, io.In, io.Count, io.Size)
}

// put writes an input to where the vCPU, which waits for the answer to its read of
// the status, will look for it.
func (n *nic) put(vcpu int, frame []byte) error {
	off, size, err := guest.PutInput(n.mem, vcpu, frame)
	if err == nil {
		n.vm.MarkDirty(off, size)
	}
	return err
}

// ready reports whether the vCPU may send. It waits until that is so, since
// the guest would only ask again, but not longer than the guest runs.
func (n *nic) ready(p *port) bool {
	if p.size > 0 {
		switch err := n.out(p.pending[:p.size]); {
		case errors.Is(err, proxy.ErrFull):
			n.wait(fullPoll)
			return false
		default:
			p.size = 0
		}
	}
	early := time.Until(p.due)
	return early <= 0 || n.wait(early)
}

func (n *nic) emit(p *port, frame []byte) error {
	if p.answers {
		p.answers = false // and its round's frame is still to come
	} else {
		// On average one frame for each pace, even if the host oversleeps: otherwise
		// the guest that did would stay behind the other one.
		const behind = time.Second
		now := time.Now()
		if p.due.Before(now.Add(-behind)) {
			p.due = now
		}
		p.due = p.due.Add(n.pace)
	}
	switch err := n.out(frame); {
	case errors.Is(err, proxy.ErrFull):
		p.pending = append(p.pending[:0], frame...)
		p.size = uint32(len(frame))
		return nil
	default:
		return err
	}
}

// VMState names the frames that wait. (A vmstate.Device.)
func (n *nic) VMState(f *vmstate.Fields) {
	for i := range n.ports {
		p := &n.ports[i]
		f.Uint32(fmt.Sprintf("size%d", i), &p.size)
		f.Bytes(fmt.Sprintf("pending%d", i), vmstate.Resize(f, &p.pending, uint64(p.size), filter.MaxFrame))
	}
}
