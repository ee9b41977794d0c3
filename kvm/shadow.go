//go:build linux && amd64

package kvm

import (
	"fmt"
	"slices"
	"unsafe"

	gokvm "github.com/bobuhiro11/gokvm/kvm"
)

// shadows records whether KVM keeps copies of the page tables of the guest, and whether they may
// be stale.
//
// A KVM without the hardware's second level of address translation (EPT, NPT) runs a guest on
// page tables of its own, which it derives from the guest's, keeps, and corrects when the
// guest writes its tables. What the host writes there it does not see, and that is what
// loading a state together with other memory does. It drops all copies when a slot is
// taken away. (Linux, Documentation/virt/kvm/x86/mmu.rst, "Reverse mapping" and
// "Zapping all pages"; KVM api, KVM_SET_USER_MEMORY_REGION.)
type shadows struct {
	known bool   // kept has been found out; belongs to the goroutine that loads a state
	kept  bool   // this KVM keeps copies
	ran   bool   // a vCPU has run since they were dropped last; under vm.mu
	stale bool   // and a state has been loaded since; under vm.mu
	slot  uint32 // the slot that is added and taken away
	place int    // index in slotPlaces of its address
}

// slotPlaces are addresses far beyond any guest's memory, of which a KVM takes the first
// that its physical addresses are wide enough for.
var slotPlaces = [...]uint64{1 << 51, 1 << 45, 1 << 38}

// loaded notes that a state has been loaded, and memory before it: if a vCPU has run, the copies
// are stale.
func (vm *VM) loaded() {
	s := &vm.shadows
	if !s.known {
		s.known = true
		var err error
		if s.kept, err = vm.spares.keepShadows(); err != nil {
			s.kept = true // if unsure, drop them: that costs time, and stale copies would ruin the guest
			if vm.log != nil {
				vm.log.Warn("kvm: whether this KVM keeps copies of a guest's page tables is not known, it is taken to do so", "err", err)
			}
		}
	}
	vm.mu.Lock()
	defer vm.mu.Unlock()
	s.stale = s.kept && s.ran
}

// forget makes KVM drop its copies if they may be stale. It is called before a vCPU enters
// the guest; vm.mu is held.
func (vm *VM) forget() error {
	s := &vm.shadows
	if s.stale {
		if err := vm.dropShadows(); err != nil {
			return fmt.Errorf("kvm: stale page tables: %w", err)
		}
		s.stale = false
	}
	s.ran = true
	return nil
}

// dropShadows makes KVM drop its copies, by adding a slot and taking it away.
func (vm *VM) dropShadows() error {
	s := &vm.shadows
	slots := *vm.slots.Load()
	if len(slots) == 0 {
		return nil // nothing is mapped
	}
	if s.slot == 0 {
		const least = 32
		s.slot = uint32(max(capability(vm.fd, capMemSlots), least)) - 1
	}
	// The number must be one that the host does not use.
	for slices.ContainsFunc(slots, func(o *slot) bool { return o.ID == s.slot }) {
		s.slot--
	}
	region := gokvm.UserspaceMemoryRegion{
		Slot: s.slot, MemorySize: PageSize, UserspaceAddr: uint64(uintptr(unsafe.Pointer(&slots[0].Mem[0]))),
	}
	for {
		region.GuestPhysAddr = slotPlaces[s.place]
		_, err := ioctl(vm.fd, "KVM_SET_USER_MEMORY_REGION", kvmSetUserMemoryRegion, unsafe.Pointer(&region))
		if err == nil {
			break
		}
		if s.place+1 == len(slotPlaces) {
			return err
		}
		s.place++
	}
	region.MemorySize = 0
	_, err := ioctl(vm.fd, "KVM_SET_USER_MEMORY_REGION", kvmSetUserMemoryRegion, unsafe.Pointer(&region))
	return err
}
