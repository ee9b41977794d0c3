//go:build linux && amd64

package kvm

import (
	"fmt"
	"runtime"
	"unsafe"

	gokvm "github.com/bobuhiro11/gokvm/kvm"
)

// manual says whether reading KVM's bitmap leaves the bits set, so that a second call has to
// clear them. The maker of the VM may have chosen that for the VM
// (KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2), and KVM does not tell.
type manual uint8

const (
	manualUnknown manual = iota
	manualNo
	manualYes
)

// enableManual makes reading KVM's bitmaps leave the bits set, so that pages can stay
// writable. It is for a VM that this package has made or whose log it owns. Reading and then
// clearing takes as long as reading that clears.
func (vm *VM) enableManual() error {
	const enableOnly = 1 // the log begins empty, as without
	if vm.ring > 0 || capability(vm.fd, capManualProtect)&enableOnly == 0 {
		return nil
	}
	enable := enableCap{cap: capManualProtect, args: [4]uint64{enableOnly}}
	if _, err := ioctl(vm.fd, "KVM_ENABLE_CAP", kvmEnableCap, unsafe.Pointer(&enable)); err != nil {
		return err
	}
	vm.manual = manualYes
	return nil
}

// clearChunk is how many pages are cleared in one call, while KVM holds a lock that the
// vCPUs want: a multiple of 64, as KVM asks.
const clearChunk = 1 << 18

// takeDirtyLog adds the pages in KVM's bitmap of a slot to part, and makes KVM forget them, but
// for the pages that KeepDirty has named: a page that KVM does not forget stays writable.
//
// Whether reading alone makes KVM forget pages is found out with the first bitmap that is not
// empty, by reading again. If a page of the first reading is not in the second, reading makes KVM
// forget, and the pages that only the second has are added. If all pages are there again, either
// reading does not make KVM forget, or the guest has written them again. Then they are cleared,
// which is right in both cases, since they are copied after that.
func (vm *VM) takeDirtyLog(s *slot, part []uint64) error {
	if err := vm.readDirtyLog(s, s.log); err != nil {
		return err
	}
	err := vm.chooseManual(s)
	add(part, s.log) // even if that failed: KVM may have forgotten them
	if err != nil {
		return err
	}
	if s.manual == manualNo {
		return nil
	}
	if s.keeps {
		for i, w := range s.log {
			if w != 0 {
				s.log[i] = w &^ s.keep[i]
			}
		}
	}
	return vm.clearDirtyLog(s)
}

// chooseManual finds out whether reading clears the bitmap of a slot, which was just read into
// the slot's log, unless that is known or the bitmap is empty.
func (vm *VM) chooseManual(s *slot) error {
	if s.manual == manualUnknown {
		some := uint64(0)
		for _, w := range s.log {
			some |= w
		}
		if some == 0 {
			return nil
		}
		if s.again == nil {
			s.again = make([]uint64, len(s.log))
		}
		if err := vm.readDirtyLog(s, s.again); err != nil {
			return err
		}
		gone := uint64(0)
		for i, w := range s.again {
			gone |= s.log[i] &^ w
			s.log[i] |= w
		}
		if gone != 0 {
			s.manual, s.again = manualNo, nil
			return nil
		}
		if vm.stopped() == nil { // nobody can have written them again
			s.manual, s.again = manualYes, nil
		}
	}
	return nil
}

// readDirtyLog reads KVM's bitmap of a slot into words. No error is taken for an empty bitmap:
// ENOENT, for one, says that the slot has no dirty log.
func (vm *VM) readDirtyLog(s *slot, words []uint64) error {
	request := gokvm.DirtyLog{Slot: s.ID, BitMap: uint64(uintptr(unsafe.Pointer(&words[0])))}
	_, err := ioctl(vm.fd, "KVM_GET_DIRTY_LOG", kvmGetDirtyLog, unsafe.Pointer(&request))
	runtime.KeepAlive(words) // the kernel writes through BitMap
	if err != nil {
		return fmt.Errorf("kvm: slot %d: %w", s.ID, err)
	}
	return nil
}

// clearLog is struct kvm_clear_dirty_log.
type clearLog struct {
	slot   uint32
	pages  uint32 // a multiple of 64, unless the slot ends there
	first  uint64 // a multiple of 64
	bitmap uint64
}

// clearDirtyLog makes KVM forget the pages in the slot's scratch and log them anew,
// without a call for stretches in which there are none.
func (vm *VM) clearDirtyLog(s *slot) error {
	const words = clearChunk / 64
	for at := 0; at < len(s.log); at += words {
		chunk := s.log[at:min(at+words, len(s.log))]
		from, to := 0, len(chunk)
		for from < to && chunk[from] == 0 {
			from++
		}
		for from < to && chunk[to-1] == 0 {
			to--
		}
		if from == to {
			continue
		}
		first := uint64(at+from) * 64
		request := clearLog{slot: s.ID, first: first, pages: uint32(min(uint64(to-from)*64, s.pages-first)),
			bitmap: uint64(uintptr(unsafe.Pointer(&chunk[from])))}
		_, err := ioctl(vm.fd, "KVM_CLEAR_DIRTY_LOG", kvmClearDirtyLog, unsafe.Pointer(&request))
		runtime.KeepAlive(s)
		if err != nil {
			return fmt.Errorf("kvm: slot %d: %w", s.ID, err)
		}
	}
	return nil
}
