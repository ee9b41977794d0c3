//go:build linux && amd64

package kvm

// The MSRs that have the hash of the key which signs the launch of enclaves. KVM does not list them; where it has
// them, every vCPU has values in them, of which only a guest whose CPUID says so sees any. (Intel SDM volume 3,
// "IA32_SGXLEPUBKEYHASH"; volume 2, CPUID 7 ECX bit 30.)
const msrLaunchKey0, msrLaunchKey3 = 0x8c, 0x8f

// unseen reports whether an MSR has a value that the guest with a CPUID table can neither see nor use, so that a
// host may be without it.
func unseen(index uint32, table []CPUIDEntry) bool {
	const launchControl = 1 << 30
	return index >= msrLaunchKey0 && index <= msrLaunchKey3 && cpuidValue(table, 7, 0, ecx)&launchControl == 0
}

// unseen reports whether the guest of the state can neither see nor use the value of an MSR.
func (s *VCPUState) unseen(index uint32) bool { return unseen(index, s.cpuid.entries[:s.cpuid.n]) }
