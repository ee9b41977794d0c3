//go:build linux && amd64

package kvm

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Places in a VM that Create makes. The two regions that some CPUs need for
// real mode lie below the BIOS, where no memory is.
const (
	lowMemory   = 3 << 30
	highMemory  = 4 << 30
	identityMap = 0xfffbc000
	tss         = 0xfffbd000
)

// Create makes a VM with interrupt controllers and PIT in the kernel, memory that
// is one RAM block, and vCPUs with the CPUID that the host supports, less nested
// virtualization. The vCPUs are in their reset state; all but the first wait to
// be started (SetRunnable, or another vCPU's INIT and SIPI). The dirty log is
// off. All of it goes with Close.
func Create(cfg Config) (_ *VM, err error) {
	n := max(cfg.VCPUs, 1)
	if cfg.VCPUs < 0 || cfg.Memory == 0 || cfg.Memory%PageSize != 0 || cfg.Memory > 1<<40 {
		return nil, fmt.Errorf("kvm: create: %d vCPUs, %d bytes of memory", cfg.VCPUs, cfg.Memory)
	}
	kvm, err := openKVM()
	if err != nil {
		return nil, err
	}
	defer unix.Close(kvm)

	var undo []func() error
	closer := func() error {
		var errs []error
		for i := len(undo) - 1; i >= 0; i-- {
			errs = append(errs, undo[i]())
		}
		undo = nil
		return errors.Join(errs...)
	}
	var vm *VM
	defer func() {
		if err != nil {
			if vm != nil {
				for _, v := range vm.vcpus {
					v.ring.unmap()
				}
			}
			closer()
			err = fmt.Errorf("kvm: create: %w", err)
		}
	}()
	descriptor := func(fd int) int {
		undo = append(undo, func() error { return unix.Close(fd) })
		return fd
	}
	mapping := func(fd, size, flags int) ([]byte, error) {
		mem, err := unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, flags)
		if err == nil {
			undo = append(undo, func() error { return unix.Munmap(mem) })
		}
		return mem, err
	}

	if most := capability(kvm, capMaxVCPUs); n > most {
		return nil, fmt.Errorf("%d vCPUs, the kernel takes at most %d", n, most)
	}
	fd, err := ioctlValue(kvm, "KVM_CREATE_VM", kvmCreateVM, 0)
	if err != nil {
		return nil, err
	}
	descriptor(fd)
	address := uint64(identityMap)
	if _, err := ioctl(fd, "KVM_SET_IDENTITY_MAP_ADDR", kvmSetIdentityMapAddr, unsafe.Pointer(&address)); err != nil {
		return nil, err
	}
	if _, err := ioctlValue(fd, "KVM_SET_TSS_ADDR", kvmSetTSSAddr, tss); err != nil {
		return nil, err
	}
	if _, err := ioctlValue(fd, "KVM_CREATE_IRQCHIP", kvmCreateIRQChip, 0); err != nil {
		return nil, err
	}
	var pit [64]byte // struct kvm_pit_config
	if _, err := ioctl(fd, "KVM_CREATE_PIT2", kvmCreatePIT2, unsafe.Pointer(&pit)); err != nil {
		return nil, err
	}
	if vm, err = Attach(uintptr(fd), AttachConfig{KVM: kvm, DirtyRing: cfg.DirtyRing}); err != nil {
		return nil, err
	}
	vm.closer = closer

	mem, err := mapping(-1, int(cfg.Memory), unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("memory: %w", err)
	}
	low := min(cfg.Memory, lowMemory)
	if err := vm.AddSlot(Slot{Block: RAMBlock, Mem: mem[:low]}); err != nil {
		return nil, err
	}
	if low < cfg.Memory {
		if err := vm.AddSlot(Slot{ID: 1, Block: RAMBlock, Offset: low, GPA: highMemory, Mem: mem[low:]}); err != nil {
			return nil, err
		}
	}
	vm.memory = mem

	size, err := ioctlValue(kvm, "KVM_GET_VCPU_MMAP_SIZE", kvmGetVCPUMmapSize, 0)
	if err != nil {
		return nil, err
	}
	cpuid, err := supportedCPUID(kvm)
	if err != nil {
		return nil, err
	}
	for i := range n {
		fd, err := ioctlValue(vm.fd, "KVM_CREATE_VCPU", kvmCreateVCPU, uintptr(i))
		if err != nil {
			return nil, fmt.Errorf("vCPU %d: %w", i, err)
		}
		descriptor(fd)
		run, err := mapping(fd, size, unix.MAP_SHARED)
		if err != nil {
			return nil, fmt.Errorf("vCPU %d: %w", i, err)
		}
		v, err := vm.AddVCPU(uintptr(fd), run)
		if err != nil {
			return nil, err
		}
		if err := v.SetCPUID(cpuidOf(cpuid, i)); err != nil {
			return nil, err
		}
	}
	return vm, nil
}

// Memory returns the RAM block of a VM that Create made, nil for an adopted one.
// Whoever writes to it calls MarkDirty. It goes with Close.
func (vm *VM) Memory() []byte { return vm.memory }

// SupportedCPUID returns a CPUID table for vCPU i of a VM with interrupt
// controllers in the kernel: what the host supports, less nested virtualization and
// what has KVM write to a stopped guest's memory (stolen time and its kin),
// with the vCPU's own APIC ID.
func SupportedCPUID(i int) ([]CPUIDEntry, error) {
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

// supportedCPUID is what KVM says, with what it leaves for the caller to add: that
// there is a hypervisor, and the timer (KVM api, "KVM_CAP_TSC_DEADLINE_TIMER").
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

// cpuidOf returns the table of vCPU i: its own APIC ID, no nested virtualization,
// and of KVM's own features none by which it writes to the guest's memory when it
// likes, also while the vCPU is stopped: asynchronous page faults, stolen time, and
// flushing the TLBs of vCPUs that do not run, which is told by that. (Intel SDM
// volume 2, CPUID; AMD APM volume 3, appendix E; KVM's cpuid page, KVM_FEATURE_*.)
func cpuidOf(supported []CPUIDEntry, i int) []CPUIDEntry {
	const (
		vmx, svm = 1 << 5, 1 << 2
		unbidden = 1<<4 | 1<<5 | 1<<9 | 1<<10 | 1<<14
	)
	table := append([]CPUIDEntry(nil), supported...)
	for j := range table {
		switch e := &table[j]; e.Function {
		case 1:
			e.Ecx &^= vmx
			e.Ebx = e.Ebx&0x00ffffff | uint32(i)<<24
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
