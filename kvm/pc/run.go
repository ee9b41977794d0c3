//go:build linux && amd64

package pc

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/gocolo/lockstep/kvm"
	"github.com/gocolo/lockstep/kvm/internal/device"
	"github.com/gocolo/lockstep/vmstate"
)

// Run runs the vCPUs and the devices until ctx ends, the guest switches itself off
// (ErrPowerOff) or asks for a reset (ErrReset), or something fails, and returns
// which of them. All that it started has ended then: a disk, a console, a Source or the
// Source of a Random that blocks delays its return. While the Machine is paused the vCPUs
// wait.
//
// The caller raises GOMAXPROCS by the number of vCPUs, as for kvm.VCPU.Run.
//
// It is called once at a time, and may be called again: a guest that has reset
// itself can be rolled back to an earlier state, and run on from there.
func (m *Machine) Run(ctx context.Context) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	if err := m.begin(stop); err != nil {
		return err
	}
	defer m.end()
	var vcpus, devices sync.WaitGroup
	for _, v := range m.vm.VCPUs() {
		vcpus.Go(func() {
			stop(v.Run(ctx, v.Dispatch(kvm.Handler{
				IO:       m.bus.io,
				MMIO:     m.bus.mmio,
				Shutdown: func() error { return &TripleFaultError{VCPU: v.Index()} },
			})))
		})
	}
	// The devices end after the vCPUs: the guest's last words are on the console.
	working, rest := context.WithCancel(context.WithoutCancel(ctx))
	defer rest()
	devices.Go(func() { m.console.Work(working, m.gate, m.serial) })
	for _, d := range m.disks {
		d.Kick() // for requests that an earlier Run has not begun
		devices.Go(func() { d.Work(working, m.gate) })
	}
	if m.rng != nil {
		m.rng.Kick()
		devices.Go(func() { m.rng.Work(working, m.gate) })
	}
	for _, c := range m.cards {
		c.net.KickTransmit()
		devices.Go(func() { c.net.Work(working, m.gate) })
		if source, ok := c.uplink.(Source); ok {
			devices.Go(func() {
				err := source.Receive(working, c.ReceivePacket)
				switch {
				case working.Err() != nil:
				case err == nil:
					stop(ErrSource)
				default:
					stop(err)
				}
			})
		}
	}
	vcpus.Wait()
	rest()
	devices.Wait()
	err := context.Cause(ctx)
	var fault *TripleFaultError
	if errors.As(err, &fault) {
		m.locate(fault)
	}
	return err
}

// locate completes a fault: the vCPU has left Run, and stands where it was. What cannot
// be read is left out.
func (m *Machine) locate(f *TripleFaultError) {
	const kernelGSBase = 0xc0000102
	v := m.vm.VCPUs()[f.VCPU]
	if r, err := v.Regs(); err == nil {
		f.RIP = r.RIP
	}
	if s, err := v.Sregs(); err == nil {
		f.CR2, f.CR3, f.GSBase = s.CR2, s.CR3, s.GS.Base
	}
	f.KernelGSBase, _ = v.MSR(kernelGSBase)
}

func (m *Machine) begin(stop context.CancelCauseFunc) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.closed.Load():
		return ErrClosed
	case m.broken != nil:
		return m.broken
	case m.running:
		return ErrRunning
	}
	m.running, m.fail = true, stop
	return nil
}

func (m *Machine) end() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.running, m.fail = false, nil
}

// Pause stops the vCPUs, with no exit pending, then waits until the devices have
// completed what they had begun: a part of the disk's request, the frame being sent. It does not
// wait for a disk to be flushed: a flush that was asked for and not answered is state. When it
// returns nil, nothing writes the guest's memory or moves its interrupt lines until
// Resume. Pauses nest: the guest goes on when each of them has been undone by a
// Resume. If ctx ends first, this Pause is void and the context's error is returned.
func (m *Machine) Pause(ctx context.Context) error {
	if err := m.take(ctx); err != nil {
		return fmt.Errorf("pc: pause: %w", err)
	}
	defer m.give()
	if m.closed.Load() {
		return ErrClosed
	}
	if m.pauses > 0 {
		m.pauses++
		return nil
	}
	if err := m.vm.Pause(ctx); err != nil {
		return err
	}
	if err := m.gate.Close(ctx); err != nil {
		m.open()
		m.vm.Resume(ctx)
		return fmt.Errorf("pc: pause: %w", err)
	}
	m.pauses = 1
	m.paused.Store(true)
	return nil
}

