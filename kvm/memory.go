//go:build linux && amd64

package kvm

import (
	"errors"
	"fmt"
	"sync/atomic"
	"unsafe"

	gokvm "github.com/bobuhiro11/gokvm/kvm"
)

// Flags of a slot (linux/kvm.h).
const (
	memLogDirtyPages = 1 << 0
	memReadOnly      = 1 << 1
)

// offsetUnit is the memory for which one word of a dirty bitmap stands.
const offsetUnit = 64 * PageSize

// slot is a slot of the VM, and what is known of its dirty pages, in bitmaps with a bit for each
// page.
type slot struct {
	Slot
	pages  uint64
	log    []uint64    // vm.logMu: scratch for KVM_GET_DIRTY_LOG; with rings, pages harvested and not yet read
	again  []uint64    // vm.logMu: more scratch, while manual is not known
	manual manual      // vm.logMu
	keep   []uint64    // vm.logMu: pages that stay writable when they are read; see KeepDirty
	keeps  bool        // vm.logMu: there are any
	marks  []uint64    // atomic: pages that the host wrote
	marked atomic.Bool // marks may not be empty
}

// AddSlot gives the VM memory, or adopts a slot that it has: the same ID, address
// and mapping change nothing. The slot's dirty log is on if the VM's is (see
// StartDirtyLog). The caller goes on owning the mapping.
func (vm *VM) AddSlot(s Slot) error {
	if len(s.Mem) == 0 || uintptr(unsafe.Pointer(&s.Mem[0]))%PageSize != 0 || len(s.Mem)%PageSize != 0 ||
		s.GPA%PageSize != 0 || s.Offset%offsetUnit != 0 || s.ID > 0xffff {
		return fmt.Errorf("kvm: slot %d: %d bytes at %#x, offset %#x in block %q: not aligned, or no such slot", s.ID, len(s.Mem), s.GPA, s.Offset, s.Block)
	}
	n := uint64(len(s.Mem)) / PageSize
	words := (n + 63) / 64
	next := &slot{Slot: s, pages: n, manual: vm.manual, log: make([]uint64, words), marks: make([]uint64, words)}
	vm.logMu.Lock()
	defer vm.logMu.Unlock()
	if vm.isClosed() {
		return ErrClosed
	}
	old := *vm.slots.Load()
	for _, o := range old {
		if o.ID == s.ID {
			return fmt.Errorf("kvm: slot %d is there already", s.ID)
		}
	}
	if err := vm.setSlot(next, vm.logOn); err != nil {
		return err
	}
	slots := append(append([]*slot(nil), old...), next)
	vm.slots.Store(&slots)
	return nil
}

func (vm *VM) setSlot(s *slot, log bool) error {
	region := gokvm.UserspaceMemoryRegion{
		Slot:          s.ID,
		GuestPhysAddr: s.GPA,
		MemorySize:    uint64(len(s.Mem)),
		UserspaceAddr: uint64(uintptr(unsafe.Pointer(&s.Mem[0]))),
	}
	if log {
		region.Flags |= memLogDirtyPages
	}
	if s.ReadOnly {
		region.Flags |= memReadOnly
	}
	if _, err := ioctl(vm.fd, "KVM_SET_USER_MEMORY_REGION", kvmSetUserMemoryRegion, unsafe.Pointer(&region)); err != nil {
		return fmt.Errorf("kvm: slot %d: %w", s.ID, err)
	}
	return nil
}

// StartDirtyLog turns the dirty log of every slot on. Writes before are not
// known; writes after are reported by ReadDirty. The vCPUs may run. The next write to
// each page costs the guest a fault.
func (vm *VM) StartDirtyLog() error {
	vm.logMu.Lock()
	defer vm.logMu.Unlock()
	if vm.isClosed() {
		return ErrClosed
	}
	if vm.logOn {
		return nil
	}
	slots := *vm.slots.Load()
	for i, s := range slots {
		if err := vm.setSlot(s, true); err != nil {
			for _, s := range slots[:i] { // a log that nobody reads would cost the guest faults
				err = errors.Join(err, vm.setSlot(s, false))
			}
			return err
		}
		s.manual = vm.manual
	}
	vm.logOn = true
	return nil
}

// StopDirtyLog turns the dirty log of every slot off; what it held is forgotten. If it fails for
// a slot it goes on with the others and returns the error.
func (vm *VM) StopDirtyLog() error {
	vm.logMu.Lock()
	defer vm.logMu.Unlock()
	return vm.stopLog()
}

// stopLog does what StopDirtyLog does. logMu is held.
func (vm *VM) stopLog() error {
	if !vm.logOn {
		return nil
	}
	vm.logOn = false
	err := vm.harvest()
	for _, s := range *vm.slots.Load() {
		err = errors.Join(err, vm.setSlot(s, false))
		clear(s.log)
		s.keeps = false
	}
	return err
}

