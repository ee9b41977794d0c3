//go:build linux && amd64

package kvm

import (
	"unsafe"

	gokvm "github.com/bobuhiro11/gokvm/kvm"
)

// Flags of events: where a state lacks one of these, KVM leaves what the flag stands for as it is
// (KVM_VCPUEVENT_VALID_* in linux/kvm.h).
const (
	eventsNMI    = 1 << 0
	eventsShadow = 1 << 2
	eventsSMM    = 1 << 3

	eventsKept = eventsNMI | eventsShadow | eventsSMM | eventsTripleFault
)

// told returns the events in the form in which KVM is given them. An event for which the state
// lacks the flag is switched off, so that the vCPU does not go on with what it had before. The
// payload of a pending exception, and a triple fault, are given only to a KVM that was asked to
// report them for this VM; elsewhere check has refused a state that has one.
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

// dequeue takes back an SMI that the vCPU was sent and has not looked at. KVM keeps such an SMI
// in a queue, which it does not empty when the events are written. Reading the events moves the
// SMI from the queue to the pending events, which are overwritten later. But the reading would
// also hand a queued NMI to a CPU that keeps a pending one itself (AMD's virtual NMI), from which
// nothing takes it back; so the queue of NMIs is emptied first, by writing the events.
//
// Where KVM has no SMIs nothing is to be done: a queued NMI goes when the events are written at
// the end. Older kernels make it pending first, newer ones overwrite the queue.
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