// Resume undoes one Pause; the guest and its devices go on if it was the last.
// Resuming a running Machine is no error.
func (m *Machine) Resume(ctx context.Context) error {
	if err := m.take(ctx); err != nil {
		return fmt.Errorf("pc: resume: %w", err)
	}
	defer m.give()
	if m.closed.Load() { // its memory is not the guest's any more
		return ErrClosed
	}
	switch m.pauses {
	case 0:
		return nil
	case 1:
		m.pauses = 0
		m.paused.Store(false)
		m.open()
		return m.vm.Resume(ctx)
	}
	m.pauses--
	return nil
}

// Stopped returns how long the guest stood still in the last pause; see the method of
// kvm.VM.
func (m *Machine) Stopped() time.Duration { return m.vm.Stopped() }

// Throttle keeps the vCPUs out of the guest for a share of the time, in per cent; see
// the method of kvm.VM. The devices go on.
func (m *Machine) Throttle(percent int) error { return m.vm.Throttle(percent) }

// open lets the devices go on, and look at what came meanwhile. No vCPU runs.
func (m *Machine) open() {
	m.gate.Open()
	m.serial.Kick()
	for _, d := range m.disks {
		d.Opened()
	}
	if m.rng != nil {
		m.rng.Kick()
	}
	for _, c := range m.cards {
		c.net.Kick()
	}
}

// take waits for the turn to pause or resume. A turn that is free is taken even if ctx has ended,
// so that a Resume with such a context still undoes its Pause.
func (m *Machine) take(ctx context.Context) error {
	select {
	case m.turn <- struct{}{}:
		return nil
	default:
	}
	select {
	case m.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (m *Machine) give() { <-m.turn }

// whilePaused calls fn if the Machine is paused. Until fn returns it is not resumed, and not
// closed. Otherwise it fails with ErrRunning, or ErrClosed.
func (m *Machine) whilePaused(fn func() error) error {
	switch {
	case m.closed.Load():
		return ErrClosed
	case !m.paused.Load(): // a Pause that has the turn may wait for long
		return ErrRunning
	}
	m.turn <- struct{}{}
	defer m.give()
	switch {
	case m.closed.Load():
		return ErrClosed
	case m.pauses == 0:
		return ErrRunning
	}
	return fn()
}

// Register adds the guest's devices to a registry, in the order in which they must
// be restored: those of package kvm, then pc/pci, pc/serial, pc/cmos, pc/pm, and for each
// disk and network card an instance of pc/virtio-blk and of pc/virtio-net, and pc/virtio-rng.
// Version 1, but for pc/virtio-net, which is version 2 and is loaded from 1 on.
// The memory is not among them. They are saved and restored while the Machine is
// paused, and otherwise fail with ErrRunning.
func (m *Machine) Register(reg *vmstate.Registry) error { return m.RegisterAs(reg, "pc/") }

// RegisterAs does what Register does, with another prefix than "pc/" before the names of
// those devices that are not devices of package kvm.
func (m *Machine) RegisterAs(reg *vmstate.Registry, prefix string) error {
	if err := m.vm.Register(reg); err != nil {
		return err
	}
	list := []section{
		{m, "pci", 0, m.bus.pci},
		{m, "serial", 0, m.serial},
		{m, "cmos", 0, m.cmos},
		{m, "pm", 0, m.pm},
	}
	for i, d := range m.disks {
		list = append(list, section{m, "virtio-blk", uint32(i), d})
	}
	for i, c := range m.cards {
		list = append(list, section{m, "virtio-net", uint32(i), c.net})
	}
	if m.rng != nil {
		list = append(list, section{m, "virtio-rng", 0, m.rng})
	}
	for _, s := range list {
		s.name = prefix + s.name
		e := vmstate.Entry{Name: s.name, Instance: s.instance, Version: 1, MinVersion: 1}
		if _, ok := s.state.(*device.Net); ok {
			e.Version = device.NetVersion
		}
		if err := reg.Register(e, s); err != nil {
			return err
		}
	}
	return nil
}

// section is a device, for a registry.
type section struct {
	m        *Machine
	name     string
	instance uint32
	state    device.State
}

// VMState implements vmstate.Device.
func (s section) VMState(f *vmstate.Fields) { s.state.VMState(f) }

// PreSave implements vmstate.PreSaver.
func (s section) PreSave() error { return s.whilePaused(s.state.Save) }

// Snapshots implements vmstate.Snapshotter: Save has copied what VMState carries.
func (section) Snapshots() bool { return true }

// PostLoad implements vmstate.PostLoader.
func (s section) PostLoad(uint32) error { return s.whilePaused(s.state.Apply) }

func (s section) whilePaused(fn func()) error {
	err := s.m.whilePaused(func() error { fn(); return nil })
	if err != nil {
		return fmt.Errorf("%s: %w", s.name, err)
	}
	return nil
}
