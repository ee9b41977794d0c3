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
// is one RAM block, and vCPUs with the CPUID of SupportedCPUID. The vCPUs are in
// their reset state; all but the first wait to be started (SetRunnable, or another
// vCPU's INIT and SIPI). The dirty log is off. Close frees all of it.
func Create(cfg Config) (_ *VM, err error) {
	n := max(cfg.VCPUs, 1)
	if n > maxVCPUs {
		return nil, fmt.Errorf("kvm: create: %d vCPUs, want at most %d: an APIC ID has 8 bits, and the last is everybody's", n, maxVCPUs)
	}
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
				vm.spares.close()
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
	if err := enableEvents(fd, eventsEnabled); err != nil {
		return nil, err
	}
	if vm, err = Attach(uintptr(fd), AttachConfig{KVM: kvm, DirtyRing: cfg.DirtyRing, OwnLog: true, CatchUp: cfg.CatchUp, Log: cfg.Log}); err != nil {
		return nil, err
	}
	vm.closer, vm.ours = closer, true

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
	supported, err := supportedCPUID(kvm)
	if err != nil {
		return nil, err
	}
	for i := range n {
		cpuid := cpuidOf(supported, i)
		if cfg.CPUID != nil {
			if cpuid, err = cfg.CPUID(i); err != nil {
				return nil, fmt.Errorf("vCPU %d: %w", i, err)
			}
		}
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
		if err := errors.Join(v.SetCPUID(cpuid), v.SetFeatures(cfg.Features)); err != nil {
			return nil, err
		}
	}
	return vm, nil
}

// Memory returns the RAM block of a VM that Create made, nil for an adopted one.
// Code that writes to it calls MarkDirty. Close unmaps it.
func (vm *VM) Memory() []byte { return vm.memory }
