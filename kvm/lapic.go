//go:build linux && amd64

package kvm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"unsafe"

	gokvm "github.com/bobuhiro11/gokvm/kvm"
	"golang.org/x/sys/unix"
)

const (
	apicBaseX2APIC = 1 << 10 // of APIC_BASE: x2APIC mode
	apicIDRegister = 0x20
	msrX2APICID    = 0x802 // the same register
)

// otherAPICID returns the ID of the state's local APIC if that is in x2APIC mode, in which nobody can change it,
// and the ID is not id, in either form. KVM refuses such a state in some VMs and not in others.
func (s *VCPUState) otherAPICID(id uint32) (other uint32, ok bool) {
	if !s.apic || s.sregs.APICBase&apicBaseX2APIC == 0 {
		return 0, false
	}
	other = binary.LittleEndian.Uint32(s.lapic.Regs[apicIDRegister:])
	return other, other != id && other != id<<24
}

// setLAPIC writes a local APIC to a vCPU whose special registers are those of the state.
//
// In x2APIC mode KVM has the ID in one of two forms, in 8 bits at the top or in 32, as the VMM has chosen. No
// call tells which it is. The other one is refused, is ignored, or, before Linux 6.11, becomes another ID: an ID that KVM
// has refused, or does not have afterwards, is written once more in the other form.
// (KVM api, "KVM_CAP_X2APIC_API".)
func (s *VCPUState) setLAPIC(vcpu int, lapic *gokvm.LAPICState) error {
	err := putLAPIC(vcpu, lapic)
	if s.sregs.APICBase&apicBaseX2APIC == 0 || err != nil && !errors.Is(err, unix.EINVAL) {
		return err
	}
	le, at := binary.LittleEndian, lapic.Regs[apicIDRegister:]
	id := le.Uint32(at)
	whole, other := id, id<<24
	if id > 0xff {
		whole, other = id>>24, id>>24
	}
	if err == nil && s.hasAPICID(vcpu, whole) {
		return nil
	}
	le.PutUint32(at, other)
	again := putLAPIC(vcpu, lapic)
	le.PutUint32(at, id)
	switch {
	case again == nil && s.hasAPICID(vcpu, whole):
		return nil
	case err == nil:
		return fmt.Errorf("%w: KVM takes APIC ID %#x and does not set it", ErrState, whole)
	}
	return err
}

// hasAPICID reports whether the local APIC of a vCPU has that ID, in x2APIC mode. A KVM that does not tell is believed.
func (s *VCPUState) hasAPICID(vcpu int, id uint32) bool {
	if id == 0 {
		return true // it has one form
	}
	got, ok, err := s.readMSR(vcpu, msrX2APICID)
	return err != nil || !ok || got == uint64(id)
}

func putLAPIC(vcpu int, lapic *gokvm.LAPICState) error {
	_, err := ioctl(vcpu, "KVM_SET_LAPIC", kvmSetLAPIC, unsafe.Pointer(lapic))
	return err
}
