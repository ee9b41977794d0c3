//go:build linux && amd64

package kvm

import (
	"errors"
	"fmt"
	"slices"
)

// MSRs of Hyper-V's synthetic interrupts and timers. (Hypervisor Top Level Functional Specification, 11
// and 12.)
const (
	msrSControl  = 0x40000080
	msrSVersion  = 0x40000081
	msrSIEFP     = 0x40000082
	msrSIMP      = 0x40000083
	msrSINT0     = 0x40000090
	msrSINT15    = 0x4000009f
	msrSTimer0   = 0x400000b0
	msrSTimer3   = 0x400000b7 // the count of the last timer
	sintOfAReset = 1 << 16    // masked
)

// wantsSynIC returns the first MSR of a staged state that KVM sets only on a vCPU which was made for synthetic
// interrupts (KVM_CAP_HYPERV_SYNIC2); nil if there is none.
func (s *VCPUState) wantsSynIC() *MSRError {
	for _, m := range s.msr.entries[:s.msr.n] {
		switch i := m.Index; {
		case m.Data == 0:
		case i == msrSControl, i == msrSIEFP, i == msrSIMP, i >= msrSTimer0 && i <= msrSTimer3,
			i >= msrSINT0 && i <= msrSINT15 && m.Data != sintOfAReset:
			return &MSRError{i, m.Data}
		}
	}
	return nil
}

// What is known of whether a vCPU was made for synthetic interrupts.
const (
	synicUnknown = iota
	synicThere
	synicLacking
)

// askSynIC finds out whether a vCPU that stands still was made for synthetic interrupts. KVM does not tell; but it takes
// the version of them that the vCPU shows only where they are active.
func (s *VCPUState) askSynIC(vcpu int) error {
	if !slices.Contains(s.msrs, msrSControl) { // no vCPU of this KVM has any
		return nil
	}
	version, ok, err := s.readMSR(vcpu, msrSVersion)
	if err != nil || !ok || version == 0 {
		return err
	}
	var refused *MSRError
	switch err := s.writeMSR(vcpu, msrSVersion, version); {
	case err == nil:
		s.given.synic.Store(synicThere)
	case errors.As(err, &refused):
		s.given.synic.Store(synicLacking)
	default:
		return err
	}
	return nil
}

// trySynIC fails with an MSRError if the staged state needs synthetic interrupts and the vCPU has none, which the
// spare cannot say, as it has none. A vCPU that runs is not asked, since it would have to stop for that; it was asked
// before it entered the guest for the first time.
func (v *VCPU) trySynIC() error {
	s := v.staged
	wants := s.wantsSynIC()
	if wants == nil || s.given.synic.Load() == synicThere {
		return nil
	}
	if err := v.with(s.askSynIC); err != nil && !errors.Is(err, ErrRunning) {
		return err
	}
	if s.given.synic.Load() == synicLacking {
		return fmt.Errorf("kvm: vCPU %d: %w", v.index, wants)
	}
	return nil
}
