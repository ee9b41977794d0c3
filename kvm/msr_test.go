//go:build linux && amd64

package kvm_test

import "testing"

// msrRanges are where MSRs are: those of Intel's and AMD's manuals, Hyper-V's and KVM's.
var msrRanges = [][2]uint32{
	{0, 0x2000}, {0x40000000, 0x40000200}, {0x4b564d00, 0x4b564e00}, {0xc0000000, 0xc0002100}, {0xc0010000, 0xc0011100},
}

// passes says which MSRs are not the guest's alone to set: clocks, and where KVM writes
// memory when they are set.
func passes(index uint32) bool {
	switch index {
	case 0x10, 0xe7, 0xe8, 0x6e0: // TSC, MPERF, APERF, TSC deadline
		return true
	case 0x11, 0x12, 0x4b564d00, 0x4b564d01, 0x4b564d02, 0x4b564d03, 0x4b564d04: // KVM's, with addresses
		return true
	}
	return index>>8 == 0x400000 // Hyper-V's, of a VM that was made for them
}

// values are tried in turn; an MSR counts as set when it has another value than before.
func values(index uint32, was uint64) []uint64 {
	list := []uint64{was ^ 1, was ^ 1<<11, was ^ 1<<12, was | 0xff, ^uint64(0), 0, 0x0606060606060606, 0x12345000, 0x1000, 0xc06}
	if index >= 0x400 && index < 0x480 && index%4 == 0 {
		return []uint64{0, ^uint64(0)} // MCi_CTL takes these two
	}
	return list
}

// Every MSR that can be set is set on one VM, and read back from another after its
// state has moved there.
func TestEveryMSRThatCanBeSetIsRestored(t *testing.T) {
	for n := range 3 {
		vcpu := n % 2
		a, b := newAdopted(t, 2, nil), newAdopted(t, 2, nil)
		if n == 2 { // once with machine-check banks that have a control of all of them
			setUpMCE(t, a.fds[vcpu], 10|withCtl|withSER)
		}
		set := map[uint32]uint64{}
		for _, r := range msrRanges {
			for index := r[0]; index < r[1]; index++ {
				was, ok := readMSR(a.fds[vcpu], index)
				if !ok || passes(index) {
					continue
				}
				for _, v := range values(index, was) {
					if !writeMSR(a.fds[vcpu], index, v) {
						continue
					}
					if is, _ := readMSR(a.fds[vcpu], index); is != was {
						set[index] = is
						break
					}
				}
			}
		}
		// One may have changed another.
		for index := range set {
			set[index], _ = readMSR(a.fds[vcpu], index)
		}
		for _, index := range []uint32{0x174, 0x277, 0x2ff, 0x200, 0x20f, 0x250, 0x26f, 0xc0000081} {
			if _, ok := set[index]; !ok {
				t.Errorf("MSR %#x was not set: this test tests little", index)
			}
		}
		b.load(a.save())
		for index, want := range set {
			if got, ok := readMSR(b.fds[vcpu], index); got != want {
				t.Errorf("vCPU %d: MSR %#x was %#x and is %#x (%v)", vcpu, index, want, got, ok)
			}
		}
		t.Logf("%d MSRs", len(set))
	}
}
