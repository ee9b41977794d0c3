//go:build linux && amd64

package kvm

import (
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A dirty ring's place in a vCPU's descriptor, in pages, and the states of an
// entry (linux/kvm.h; KVM api, "KVM_CAP_DIRTY_LOG_RING").
const (
	ringPageOffset = 64
	ringDirty      = 1 << 0
	ringReset      = 1 << 1
)

// ringEntry is struct kvm_dirty_gfn.
type ringEntry struct {
	flags  uint32
	slot   uint32 // address space in the upper half
	offset uint64 // page in the slot
}

// ring is a vCPU's dirty ring: KVM appends to it, harvest takes from it.
type ring struct {
	mem     []byte
	entries []ringEntry
	next    uint64
}

// enableRing chooses dirty rings for the VM. The variant with explicit ordering
// is preferred; on x86 both do the same.
func (vm *VM) enableRing(entries int) error {
	c := uintptr(capDirtyRingAcqRel)
	if capability(vm.fd, c) == 0 {
		c = capDirtyRing
	}
	most := capability(vm.fd, c)
	if entries == AutoRing {
		if most == 0 {
			return nil
		}
		entries = min(1<<16, most/int(unsafe.Sizeof(ringEntry{})))
	}
	if entries < 1024 || entries&(entries-1) != 0 || entries > 1<<20 {
		return fmt.Errorf("kvm: dirty ring of %d entries, want a power of two from 1024", entries)
	}
	size := entries * int(unsafe.Sizeof(ringEntry{}))
	if most == 0 {
		return &CapabilityError{"KVM_CAP_DIRTY_LOG_RING", "dirty rings"}
	}
	if size > most {
		return fmt.Errorf("kvm: dirty ring of %d entries, the kernel takes at most %d", entries, most/int(unsafe.Sizeof(ringEntry{})))
	}
	enable := enableCap{cap: uint32(c), args: [4]uint64{uint64(size)}}
	if _, err := ioctl(vm.fd, "KVM_ENABLE_CAP", kvmEnableCap, unsafe.Pointer(&enable)); err != nil {
		return fmt.Errorf("kvm: dirty ring: %w", err)
	}
	vm.ring = size
	return nil
}

func mapRing(fd, size int) (*ring, error) {
	mem, err := unix.Mmap(fd, ringPageOffset*PageSize, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("kvm: dirty ring: %w", err)
	}
	return &ring{mem: mem, entries: unsafe.Slice((*ringEntry)(unsafe.Pointer(&mem[0])), size/int(unsafe.Sizeof(ringEntry{})))}, nil
}

// unmap unmaps the ring; for a nil ring it does nothing.
func (r *ring) unmap() error {
	if r == nil || r.mem == nil {
		return nil
	}
	mem := r.mem
	r.mem, r.entries = nil, nil
	return unix.Munmap(mem)
}

// drainRings makes room in the rings: a vCPU does not enter the guest while its
// own is nearly full.
func (vm *VM) drainRings() error {
	vm.logMu.Lock()
	defer vm.logMu.Unlock()
	return vm.harvest()
}

// harvest moves what the rings hold into the slots' bitmaps and makes KVM log those
// pages anew. A page that is written again before that is in the bitmap already.
// vm.logMu is held, vCPUs may run.
func (vm *VM) harvest() error {
	if vm.ring == 0 {
		return nil
	}
	vm.mu.Lock()
	vcpus := vm.vcpus
	vm.mu.Unlock()
	slots := *vm.slots.Load()
	var err error
	for _, v := range vcpus {
		r := v.ring
		for {
			e := &r.entries[r.next%uint64(len(r.entries))]
			if atomic.LoadUint32(&e.flags)&ringDirty == 0 {
				break
			}
			if s := findSlot(slots, e.slot); s != nil && e.offset < s.pages {
				s.log[e.offset/64] |= 1 << (e.offset % 64)
			} else if err == nil {
				err = fmt.Errorf("kvm: dirty ring of vCPU %d names page %d of slot %#x: %w", v.index, e.offset, e.slot, errUnknownSlot)
			}
			atomic.StoreUint32(&e.flags, ringReset)
			r.next++
			vm.unreset++
		}
	}
	return errors.Join(err, vm.resetRings())
}

// resetRings makes KVM log anew the pages that were taken from the rings. It blocks signals
// meanwhile, because newer kernels (seen with 6.18) break the call off when one is pending. To
// repeat the call until the count of entries is right does not help: some pages were then written
// unlogged. Go's runtime sends signals all the time.
func (vm *VM) resetRings() error {
	if vm.unreset == 0 {
		return nil
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var all, old unix.Sigset_t
	for i := range all.Val {
		all.Val[i] = ^uint64(0)
	}
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &all, &old); err != nil {
		return fmt.Errorf("kvm: dirty ring: %w", err)
	}
	n, err := ioctlValue(vm.fd, "KVM_RESET_DIRTY_RINGS", kvmResetDirtyRings, 0)
	if e := unix.PthreadSigmask(unix.SIG_SETMASK, &old, nil); err == nil {
		err = e
	}
	if err != nil {
		return fmt.Errorf("kvm: dirty ring: %w", err)
	}
	if n != vm.unreset {
		return fmt.Errorf("kvm: dirty ring: %d of %d entries were reset", n, vm.unreset)
	}
	vm.unreset = 0
	return nil
}

var errUnknownSlot = errors.New("slot was not added")

func findSlot(slots []*slot, id uint32) *slot {
	for _, s := range slots {
		if s.ID == id {
			return s
		}
	}
	return nil
}
