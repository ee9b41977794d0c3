//go:build linux && amd64

package gokvmhost

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/gocolo/lockstep/kvm"
	"github.com/gocolo/lockstep/kvm/gokvmhost/internal/device"
	"github.com/gocolo/lockstep/vmstate"
)

// Run runs the vCPUs and the devices until ctx ends, the guest switches itself off
// (ErrPowerOff) or asks for a reset (ErrReset), or something fails, and returns
// which of them. All that it started has ended then; a disk or a console that
// blocks keeps it. While the Host is paused the vCPUs wait.
//
// Whoever calls it raises GOMAXPROCS by the number of vCPUs, as for kvm.VCPU.Run.
//
// It is called once at a time, and may be called again: a guest that has reset
// itself can be rolled back to an earlier state, and run on from there.
func (h *Host) Run(ctx context.Context) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	if err := h.begin(stop); err != nil {
		return err
	}
	defer h.end()
	var vcpus, devices sync.WaitGroup
	for _, v := range h.vm.VCPUs() {
		vcpus.Go(func() {
			stop(v.Run(ctx, v.Dispatch(kvm.Handler{
				IO:       h.bus.io,
				MMIO:     h.bus.mmio,
				Shutdown: func() error { return &TripleFaultError{VCPU: v.Index()} },
			})))
		})
	}
	// The devices end after the vCPUs: the guest's last words are on the console.
	working, rest := context.WithCancel(context.WithoutCancel(ctx))
	defer rest()
	devices.Go(func() { h.console.Work(working, h.gate, h.serial) })
	if h.disk != nil {
		h.disk.Kick() // for what a Run before this one did not begin with
		devices.Go(func() { h.disk.Work(working, h.gate) })
	}
	if h.nic != nil {
		h.nic.KickTransmit()
		devices.Go(func() { h.nic.Work(working, h.gate) })
	}
	if h.tap != nil {
		devices.Go(func() {
			if err := h.tap.receive(working, h.ReceivePacket); working.Err() == nil {
				stop(err)
			}
		})
	}
	vcpus.Wait()
	rest()
	devices.Wait()
	err := context.Cause(ctx)
	var fault *TripleFaultError
	if errors.As(err, &fault) {
		h.locate(fault)
	}
	return err
}

// locate completes a fault: the vCPU has left Run, and stands where it was. What cannot
// be read is left out.
func (h *Host) locate(f *TripleFaultError) {
	const kernelGSBase = 0xc0000102
	v := h.vm.VCPUs()[f.VCPU]
	if r, err := v.Regs(); err == nil {
		f.RIP = r.RIP
	}
	if s, err := v.Sregs(); err == nil {
		f.CR2, f.CR3, f.GSBase = s.CR2, s.CR3, s.GS.Base
	}
	f.KernelGSBase, _ = v.MSR(kernelGSBase)
}

func (h *Host) begin(stop context.CancelCauseFunc) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.closed.Load():
		return ErrClosed
	case h.broken != nil:
		return h.broken
	case h.running:
		return ErrRunning
	}
	h.running, h.fail = true, stop
	return nil
}

func (h *Host) end() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.running, h.fail = false, nil
}

// Pause stops the vCPUs, with no exit pending, then waits until the devices have
// completed what they had begun: the disk's request, the frame being sent. When it
// returns nil, nothing writes the guest's memory or moves its interrupt lines until
// Resume. Pauses nest: the guest goes on when each of them has been undone by a
// Resume. If ctx ends first, this Pause is void and the context's error is returned.
func (h *Host) Pause(ctx context.Context) error {
	if err := h.take(ctx); err != nil {
		return fmt.Errorf("gokvmhost: pause: %w", err)
	}
	defer h.give()
	if h.pauses > 0 {
		h.pauses++
		return nil
	}
	if err := h.vm.Pause(ctx); err != nil {
		return err
	}
	if err := h.gate.Close(ctx); err != nil {
		h.open()
		h.vm.Resume(ctx)
		return fmt.Errorf("gokvmhost: pause: %w", err)
	}
	h.pauses = 1
	h.paused.Store(true)
	return nil
}

// Resume undoes one Pause; the guest and its devices go on if it was the last.
// Resuming a running Host is no error.
func (h *Host) Resume(ctx context.Context) error {
	if err := h.take(ctx); err != nil {
		return fmt.Errorf("gokvmhost: resume: %w", err)
	}
	defer h.give()
	switch h.pauses {
	case 0:
		return nil
	case 1:
		h.pauses = 0
		h.paused.Store(false)
		h.open()
		return h.vm.Resume(ctx)
	}
	h.pauses--
	return nil
}

// Stopped returns how long the guest stood still in the last pause; see the method of
// kvm.VM.
func (h *Host) Stopped() time.Duration { return h.vm.Stopped() }

// Throttle keeps the vCPUs out of the guest for a share of the time, in per cent; see
// the method of kvm.VM. The devices go on.
func (h *Host) Throttle(percent int) error { return h.vm.Throttle(percent) }

// open lets the devices go on, and look at what came meanwhile. No vCPU runs.
func (h *Host) open() {
	h.gate.Open()
	h.serial.Kick()
	if h.disk != nil {
		h.disk.Kick()
	}
	if h.nic != nil {
		h.nic.Kick()
	}
}

// take waits for the turn to pause or resume. A turn that is free is taken whatever has
// become of ctx: whoever undoes a pause with a context that has ended has undone it.
func (h *Host) take(ctx context.Context) error {
	select {
	case h.turn <- struct{}{}:
		return nil
	default:
	}
	select {
	case h.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (h *Host) give() { <-h.turn }

// Register adds the guest's devices to a registry, in the order in which they must
// be restored: those of package kvm, then gokvm/pci, gokvm/serial, gokvm/cmos,
// gokvm/pm and, if there are any, gokvm/virtio-blk and gokvm/virtio-net, all version
// 1. The memory is not among them. They are saved and restored while the Host is
// paused, and otherwise fail with ErrRunning.
func (h *Host) Register(reg *vmstate.Registry) error {
	if err := h.vm.Register(reg); err != nil {
		return err
	}
	list := []section{
		{"gokvm/pci", h, h.bus.pci},
		{"gokvm/serial", h, h.serial},
		{"gokvm/cmos", h, h.cmos},
		{"gokvm/pm", h, h.pm},
	}
	if h.disk != nil {
		list = append(list, section{"gokvm/virtio-blk", h, h.disk})
	}
	if h.nic != nil {
		list = append(list, section{"gokvm/virtio-net", h, h.nic})
	}
	for _, s := range list {
		if err := reg.Register(vmstate.Entry{Name: s.name, Version: 1, MinVersion: 1}, s); err != nil {
			return err
		}
	}
	return nil
}

// section is a device, for a registry.
type section struct {
	name  string
	h     *Host
	state device.State
}

// VMState implements vmstate.Device.
func (s section) VMState(f *vmstate.Fields) { s.state.VMState(f) }

// PreSave implements vmstate.PreSaver.
func (s section) PreSave() error {
	if !s.h.paused.Load() {
		return fmt.Errorf("%s: %w", s.name, ErrRunning)
	}
	s.state.Save()
	return nil
}

// PostLoad implements vmstate.PostLoader.
func (s section) PostLoad(uint32) error {
	if !s.h.paused.Load() {
		return fmt.Errorf("%s: %w", s.name, ErrRunning)
	}
	s.state.Apply()
	return nil
}