// KeepDirty names the pages of a RAM block that ReadDirty leaves writable from now on, in
// place of those named before; nil names none. A page that vCPUs have written and that stays
// writable is reported by every ReadDirty until it is not named any more, and once after
// that. It makes a VM a ram.DirtyKeeper.
//
// It returns false, and forgets the pages named before, where reading KVM's log makes all
// pages read-only again: with dirty rings, and where nobody has enabled
// KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2. Create does, and Attach with AttachConfig.OwnLog. Of
// another VM it is not known until a page that was written is read while the vCPUs stand
// still. It also returns false while the dirty log is off, and for a block that no slot
// shows.
func (vm *VM) KeepDirty(block string, pages []uint64) bool {
	vm.logMu.Lock()
	defer vm.logMu.Unlock()
	keeps := false
	for _, s := range *vm.slots.Load() {
		if s.Block != block {
			continue
		}
		s.keeps = false
		first := s.Offset / offsetUnit
		if !vm.logOn || vm.ring > 0 || s.manual != manualYes || uint64(len(pages)) < first+uint64(len(s.log)) {
			continue
		}
		if s.keep == nil {
			s.keep = make([]uint64, len(s.log))
		}
		copy(s.keep, pages[first:])
		s.keeps, keeps = true, true
	}
	return keeps
}

// ReadDirty adds to bitmap the pages of a RAM block that vCPUs wrote, or that
// MarkDirty named, since the last call, and forgets them: bit i of word i/64
// stands for page i of the block. Pages written while it works are reported now
// or next time; none is missed. It fails with ErrLogOff while the dirty log is
// off. On an error bitmap may have some of the pages, and the rest is still to
// be read. Pages that KeepDirty has named may be reported again without having been
// written.
func (vm *VM) ReadDirty(block string, bitmap []uint64) error {
	vm.logMu.Lock()
	defer vm.logMu.Unlock()
	if !vm.logOn {
		return ErrLogOff
	}
	if err := vm.harvest(); err != nil {
		return err
	}
	found := false
	for _, s := range *vm.slots.Load() {
		if s.Block != block {
			continue
		}
		found = true
		first := s.Offset / offsetUnit
		if uint64(len(bitmap)) < first+uint64(len(s.log)) {
			return fmt.Errorf("kvm: bitmap of %d words for block %q, want %d", len(bitmap), block, first+uint64(len(s.log)))
		}
		part := bitmap[first:][:len(s.log)]
		if vm.ring == 0 {
			if err := vm.takeDirtyLog(s, part); err != nil {
				return err
			}
		} else {
			add(part, s.log)
			clear(s.log)
		}
		if s.marked.Swap(false) {
			for i := range s.marks {
				if atomic.LoadUint64(&s.marks[i]) != 0 {
					part[i] |= atomic.SwapUint64(&s.marks[i], 0)
				}
			}
		}
	}
	if !found {
		return fmt.Errorf("kvm: no slot shows block %q", block)
	}
	return nil
}

// add sets in part the bits that are set in log. Both are of one length; few bits are set, so
// eight words at a time are passed over if they have none.
func add(part, log []uint64) {
	i := 0
	for ; i+8 <= len(log); i += 8 {
		w := log[i : i+8 : i+8]
		if w[0]|w[1]|w[2]|w[3]|w[4]|w[5]|w[6]|w[7] != 0 {
			for j := range w {
				part[i+j] |= w[j]
			}
		}
	}
	for ; i < len(log); i++ {
		part[i] |= log[i]
	}
}

// MarkDirty says that the host wrote n bytes of guest memory at a guest-physical
// address: a device's DMA, a loader. It is called after the write, and before the
// device counts as stopped for a pause. Bytes outside all slots are ignored. It
// takes no lock, allocates nothing, and may be called while ReadDirty works.
func (vm *VM) MarkDirty(gpa, n uint64) {
	if n == 0 {
		return
	}
	last := gpa + n - 1
	if last < gpa {
		last = ^uint64(0)
	}
	for _, s := range *vm.slots.Load() {
		end := s.GPA + uint64(len(s.Mem)) - 1
		if gpa > end || last < s.GPA {
			continue
		}
		from, to := (max(gpa, s.GPA)-s.GPA)/PageSize, (min(last, end)-s.GPA)/PageSize
		for p := from; p <= to; {
			// The bits of one word from p on.
			mask := ^uint64(0) << (p % 64)
			if next := p | 63; next >= to {
				mask &= ^uint64(0) >> (63 - to%64)
			}
			atomic.OrUint64(&s.marks[p/64], mask)
			p = p | 63 + 1
		}
		s.marked.Store(true)
	}
}

// memoryAt returns the memory that a slot shows from a guest-physical address on, nil if
// none does.
func (vm *VM) memoryAt(gpa uint64) []byte {
	for _, s := range *vm.slots.Load() {
		if gpa >= s.GPA && gpa-s.GPA < uint64(len(s.Mem)) {
			return s.Mem[gpa-s.GPA:]
		}
	}
	return nil
}

// hasMemory reports whether a slot shows that guest-physical address.
func (vm *VM) hasMemory(gpa uint64) bool { return vm.memoryAt(gpa) != nil }
