//go:build linux && amd64

package kvm

import (
	"slices"
	"unsafe"
)

// byCPUID reports whether a vCPU has an MSR, or has it not, by the CPUID that it was given,
// for the host as well as for the guest: the errata, and where a VMM wants it so those of KVM itself.
// (AMD APM volume 2, OS-Visible Workarounds; KVM api, "KVM_CAP_ENFORCE_PV_FEATURE_CPUID".)
func byCPUID(index uint32) bool {
	const systemTime, systemTimeNew, asyncPFInt, migrationControl = 0x12, 0x4b564d01, 0x4b564d06, 0x4b564d08
	switch {
	case index == msrOSVWLength, index == msrOSVWStatus, index == systemTime, index == migrationControl:
		return true
	}
	return index >= systemTimeNew && index <= asyncPFInt
}

// regain has the next read of the MSRs look for those again that the vCPU may have by its new CPUID.
func (s *VCPUState) regain() {
	for _, index := range s.sys.msrs {
		if byCPUID(index) && !slices.Contains(s.msrs, index) {
			s.msrs = append(s.msrs, index)
		}
	}
}

// knowsMSR reports whether an MSR can be restored here. One that a vCPU has by its CPUID can be
// where KVM takes it together with the CPUID of the state, which is tried.
func (s *VCPUState) knowsMSR(index uint32) bool {
	return byCPUID(index) || slices.Contains(s.known(), index)
}

// knowsMSR reports whether a vCPU here can have an MSR that a state may have.
func (s *System) knowsMSR(index uint32) bool { return byCPUID(index) || slices.Contains(s.msrs, index) }

// fixed reports whether the vCPU has run, with a CPUID that is known and that KVM does not change any more.
func (g *given) fixed() bool { return g != nil && g.ran.Load() && g.sure.Load() }

// keepsCPUID reports whether the vCPU need not be given the CPUID of the state: it has run with the same, but
// for what KVM itself keeps up to date. KVM refuses a table that differs in more than this KVM does, and what
// that is depends on the CPU.
func (s *VCPUState) keepsCPUID() bool {
	return s.given.fixed() && sameCPUID(s.cpuid.entries[:s.cpuid.n], s.hasCPUID)
}

// fixes notes the features of a vCPU that is about to enter the guest for the first time. Like its
// CPUID KVM changes them no more once it has run. The vCPU is the caller's.
func (s *VCPUState) fixes(vcpu int) {
	var list []MSR
	for _, index := range s.sys.features {
		if !slices.Contains(s.known(), index) {
			continue // not of a state
		}
		if value, ok, err := s.readMSR(vcpu, index); err == nil && ok {
			list = append(list, MSR{index, value})
		}
	}
	s.given.features.Store(&list)
}

// changes reports whether an MSR has a feature of the vCPU in it, of which it has run with another value.
func (g *given) changes(index uint32, value uint64) bool {
	if g == nil {
		return false
	}
	list := g.features.Load()
	return list != nil && slices.ContainsFunc(*list, func(m MSR) bool { return m.Index == index && m.Value != value })
}

// featureMSRs returns the MSRs that tell a guest of features, as CPUID does; none on a KVM that cannot say.
func featureMSRs(kvm int) []uint32 {
	const microcode = 0x8b // its revision, which a host may change at any time
	var list msrIndices
	list.n = maxMSRs
	if _, err := ioctl(kvm, "KVM_GET_MSR_FEATURE_INDEX_LIST", kvmGetMSRFeatureList, unsafe.Pointer(&list)); err != nil {
		return nil
	}
	return slices.DeleteFunc(list.indices[:min(list.n, maxMSRs)], func(i uint32) bool { return i == microcode })
}
