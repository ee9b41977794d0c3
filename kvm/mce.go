//go:build linux && amd64

package kvm

import (
	"unsafe"

	gokvm "github.com/bobuhiro11/gokvm/kvm"
)

// msrMCGCap says how many machine-check banks a vCPU has, and what they can do. KVM takes it by a
// call of its own and never as an MSR; it sets the controls of the banks to what they are after a
// reset then, and decides by it on entries of the local APIC. (Intel SDM volume 3, "IA32_MCG_CAP";
// KVM api, "KVM_X86_SETUP_MCE".)
const msrMCGCap = 0x179

// setupMCE gives a vCPU machine-check banks. It fails with an MSRError, also where KVM says that it
// has done so and has not: on an AMD processor it leaves out most of what banks can do.
func setupMCE(vcpu int, mcgCap uint64) error {
	if _, err := ioctl(vcpu, "KVM_X86_SETUP_MCE", kvmX86SetupMCE, unsafe.Pointer(&mcgCap)); err != nil {
		return &MSRError{msrMCGCap, mcgCap}
	}
	got, err := readMCE(vcpu)
	if err == nil && got != mcgCap {
		err = &MSRError{msrMCGCap, mcgCap}
	}
	return err
}

// readMCE returns MCG_CAP of a vCPU, 0 if it has none.
func readMCE(vcpu int) (uint64, error) {
	one := msrOne{n: 1, entry: gokvm.MSREntry{Index: msrMCGCap}}
	_, err := ioctl(vcpu, "KVM_GET_MSRS", kvmGetMSRs, unsafe.Pointer(&one))
	return one.entry.Data, err
}

// supportedMCE returns MCG_CAP with all banks and all that KVM lets them do; ok is false on a KVM
// that cannot say. (KVM api, "KVM_X86_GET_MCE_CAP_SUPPORTED".)
func supportedMCE(kvm, banks int) (m MSR, ok bool) {
	m.Index = msrMCGCap
	if banks == 0 {
		return m, false
	}
	_, err := ioctl(kvm, "KVM_X86_GET_MCE_CAP_SUPPORTED", kvmX86GetMCECap, unsafe.Pointer(&m.Value))
	const count = 0xff
	m.Value = m.Value&^count | uint64(min(banks, count))
	return m, err == nil
}

// restoreMCE gives the vCPU the machine-check banks of the state if it has others: changed is true
// then, and the MSRs of the banks and the local APIC are not what the vCPU was given before.
func (s *VCPUState) restoreMCE(vcpu int) (changed bool, err error) {
	want, ok := s.savedMSR(msrMCGCap)
	if !ok || want == 0 {
		return false, nil
	}
	if s.hasMCG == 0 {
		if s.hasMCG, err = readMCE(vcpu); err != nil {
			return false, err
		}
	}
	if s.hasMCG == want {
		return false, nil
	}
	s.hasMCG = 0 // it may have been set though that cannot be read back
	if err := setupMCE(vcpu, want); err != nil {
		return false, err
	}
	s.hasMCG = want
	return true, nil
}

// foundMCE notes MCG_CAP of the vCPU, which was read with its MSRs. If it is another than before, the vCPU may
// have MSRs that it did not have, and more is true if another read has to find out.
func (s *VCPUState) foundMCE(mcgCap uint64) (more bool) {
	if mcgCap == s.mcg {
		return false
	}
	first, had := s.mcg == 0, len(s.msrs)
	s.mcg = mcgCap
	if !first { // or else the list is of that value
		s.regain()
	}
	return len(s.msrs) > had
}

// setupMCE gives the spare's vCPU the machine-check banks of a state; 0: those that it has. renew
// has seen to it that it had no others. all.mu is held.
func (s *spare) setupMCE(mcgCap uint64) error {
	if mcgCap == 0 || mcgCap == s.mcg {
		return nil
	}
	has, err := readMCE(s.fd)
	if err == nil && has != mcgCap {
		err = setupMCE(s.fd, mcgCap)
	}
	if err == nil {
		s.mcg = mcgCap
	}
	return err
}
