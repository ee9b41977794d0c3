//go:build linux && amd64

package kvm

import (
	"encoding/binary"
	"errors"
	"unsafe"

	gokvm "github.com/bobuhiro11/gokvm/kvm"
	"golang.org/x/sys/unix"
)

const (
	apicBaseX2APIC = 1 << 10 // of APIC_BASE: x2APIC mode
	apicIDRegister = 0x20
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

// setLAPIC writes the local APIC of a vCPU whose special registers have that APIC_BASE.
//
// In x2APIC mode KVM has the ID in one of two forms, in 8 bits at the top or in 32, as the VMM has chosen, and
// may refuse the other. No call tells which it is, so that the other one is tried after a refusal.
// (KVM api, "KVM_CAP_X2APIC_API".)
func setLAPIC(vcpu int, lapic *gokvm.LAPICState, apicBase uint64) error {
	err := putLAPIC(vcpu, lapic)
	if err == nil || apicBase&apicBaseX2APIC == 0 || !errors.Is(err, unix.EINVAL) {
		return err
	}
	le, at := binary.LittleEndian, lapic.Regs[apicIDRegister:]
	id := le.Uint32(at)
	other := id << 24
	if id > 0xff {
		other = id >> 24
	}
	le.PutUint32(at, other)
	if putLAPIC(vcpu, lapic) == nil {
		err = nil
	}
	le.PutUint32(at, id)
	return err
}

func putLAPIC(vcpu int, lapic *gokvm.LAPICState) error {
	_, err := ioctl(vcpu, "KVM_SET_LAPIC", kvmSetLAPIC, unsafe.Pointer(lapic))
	return err
}
