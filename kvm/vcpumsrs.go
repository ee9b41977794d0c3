//go:build linux && amd64

package kvm

import (
	"slices"
	"unsafe"

	gokvm "github.com/bobuhiro11/gokvm/kvm"
)

// msrTable is struct kvm_msrs.
type msrTable struct {
	n, _    uint32
	entries [maxMSRs]gokvm.MSREntry
}

// msrOne is struct kvm_msrs with one entry.
type msrOne struct {
	n, _  uint32
	entry gokvm.MSREntry
}

// msrsAtOnce is how many MSRs KVM takes in one call.
const msrsAtOnce = 255

// getMSRs reads all MSRs. KVM stops at the first that it cannot read and returns
// how many it has read; that one is left out from then on, or until the vCPU has other
// machine-check banks.
func (s *VCPUState) getMSRs(vcpu int) error {
	t := s.scratch()
	for at := 0; at < len(s.msrs); {
		list := s.msrs[at:min(at+msrsAtOnce, len(s.msrs))]
		t.n = uint32(len(list))
		for i, index := range list {
			t.entries[i] = gokvm.MSREntry{Index: index}
		}
		n, err := ioctl(vcpu, "KVM_GET_MSRS", kvmGetMSRs, unsafe.Pointer(t))
		if err != nil {
			return err
		}
		copy(s.msr.entries[at:], t.entries[:n])
		if n < len(list) {
			s.msrs = slices.Delete(s.msrs, at+n, at+n+1)
		}
		at += n
	}
	s.msr.n = uint32(len(s.msrs))
	if now, ok := s.savedMSR(msrMCGCap); ok && s.foundMCE(now) {
		return s.getMSRs(vcpu)
	}
	return nil
}

// scratch returns the table that the calls for MSRs use, one after the other.
func (s *VCPUState) scratch() *msrTable {
	if s.some == nil {
		s.some = &msrTable{}
	}
	return s.some
}

// elsewhere reports whether an MSR is another name of what a state has among its registers or in its local
// APIC: EFER, APIC_BASE, the bases of FS and GS, and the registers of an APIC in x2APIC mode.
func elsewhere(index uint32) bool {
	const apicBase, efer, fsBase, gsBase = 0x1b, 0xc0000080, 0xc0000100, 0xc0000101
	return index == apicBase || index == efer || index == fsBase || index == gsBase || index>>8 == 8
}

// repeated returns the first MSR that the state has a second time; ok is false if there is none. The last of
// them would count, which what a vCPU is known to have (see held) cannot tell.
func (s *VCPUState) repeated() (m gokvm.MSREntry, ok bool) {
	list := s.msr.entries[:s.msr.n]
	if slices.EqualFunc(list, s.msrs, isMSR) || slices.EqualFunc(list, s.distinct, isMSR) {
		return m, false
	}
	s.distinct = s.distinct[:0]
	for _, m := range list {
		if slices.Contains(s.distinct, m.Index) {
			s.distinct = s.distinct[:0]
			return m, true
		}
		s.distinct = append(s.distinct, m.Index)
	}
	return m, false
}

func isMSR(m gokvm.MSREntry, index uint32) bool { return m.Index == index }

// setMSRs writes, in order, the MSRs of the state for whose places want returns true, but for those that
// the state has elsewhere. KVM stops at the first that it refuses; that is an error unless the vCPU has that
// value anyway, and then the MSR is added to refused.
func (s *VCPUState) setMSRs(vcpu int, want func(i int) bool, refused *[]uint32) error {
	t := s.scratch()
	t.n = 0
	for i := range s.msr.entries[:s.msr.n] {
		if m := &s.msr.entries[i]; !elsewhere(m.Index) && want(i) {
			t.entries[t.n] = *m
			t.n++
		}
		if t.n == msrsAtOnce {
			if err := s.putMSRs(vcpu, t, refused); err != nil {
				return err
			}
		}
	}
	return s.putMSRs(vcpu, t, refused)
}

// putMSRs writes the MSRs of a table, which is empty afterwards, and adds to refused those that
// KVM did not take.
func (s *VCPUState) putMSRs(vcpu int, t *msrTable, refused *[]uint32) error {
	for t.n > 0 {
		n, err := ioctl(vcpu, "KVM_SET_MSRS", kvmSetMSRs, unsafe.Pointer(t))
		if err != nil {
			return err
		}
		if n == int(t.n) {
			t.n = 0
			break
		}
		m := t.entries[n]
		value, ok, err := s.readMSR(vcpu, m.Index)
		if err != nil {
			return err
		}
		// An MSR that does not exist here is as good as one that is 0, or that the guest does not see.
		if ok && value != m.Data || !ok && m.Data != 0 && !s.unseen(m.Index) {
			return &MSRError{m.Index, m.Data}
		}
		if refused != nil {
			*refused = append(*refused, m.Index)
		}
		t.n = uint32(copy(t.entries[:], t.entries[n+1:t.n]))
	}
	return nil
}

// nearby reports whether two TSC frequencies are as good as the same: KVM itself
// does not scale below 250 parts per million.
func nearby(a, b uint32) bool {
	return max(a, b)-min(a, b) <= b/4000
}
