//go:build linux && amd64

package kvm

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"unsafe"

	gokvm "github.com/bobuhiro11/gokvm/kvm"
)

// MSR is a model-specific register and its value.
type MSR struct {
	Index uint32
	Value uint64
}

// readMSRs returns the MSRs of the vCPU whose values another host can try, without those
// that are 0, which any host takes. If the vCPU runs it is stopped meanwhile, for some tens
// of microseconds.
func (v *VCPU) readMSRs() (list []MSR, err error) {
	if err := v.vm.Pause(context.Background()); err != nil {
		return nil, err
	}
	defer v.vm.Resume(context.Background())
	if err := v.hold(); err != nil {
		return nil, err
	}
	defer v.own.Unlock()
	for _, index := range v.state.known() {
		if !tried(index) {
			continue
		}
		one := msrOne{n: 1, entry: gokvm.MSREntry{Index: index}}
		n, err := ioctl(v.fd, "KVM_GET_MSRS", kvmGetMSRs, unsafe.Pointer(&one))
		if err != nil {
			return nil, fmt.Errorf("kvm: vCPU %d: %w", v.index, err)
		}
		if n == 1 && one.entry.Data != 0 {
			list = append(list, MSR{index, one.entry.Data})
		}
	}
	return list, nil
}

// refuses names, in words, the MSRs whose values this KVM does not take for a vCPU with that
// CPUID table. It tries them on the spare's vCPU, but for values other than 0 of MSRs that no
// state here can have, which known tells: those are refused untried. The table must fit this
// host.
func (s *spare) refuses(cpuid []CPUIDEntry, apic bool, flags uint32, msrs []MSR, known func(index uint32) bool) (list []string, err error) {
	s.all.mu.Lock()
	defer s.all.mu.Unlock()
	table := &cpuidTable{n: uint32(len(cpuid))}
	copy(table.entries[:], cpuid)
	banks, _ := valueOf(msrs, msrMCGCap)
	if err := s.renew(table, banks); err != nil {
		return nil, fmt.Errorf("kvm: a VM to try a state on: %w", err)
	}
	if err := s.open(apic, flags); err != nil {
		return nil, fmt.Errorf("kvm: a VM to try a state on: %w", err)
	}
	s.cpuid = cpuidTable{} // the next state to be tried sets its own
	if _, err := ioctl(s.fd, "KVM_SET_CPUID2", kvmSetCPUID2, unsafe.Pointer(table)); err != nil {
		return []string{"the CPUID table as a whole"}, nil
	}
	if err := s.setupMCE(banks); errors.Is(err, ErrState) {
		return []string{fmt.Sprintf("machine-check banks with %#x as MSR %#x", banks, msrMCGCap)}, nil
	} else if err != nil {
		return nil, fmt.Errorf("kvm: a VM to try a state on: %w", err)
	}
	for _, m := range msrs {
		if !tried(m.Index) || m.Index == msrMCGCap {
			continue // an MSR that this host does not try; the state decides later. Or one that was set before.
		}
		if m.Value != 0 && !known(m.Index) && !unseen(m.Index, cpuid) { // no state may have it
			list = append(list, fmt.Sprintf("MSR %#x, which is %#x", m.Index, m.Value))
			continue
		}
		one := msrOne{n: 1, entry: gokvm.MSREntry{Index: m.Index, Data: m.Value}}
		n, err := ioctl(s.fd, "KVM_SET_MSRS", kvmSetMSRs, unsafe.Pointer(&one))
		if err != nil {
			return nil, fmt.Errorf("kvm: a VM to try a state on: %w", err)
		}
		took := n == 1
		if took && (m.Value == 0 || !keeps(m.Index)) {
			continue
		}
		one = msrOne{n: 1, entry: gokvm.MSREntry{Index: m.Index}}
		switch n, err := ioctl(s.fd, "KVM_GET_MSRS", kvmGetMSRs, unsafe.Pointer(&one)); {
		case err != nil:
			return nil, fmt.Errorf("kvm: a VM to try a state on: %w", err)
		case took && n == 1 && one.entry.Data == m.Value: // KVM has set it, and has not only said so
		case n == 0 && (m.Value == 0 || unseen(m.Index, cpuid)): // an MSR that is missing here is as good as one that is 0
		case n == 0:
			list = append(list, fmt.Sprintf("MSR %#x, which is %#x", m.Index, m.Value))
		case one.entry.Data != m.Value:
			list = append(list, fmt.Sprintf("%#x in MSR %#x, which is %#x here", m.Value, m.Index, one.entry.Data))
		}
	}
	return list, nil
}

// cpuMSR is the number of bytes of an MSR in binary form: index, value.
const cpuMSR = 4 + 8

func appendMSRs(b []byte, list []MSR) []byte {
	b = binary.BigEndian.AppendUint16(b, uint16(len(list)))
	for _, m := range list {
		b = binary.BigEndian.AppendUint32(b, m.Index)
		b = binary.BigEndian.AppendUint64(b, m.Value)
	}
	return b
}

// parseMSRs decodes what appendMSRs has written, and returns what follows it. If b does not begin with
// that, ok is false and b is returned.
func parseMSRs(b []byte) (list []MSR, rest []byte, ok bool) {
	if len(b) < 2 {
		return nil, b, false
	}
	n := int(binary.BigEndian.Uint16(b))
	if n == 0 || n > maxMSRs || len(b) < 2+n*cpuMSR {
		return nil, b, false
	}
	rest = b[2:]
	for range n {
		list = append(list, MSR{binary.BigEndian.Uint32(rest), binary.BigEndian.Uint64(rest[4:])})
		rest = rest[cpuMSR:]
	}
	return list, rest, true
}
