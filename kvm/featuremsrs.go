//go:build linux && amd64

package kvm

import (
	"slices"
	"unsafe"
)

// byCPUID reports whether the CPUID of a vCPU decides if the vCPU has an MSR, for the host's
// calls as well as for the guest: that is so for the list of errata, and where a VMM has asked
// for it also for KVM's own MSRs. (AMD APM volume 2, OS-Visible Workarounds; KVM api,
// "KVM_CAP_ENFORCE_PV_FEATURE_CPUID".)
func byCPUID(index uint32) bool {
	const systemTime, systemTimeNew, asyncPFInt, migrationControl = 0x12, 0x4b564d01, 0x4b564d06, 0x4b564d08
	switch {
	case index == msrOSVWLength, index == msrOSVWStatus, index == systemTime, index == migrationControl:
		return true
	}
	return index >= systemTimeNew && index <= asyncPFInt
}

// regain puts back on the list the MSRs that the vCPU did not have, because it may have them under
// its new CPUID table: the next read of the MSRs finds out. Kernels before 6.0 tell a host of no
// performance counters of a vCPU that has not been given them by CPUID yet.
func (s *VCPUState) regain() {
	for _, index := range s.sys.msrs {
		if mayCome(index) && !slices.Contains(s.msrs, index) {
			s.msrs = append(s.msrs, index)
		}
	}
}

// mayCome reports whether a vCPU that does not have an MSR may have it once it gets its CPUID, or
// another one. Of those that cannot be tried on a spare only KVM's own may.
func mayCome(index uint32) bool { return byCPUID(index) || tried(index) }

// knowsMSR reports whether an MSR can be restored here. For an MSR that CPUID may decide on it
// returns true: whether KVM takes it together with the CPUID of the state is found out when the
// state is tried.
func (s *VCPUState) knowsMSR(index uint32) bool {
	return byCPUID(index) || slices.Contains(s.known(), index) ||
		s.spare != nil && mayCome(index) && slices.Contains(s.sys.msrs, index)
}

// knowsMSR reports whether the state of some vCPU here can have an MSR.
func (s *System) knowsMSR(index uint32) bool { return byCPUID(index) || slices.Contains(s.msrs, index) }

// fixed reports whether the CPUID table of a vCPU is known and final: it is the one that KVM was
// given, and the vCPU has run, after which KVM takes no other.
func (g *given) fixed() bool { return g != nil && g.ran.Load() && g.sure.Load() }

// keepsCPUID reports whether a vCPU need not be given the CPUID table of the state: it has run
// with a table that differs only in what KVM itself keeps up to date. KVM refuses a table with
// differences that it has not made itself, and which it makes depends on the CPU.
func (s *VCPUState) keepsCPUID() bool {
	return s.given.fixed() && sameCPUID(s.cpuid.entries[:s.cpuid.n], s.hasCPUID)
}

// fixes records the MSRs that list features, of a vCPU that is about to enter the guest for the
// first time: once it has run KVM changes neither them nor its CPUID. The caller has the vCPU.
func (s *VCPUState) fixes(vcpu int) {
	var list []MSR
	for _, index := range s.sys.features {
		if !slices.Contains(s.known(), index) {
			continue // no state has it
		}
		if value, ok, err := s.readMSR(vcpu, index); err == nil && ok {
			list = append(list, MSR{index, value})
		}
	}
	s.given.features.Store(&list)
}

// changes reports whether an MSR lists features of the vCPU, and the vCPU has run with another
// value of it.
func (g *given) changes(index uint32, value uint64) bool {
	if g == nil {
		return false
	}
	list := g.features.Load()
	return list != nil && slices.ContainsFunc(*list, func(m MSR) bool { return m.Index == index && m.Value != value })
}

// featureIndices returns the MSRs that tell a guest of features, as CPUID does; none on a KVM that cannot say.
func featureIndices(kvm int) []uint32 {
	const microcode = 0x8b // its revision, which a host may change at any time
	var list msrIndices
	list.n = maxMSRs
	if _, err := ioctl(kvm, "KVM_GET_MSR_FEATURE_INDEX_LIST", kvmGetMSRFeatureList, unsafe.Pointer(&list)); err != nil {
		return nil
	}
	return slices.DeleteFunc(list.indices[:min(list.n, maxMSRs)], func(i uint32) bool { return i == microcode })
}
