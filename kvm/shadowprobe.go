//go:build linux && amd64

package kvm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"unsafe"

	gokvm "github.com/bobuhiro11/gokvm/kvm"
	"golang.org/x/sys/unix"
)

// keepShadows asks keepsShadows about the KVM whose descriptor the spares keep.
func (p *spares) keepShadows() (bool, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.kvm < 0 {
		return false, ErrClosed
	}
	return keepsShadows(p.kvm)
}

// keepsShadows reports whether a KVM keeps copies of a guest's page tables: by what its
// module says, or, of a module that does not say so, by what a guest sees.
func keepsShadows(kvm int) (bool, error) {
	for _, name := range []string{"kvm_intel/parameters/ept", "kvm_amd/parameters/npt"} {
		said, err := os.ReadFile("/sys/module/" + name)
		if err != nil {
			continue
		}
		switch string(bytes.TrimSpace(said)) {
		case "Y", "1":
			return false, nil
		case "N", "0":
			return true, nil
		}
	}
	return seesStaleTables(kvm)
}

// seesStaleTables runs a guest that reads a word through its page table, has the host
// change the table, and reports whether the guest still reads the old one, although all
// that setSregs can do has been done.
func seesStaleTables(kvm int) (stale bool, err error) {
	const (
		pml4, pdpt, pd, pt, program, first, second, task, end = 0x1000, 0x2000, 0x3000, 0x4000, 0x5000, 0x6000, 0x7000, 0x8000, 0x9000

		window, device = 0xa000, 0xb000 // where the guest sees a word, and writes what it has read
		table, page    = 0x27, 0x67     // present, writable, for CPL3, accessed; a page that is dirty too
		nowhere        = 0xe0000000     // no memory: each write is an exit
		old, young     = 0x1111, 0x2222 // the words
		turns, changes = 3, 4           // reads each time, the later of which run natively wherever anything does
	)
	var undo []func() error
	defer func() {
		for i := len(undo) - 1; i >= 0; i-- {
			err = errors.Join(err, undo[i]())
		}
	}()
	vm, err := ioctlValue(kvm, "KVM_CREATE_VM", kvmCreateVM, 0)
	if err != nil {
		return false, err
	}
	undo = append(undo, func() error { return unix.Close(vm) })
	address := uint64(identityMap)
	if _, err := ioctl(vm, "KVM_SET_IDENTITY_MAP_ADDR", kvmSetIdentityMapAddr, unsafe.Pointer(&address)); err != nil {
		return false, err
	}
	if _, err := ioctlValue(vm, "KVM_SET_TSS_ADDR", kvmSetTSSAddr, tss); err != nil {
		return false, err
	}
	mem, err := unix.Mmap(-1, 0, end, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return false, err
	}
	undo = append(undo, func() error { return unix.Munmap(mem) })
	le := binary.LittleEndian
	le.PutUint64(mem[pml4:], pdpt|table)
	le.PutUint64(mem[pdpt:], pd|table)
	le.PutUint64(mem[pd:], pt|table)
	for at, to := range map[int]uint64{program: program, window: first, device: nowhere} {
		le.PutUint64(mem[pt+at/PageSize*8:], to|page)
	}
	copy(mem[program:], []byte{0x8b, 0x03, 0x89, 0x01, 0xeb, 0xfa}) // MOV EAX, [RBX]; MOV [RCX], EAX; JMP
	le.PutUint32(mem[first:], old)
	le.PutUint32(mem[second:], young)
	region := gokvm.UserspaceMemoryRegion{MemorySize: end, UserspaceAddr: uint64(uintptr(unsafe.Pointer(&mem[0])))}
	if _, err := ioctl(vm, "KVM_SET_USER_MEMORY_REGION", kvmSetUserMemoryRegion, unsafe.Pointer(&region)); err != nil {
		return false, err
	}

	vcpu, err := ioctlValue(vm, "KVM_CREATE_VCPU", kvmCreateVCPU, 0)
	if err != nil {
		return false, err
	}
	undo = append(undo, func() error { return unix.Close(vcpu) })
	size, err := ioctlValue(kvm, "KVM_GET_VCPU_MMAP_SIZE", kvmGetVCPUMmapSize, 0)
	if err != nil {
		return false, err
	}
	run, err := unix.Mmap(vcpu, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return false, err
	}
	undo = append(undo, func() error { return unix.Munmap(run) })
	cpuid, err := supportedCPUID(kvm)
	if err != nil {
		return false, err
	}
	has := &cpuidTable{}
	has.n = uint32(copy(has.entries[:], cpuidOf(cpuid, 0)))
	if _, err := ioctl(vcpu, "KVM_SET_CPUID2", kvmSetCPUID2, unsafe.Pointer(has)); err != nil {
		return false, err
	}
	s := &VCPUState{sys: &System{}}
	if err := s.getSregs(vcpu); err != nil {
		return false, err
	}
	// CPL3 in 64-bit mode, where a KVM that emulates the supervisor's instructions runs
	// the guest's natively. (Intel SDM volume 3, 3.4.5 and 4.1.)
	r := &s.sregs
	data := gokvm.Segment{Limit: 0xffffffff, Selector: 0x23, Typ: 3, Present: 1, DPL: 3, DB: 1, S: 1, G: 1}
	r.CS = gokvm.Segment{Limit: 0xffffffff, Selector: 0x2b, Typ: 11, Present: 1, DPL: 3, S: 1, L: 1, G: 1}
	r.DS, r.ES, r.FS, r.GS, r.SS = data, data, data, data, data
	r.TR = gokvm.Segment{Base: task, Limit: 103, Selector: 0x30, Typ: 11, Present: 1}
	r.LDT = gokvm.Segment{Unusable: 1}
	r.CR0, r.CR3, r.CR4, r.EFER = cr0PE|1<<4|1<<5|cr0PG, pml4, cr4PAE, eferLME|eferLMA
	regs := gokvm.Regs{RIP: program, RBX: window, RCX: device, RFLAGS: 2}
	if err := s.setSregs(vcpu); err != nil {
		return false, err
	}
	if _, err := ioctl(vcpu, "KVM_SET_REGS", kvmSetRegs, unsafe.Pointer(&regs)); err != nil {
		return false, err
	}

	d := (*RunData)(unsafe.Pointer(&run[0]))
	reads := func() (word uint32, err error) {
		for n := 0; n < turns; {
			switch errno := enterGuest(vcpu); errno {
			case unix.EINTR, unix.EAGAIN:
				continue
			case 0:
			default:
				return 0, &os.SyscallError{Syscall: "ioctl KVM_RUN", Err: errno}
			}
			switch d.ExitReason {
			case exitIntr:
				continue
			case exitMMIO:
			default:
				return 0, &ExitError{Reason: d.ExitReason}
			}
			word = le.Uint32((*mmioExit)(unsafe.Pointer(&d.Data)).data[:])
			n++
		}
		return word, nil
	}
	word, err := reads()
	if err == nil && word != old {
		err = fmt.Errorf("kvm: a guest reads %#x where %#x is", word, old)
	}
	// A host short of memory may drop a copy by itself, but not each time.
	for i := 0; i < changes && !stale && err == nil; i++ {
		to, there := uint64(second), uint32(young)
		if i%2 > 0 {
			to, there = first, old
		}
		le.PutUint64(mem[pt+window/PageSize*8:], to|page)
		if err = s.setSregs(vcpu); err == nil {
			word, err = reads()
		}
		stale = word != there
	}
	return stale && err == nil, err
}
