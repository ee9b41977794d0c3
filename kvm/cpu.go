//go:build linux && amd64

package kvm

import (
	"encoding/binary"
	"fmt"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// CPU describes which CPU features KVM can give a guest on a host, and which a guest
// there was given. Two hosts exchange it before the memory of a guest moves, so that they
// know at once what does not fit. It has a binary form (encoding.BinaryMarshaler and
// BinaryUnmarshaler) that both sides treat as opaque bytes.
type CPU struct {
	Supported  []CPUIDEntry // what KVM supports there
	Given      []CPUIDEntry // the guest's CPUID; nil: there is no guest
	XSaveSize  uint32       // bytes of the largest XSAVE area
	TSCKHz     uint32       // frequency of the guest's TSC, or else of the host's; 0: not known
	TSCScaling bool         // the host can give a guest a TSC of any frequency

	// MSRs are the model-specific registers of the guest's first vCPU when it was
	// described, without those that were 0 or that name its memory; nil: not known. Among
	// them are those in which a CPU lists its features.
	MSRs []MSR

	// Features are the MSRs in which a CPU lists features beside CPUID, such as the attacks that
	// do not work on it, as KVM supports them there; nil: not known.
	Features []MSR
}

// ReadCPU describes this host.
func ReadCPU() (*CPU, error) {
	vm, err := Create(Config{Memory: PageSize})
	if err != nil {
		return nil, err
	}
	defer vm.Close()
	c, err := vm.CPU()
	if err != nil {
		return nil, err
	}
	c.Given, c.MSRs = nil, nil
	return c, nil
}

// CPU describes this host and the first vCPU of the VM, without its MSRs. It may be called
// while the VM runs, once the CPUID table of the vCPU is known: set by SetCPUID or Create,
// or read by a save.
func (vm *VM) CPU() (*CPU, error) {
	c := &CPU{
		Supported:  slices.Clone(vm.sys.cpuid),
		XSaveSize:  uint32(vm.sys.xsaveSize),
		TSCScaling: vm.sys.tscControl,
		Features:   slices.Clone(vm.sys.supports),
	}
	if list := vm.VCPUs(); len(list) > 0 {
		v := list[0]
		table := v.given.cpuid.Load()
		if table == nil {
			if _, err := v.CPUID(); err != nil {
				return nil, err
			}
			table = v.given.cpuid.Load()
		}
		possible, err := v.staged.possible()
		if err != nil {
			return nil, err
		}
		c.Supported = slices.Clone(possible)
		c.Given, c.TSCKHz = slices.Clone(*table), v.given.khz.Load()
	}
	return c, nil
}

// DescribeCPU returns the binary form of CPU with the MSRs, for the other host of a
// pair. A VM that runs is paused while they are read, for less than a checkpoint takes;
// handlers of exits must not call it.
func (vm *VM) DescribeCPU() ([]byte, error) {
	c, err := vm.CPU()
	if err != nil {
		return nil, err
	}
	if list := vm.VCPUs(); len(list) > 0 {
		if c.MSRs, err = list[0].readMSRs(); err != nil {
			return nil, err
		}
	}
	return c.MarshalBinary()
}

// JudgeCPU reports whether the guest that the other host has described (its DescribeCPU) can run
// here. It fails with a CPUError that says what is missing, or an error that wraps ErrState where
// theirs is not such a description. An MSR whose value KVM refuses counts as missing; the values
// are tried in a spare VM, never on the guest's own. It may be called from any goroutine.
func (vm *VM) JudgeCPU(theirs []byte) error {
	var guest CPU
	if err := guest.UnmarshalBinary(theirs); err != nil {
		return err
	}
	host, err := vm.CPU()
	if err != nil {
		return err
	}
	list := host.lacks(&guest)
	if vcpus := vm.VCPUs(); len(list) == 0 && len(vcpus) > 0 && guest.Given != nil && len(guest.MSRs) > 0 {
		s := vcpus[0].staged
		if list, err = s.spare.refuses(guest.Given, s.apic, s.flags, guest.MSRs, vm.sys.knowsMSR); err != nil {
			return err
		}
	}
	if len(list) > 0 {
		return &CPUError{list}
	}
	return nil
}

// MatchCPU returns the description that DescribeCPU makes, and JudgeCPU as a function: before a
// guest is protected each host sends offer to the other, and calls judge with what it receives.
// They fit Offer and Judge in the configuration of colo/protect. Its errors are those of
// DescribeCPU.
func (vm *VM) MatchCPU() (offer []byte, judge func(theirs []byte) error, err error) {
	if offer, err = vm.DescribeCPU(); err != nil {
		return nil, nil, err
	}
	return offer, vm.JudgeCPU, nil
}

// Judge checks that the guest in the description guest can run on the host that c describes;
// where that description has no guest, that any guest of its host can. It fails with a CPUError.
//
// Of the MSRs only those that list features are compared, because only KVM knows which values it takes of the
// rest. JudgeCPU asks KVM, and the values that the MSRs have by then are tried when the guest's state
// is decoded.
func (c *CPU) Judge(guest *CPU) error {
	if list := c.lacks(guest); len(list) > 0 {
		return &CPUError{list}
	}
	return nil
}

// lacks names the features that the guest in the description guest has and the host that c
// describes lacks.
func (c *CPU) lacks(guest *CPU) []string {
	table := guest.Given
	if table == nil {
		table = guest.Supported
	}
	list := append(missing(table, c.Supported), c.lacksFeatures(guest)...)
	if guest.XSaveSize > c.XSaveSize {
		list = append(list, fmt.Sprintf("an XSAVE area of %d bytes, which has %d here", guest.XSaveSize, c.XSaveSize))
	}
	if guest.TSCKHz != 0 && c.TSCKHz != 0 && !c.TSCScaling && !nearby(guest.TSCKHz, c.TSCKHz) {
		list = append(list, fmt.Sprintf("a TSC of %d kHz, which runs at %d here and cannot be scaled", guest.TSCKHz, c.TSCKHz))
	}
	return list
}

// CommonCPUID returns a CPUID table for vCPU i of a guest that is to run on this host
// and on the others: what SupportedCPUID says, less what one of them does not support.
// It is for the creation of a guest (Config.CPUID, VCPU.SetCPUID). It fails with a
// CPUError where there is no common ground: another vendor, another layout of the
// XSAVE area.
func CommonCPUID(i int, others ...*CPU) ([]CPUIDEntry, error) {
	table, err := SupportedCPUID(i)
	if err != nil {
		return nil, err
	}
	return common(table, others)
}

// common removes from a table what one of the hosts does not support, and returns it. Its
// error is that of CommonCPUID.
func common(table []CPUIDEntry, others []*CPU) ([]CPUIDEntry, error) {
	for _, o := range others {
		mask(table, o.Supported)
	}
	for _, o := range others {
		if list := missing(table, o.Supported); len(list) > 0 {
			return nil, &CPUError{list}
		}
	}
	return table, nil
}

// mask removes from a table the features that a host does not support.
func mask(table, supported []CPUIDEntry) {
	for _, w := range cpuidWords {
		if e := w.find(table); e != nil {
			*reg(e, w.reg) &= cpuidValue(supported, w.function, w.index, w.reg) | w.ignore
		}
	}
	for _, n := range cpuidNumbers {
		e := findCPUID(table, n.function, 0)
		if e == nil {
			continue
		}
		field := uint32(1<<n.width-1) << n.shift
		r := reg(e, n.reg)
		*r = *r&^field | min(n.value(table), n.value(supported))<<n.shift
	}
}

// The binary form of a CPU: the magic number, a version, flags, and big-endian numbers;
// with the flag cpuHasMSRs the MSRs behind their number, and with cpuHasFeatures the features
// likewise.
const (
	cpuMagic   = "lsCPU"
	cpuVersion = 1
	cpuScaling = 1 << 0
	cpuGuest   = 1 << 1
	cpuHasMSRs = 1 << 2

	cpuHasFeatures = 1 << 3

	cpuFlags = cpuScaling | cpuGuest | cpuHasMSRs | cpuHasFeatures
	cpuHead  = len(cpuMagic) + 2 + 4 + 4 + 2 + 2
	cpuEntry = 7 * 4
)

// MarshalBinary implements encoding.BinaryMarshaler.
func (c *CPU) MarshalBinary() ([]byte, error) {
	if len(c.Supported) > maxCPUID || len(c.Given) > maxCPUID || len(c.MSRs) > maxMSRs || len(c.Features) > maxMSRs {
		return nil, fmt.Errorf("kvm: %d and %d CPUID entries, %d and %d MSRs, want at most %d and %d",
			len(c.Supported), len(c.Given), len(c.MSRs), len(c.Features), maxCPUID, maxMSRs)
	}
	var flags byte
	if c.TSCScaling {
		flags |= cpuScaling
	}
	if c.Given != nil {
		flags |= cpuGuest
	}
	if len(c.MSRs) > 0 {
		flags |= cpuHasMSRs
	}
	if len(c.Features) > 0 {
		flags |= cpuHasFeatures
	}
	b := append([]byte(cpuMagic), cpuVersion, flags)
	b = binary.BigEndian.AppendUint32(b, c.XSaveSize)
	b = binary.BigEndian.AppendUint32(b, c.TSCKHz)
	b = binary.BigEndian.AppendUint16(b, uint16(len(c.Supported)))
	b = binary.BigEndian.AppendUint16(b, uint16(len(c.Given)))
	for _, e := range slices.Concat(c.Supported, c.Given) {
		for _, n := range []uint32{e.Function, e.Index, e.Flags, e.Eax, e.Ebx, e.Ecx, e.Edx} {
			b = binary.BigEndian.AppendUint32(b, n)
		}
	}
	for _, list := range [][]MSR{c.MSRs, c.Features} {
		if len(list) > 0 {
			b = appendMSRs(b, list)
		}
	}
	return b, nil
}

// UnmarshalBinary implements encoding.BinaryUnmarshaler. It fails with an error that
// wraps ErrState, and leaves c as it was then.
func (c *CPU) UnmarshalBinary(b []byte) error {
	bad := func(what string, n int) error {
		return fmt.Errorf("%w: description of a CPU: %s %d", ErrState, what, n)
	}
	switch {
	case len(b) < cpuHead:
		return bad("length", len(b))
	case string(b[:len(cpuMagic)]) != cpuMagic:
		return bad("not one, of length", len(b))
	case b[len(cpuMagic)] != cpuVersion:
		return bad("version", int(b[len(cpuMagic)]))
	case b[len(cpuMagic)+1]&^cpuFlags != 0:
		return bad("flags", int(b[len(cpuMagic)+1]))
	}
	flags := b[len(cpuMagic)+1]
	n := b[len(cpuMagic)+2:]
	next := CPU{XSaveSize: binary.BigEndian.Uint32(n), TSCKHz: binary.BigEndian.Uint32(n[4:]), TSCScaling: flags&cpuScaling != 0}
	supported, given := int(binary.BigEndian.Uint16(n[8:])), int(binary.BigEndian.Uint16(n[10:]))
	b = b[cpuHead:]
	switch {
	case supported > maxCPUID, given > maxCPUID:
		return bad("CPUID entries:", max(supported, given))
	case (flags&cpuGuest != 0) != (given > 0):
		return bad("CPUID entries of the guest:", given)
	case len(b) < (supported+given)*cpuEntry:
		return bad("length", cpuHead+len(b))
	}
	more, ok := b[(supported+given)*cpuEntry:], true
	if flags&cpuHasMSRs != 0 {
		if next.MSRs, more, ok = parseMSRs(more); !ok {
			return bad("MSRs, of length", len(more))
		}
	}
	if flags&cpuHasFeatures != 0 {
		if next.Features, more, ok = parseMSRs(more); !ok {
			return bad("features, of length", len(more))
		}
	}
	if len(more) > 0 {
		return bad("length", cpuHead+len(b))
	}
	read := func(n int) (list []CPUIDEntry) {
		for range n {
			var e CPUIDEntry
			for _, p := range []*uint32{&e.Function, &e.Index, &e.Flags, &e.Eax, &e.Ebx, &e.Ecx, &e.Edx} {
				*p, b = binary.BigEndian.Uint32(b), b[4:]
			}
			list = append(list, e)
		}
		return list
	}
	next.Supported = read(supported)
	next.Given = read(given)
	*c = next
	return nil
}

// SupportedCPUID returns a CPUID table for vCPU i of a VM with interrupt
// controllers in the kernel: the features that the host supports, less nested
// virtualization and shadow stacks, whose state is not saved, and those by which KVM writes
// to the memory of a stopped guest (stolen time and its kin), with the APIC ID of the vCPU,
// at most 254.
func SupportedCPUID(i int) ([]CPUIDEntry, error) {
	if i < 0 || i >= maxVCPUs {
		return nil, fmt.Errorf("kvm: vCPU %d, want 0 to %d: its APIC ID has 8 bits", i, maxVCPUs-1)
	}
	kvm, err := openKVM()
	if err != nil {
		return nil, err
	}
	defer unix.Close(kvm)
	table, err := supportedCPUID(kvm)
	if err != nil {
		return nil, err
	}
	return cpuidOf(table, i), nil
}

// supportedCPUID returns the table of KVM, with the bits that KVM leaves to the caller to
// add: that there is a hypervisor, and the timer (KVM api, "KVM_CAP_TSC_DEADLINE_TIMER").
func supportedCPUID(kvm int) ([]CPUIDEntry, error) {
	const tscDeadline, hypervisor = 1 << 24, 1 << 31
	table := &cpuidTable{n: maxCPUID}
	if _, err := ioctl(kvm, "KVM_GET_SUPPORTED_CPUID", kvmGetSupportedCPUID, unsafe.Pointer(table)); err != nil {
		return nil, err
	}
	entries := table.entries[:table.n]
	for i := range entries {
		if entries[i].Function == 1 {
			// Without it a guest does not look for KVM's leaves, and so not for its
			// clock.
			entries[i].Ecx |= hypervisor
			if capability(kvm, capTSCDeadline) != 0 {
				entries[i].Ecx |= tscDeadline
			}
		}
	}
	return entries, nil
}

// possibleCPUID returns the table of supportedCPUID with the features that KVM emulates on
// any CPU.
func possibleCPUID(kvm int) ([]CPUIDEntry, error) {
	entries, err := supportedCPUID(kvm)
	if err != nil {
		return nil, err
	}
	table := &cpuidTable{n: maxCPUID}
	if _, err := ioctl(kvm, "KVM_GET_EMULATED_CPUID", kvmGetEmulatedCPUID, unsafe.Pointer(table)); err != nil {
		return entries, nil // an old kernel, which cannot say what it emulates
	}
	merge(entries, table.entries[:min(table.n, maxCPUID)])
	return entries, nil
}

// cpuidOf returns the table of vCPU i: its own APIC ID, no nested virtualization, no shadow
// stacks, and of KVM's own features none by which KVM writes to the guest's memory when it likes,
// also while the vCPU is stopped: asynchronous page faults, stolen time, and flushing the TLBs of
// vCPUs that do not run, which uses the record of stolen time. (Intel SDM volume 2, CPUID; AMD
// APM volume 3, appendix E; KVM's cpuid page, KVM_FEATURE_*.)
func cpuidOf(supported []CPUIDEntry, i int) []CPUIDEntry {
	const (
		vmx, svm = 1 << 5, 1 << 2
		shstk    = 1 << 7
		unbidden = 1<<4 | 1<<5 | 1<<9 | 1<<10 | 1<<14
	)
	table := append([]CPUIDEntry(nil), supported...)
	for j := range table {
		switch e := &table[j]; e.Function {
		case 1:
			e.Ecx &^= vmx
			e.Ebx = e.Ebx&0x00ffffff | uint32(i)<<24
		case 7:
			if e.Index == 0 {
				e.Ecx &^= shstk
			}
		case 0xb, 0x1f:
			e.Edx = uint32(i)
		case 0x40000001:
			e.Eax &^= unbidden
		case 0x80000001:
			e.Ecx &^= svm
		case 0x8000001e: // extended APIC ID, core, node; one thread each
			if e.Eax|e.Ebx|e.Ecx != 0 {
				e.Eax, e.Ebx, e.Ecx = uint32(i), uint32(i)&0xff, 0
			}
		}
	}
	return table
}
