//go:build linux && amd64

package kvm

import (
	"unsafe"

	gokvm "github.com/bobuhiro11/gokvm/kvm"
)

// Of the events, those that KVM leaves as they are where the flags of a state do not tell of
// them (KVM_VCPUEVENT_VALID_* in linux/kvm.h).
const (
	eventsNMI    = 1 << 0
	eventsShadow = 1 << 2
	eventsSMM    = 1 << 3

	eventsKept = eventsNMI | eventsShadow | eventsSMM | eventsTripleFault
)

// told returns the events as KVM is given them: what the state does not tell of is off, and not
// what the vCPU had before. Of a pending exception's payload, or a triple fault, KVM is told only
// where the VM was made so; check has let the state through only if there is none.
func (s *VCPUState) told() gokvm.VCPUEvents {
	e := s.events
	if e.Flags&eventsNMI == 0 {
		e.N.Pending = 0
	}
	if e.Flags&eventsShadow == 0 {
		e.I.Shadow = 0
	}
	if e.Flags&eventsSMM == 0 {
		e.S = gokvm.SMI{}
	}
	if e.Flags&eventsTripleFault == 0 {
		e.TripleFault = 0
	}
	e.Flags = e.Flags&s.flags | s.kept
	return e
}

// dequeue takes back an SMI that the vCPU was sent and has not looked at. KVM has such a one in a
// queue, which it does not empty when the events are written. Reading the events makes it pending,
// and what is pending is overwritten later. The same reading would give an NMI that is queued to a
// CPU that keeps a pending one itself (AMD's virtual NMI), from which nothing takes it back; so what
// the queue has of NMIs is emptied before, by writing the events.
//
// Where KVM has no SMIs nothing is to be done: an NMI that is queued goes when the events are written
// at the end. Older kernels make it pending first, newer ones overwrite the queue.
func (s *VCPUState) dequeue(vcpu int) error {
	if !s.sys.smm {
		return nil
	}
	none := gokvm.VCPUEvents{Flags: s.kept & eventsNMI}
	if _, err := ioctl(vcpu, "KVM_SET_VCPU_EVENTS", kvmSetVCPUEvents, unsafe.Pointer(&none)); err != nil {
		return err
	}
	_, err := ioctl(vcpu, "KVM_GET_VCPU_EVENTS", kvmGetVCPUEvents, unsafe.Pointer(&none))
	return err
}
