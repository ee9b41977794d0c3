//go:build linux && amd64

package kvm

import "errors"

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

// trySynIC fails with an MSRError if the staged state needs synthetic interrupts and the vCPU has none. KVM does
// not tell whether it has, and the spare has none; but KVM takes the version of them that the vCPU shows
// only where they are active. A vCPU that runs is not asked, as it would have to stop for that.
func (v *VCPU) trySynIC() error {
	s := v.staged
	wants := s.wantsSynIC()
	if wants == nil || s.given.synic.Load() {
		return nil
	}
	err := v.with(func(fd int) error {
		version, ok, err := s.readMSR(fd, msrSVersion)
		if err != nil || !ok || version == 0 {
			return err
		}
		var refused *MSRError
		if err = s.writeMSR(fd, msrSVersion, version); errors.As(err, &refused) {
			return wants
		}
		s.given.synic.Store(err == nil)
		return err
	})
	if errors.Is(err, ErrRunning) {
		return nil
	}
	return err
}
