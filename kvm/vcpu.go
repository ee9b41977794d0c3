//go:build linux && amd64

package kvm

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"unsafe"

	gokvm "github.com/bobuhiro11/gokvm/kvm"

	"golang.org/x/sys/unix"
)

// Types of package gokvm with the layout of the kernel's structs.
type (
	// RunData is the part of struct kvm_run that says why a vCPU left the
	// guest.
	RunData = gokvm.RunData
	// Regs are a vCPU's general registers.
	Regs = gokvm.Regs
	// Sregs are a vCPU's special registers.
	Sregs = gokvm.Sregs
	// CPUIDEntry is one entry of a vCPU's CPUID table.
	CPUIDEntry = gokvm.CPUIDEntry2
)

// VCPU is one vCPU of a VM. All its methods but Run need it stopped (the VM
// paused, or Run not being called) and fail with ErrRunning otherwise. They may
// be called from any goroutine, and wait for each other.
type VCPU struct {
	vm     *VM
	index  int
	fd     int
	run    []byte // struct kvm_run and the data behind it
	data   *RunData
	state  *VCPUState // what was saved last; whoever encodes it may do so when the vCPU runs again
	staged *VCPUState // what is being loaded
	given  *given     // the CPUID table of the vCPU, which its states share
	ring   *ring      // nil: bitmaps

	// own is held by Run except while parked, and by other methods that touch the
	// vCPU. It is taken with TryLock under vm.mu: whoever has it may want that.
	own sync.Mutex

	// pending says that an exit has been handled and that KVM has still to complete its
	// instruction; only Run uses it.
	pending bool

	inRun  bool        // under vm.mu
	active bool        // in Run and not parked; under vm.mu
	tid    int         // its thread while active; under vm.mu
	kicked atomic.Bool // set under vm.mu
	inKVM  atomic.Bool // in KVM_RUN, or about to be

	held held // under own

	stop  stop
	shot  shot
	sync  synced
	slice slice
}

// AddVCPU adopts a vCPU: its descriptor and the mapping of its struct kvm_run
// (KVM_GET_VCPU_MMAP_SIZE bytes), which the caller goes on owning and which must outlive the VM.
// The order of the calls numbers the vCPUs in the saved state. The number that KVM_CREATE_VCPU
// was given is the APIC ID, and is 254 at most. CPUID, if not set by SetCPUID, must have been set
// before the first save. A VMM that asks for features of a guest whose state is large
// (ARCH_REQ_XCOMP_GUEST_PERM) does so before Attach: AddVCPU fails if the XSAVE area has grown
// since, because there would be no room for it.
func (vm *VM) AddVCPU(fd uintptr, run []byte) (*VCPU, error) {
	if len(run) < PageSize {
		return nil, fmt.Errorf("kvm: struct kvm_run mapped with %d bytes", len(run))
	}
	vm.mu.Lock() // over all calls to KVM: a Close waits for them
	defer vm.mu.Unlock()
	if vm.closed {
		return nil, ErrClosed
	}
	if size := capability(vm.fd, capXSave2); size > vm.sys.xsaveSize {
		return nil, fmt.Errorf("kvm: an XSAVE area of %d bytes, which had %d when the VM was adopted: want features for which a process has to ask, such as AMX, asked for before", size, vm.sys.xsaveSize)
	}
	state, err := NewVCPUState(vm.sys, int(fd))
	if err != nil {
		return nil, err
	}
	v := &VCPU{vm: vm, fd: int(fd), run: run, data: (*RunData)(unsafe.Pointer(&run[0])), state: state, given: state.given}
	v.sync = newSynced(vm.sys, run)
	v.shot.state = state.another()
	v.staged = state.another()
	v.staged.inMemory = vm.hasMemory
	if vm.ring > 0 {
		if v.ring, err = mapRing(v.fd, vm.ring); err != nil {
			return nil, err
		}
	}
	v.index = len(vm.vcpus)
	id := vcpuID(v.fd, v.index)
	if v.index == maxVCPUs || id >= maxVCPUs {
		return nil, errors.Join(fmt.Errorf("kvm: vCPU %d, whose APIC ID is %d: want at most %d vCPUs, with IDs of 8 bits", v.index, id, maxVCPUs), v.ring.unmap())
	}
	if v.index > 0 {
		v.staged.Follow(vm.vcpus[0].staged)
	}
	v.staged.spare = vm.spares.add(id)
	vm.vcpus = append(vm.vcpus, v)
	vm.watchOn(runtime.NumCPU())
	return v, nil
}

// vcpuID returns the number by which KVM knows a vCPU, which is its APIC ID; it is in
// the name of its descriptor. other is returned where that cannot be read.
func vcpuID(fd, other int) int {
	name, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return other
	}
	id, err := strconv.Atoi(strings.TrimPrefix(name, "anon_inode:kvm-vcpu:"))
	if err != nil || id < 0 {
		return other
	}
	return id
}

// Index returns the vCPU's place in the order of AddVCPU.
func (v *VCPU) Index() int { return v.index }

// stopped fails with ErrRunning unless the vCPU is parked and stays so until a
// Resume, or is not in Run at all. vm.mu is held.
func (v *VCPU) stopped() error {
	switch {
	case v.vm.closed:
		return ErrClosed
	case v.active, v.inRun && v.vm.pauses == 0:
		return ErrRunning
	}
	return nil
}

// hold locks own, which the caller unlocks, if the vCPU is stopped; it waits for other calls that have it.
// Otherwise it fails with ErrRunning, or ErrClosed.
func (v *VCPU) hold() error {
	for {
		v.vm.mu.Lock()
		err := v.stopped()
		held := err == nil && v.own.TryLock()
		v.vm.mu.Unlock()
		if err != nil || held {
			return err
		}
		v.awaitCalls() // the VM may be resumed meanwhile, or closed
	}
}

// awaitCalls returns when the calls that have the vCPU are over.
func (v *VCPU) awaitCalls() {
	v.own.Lock()
	defer v.own.Unlock()
}

// with calls fn with the descriptor of the vCPU while it is stopped.
func (v *VCPU) with(fn func(fd int) error) error {
	if err := v.hold(); err != nil {
		return err
	}
	defer v.own.Unlock()
	v.shot.fresh, v.held.ok = false, false
	if err := fn(v.fd); err != nil {
		return fmt.Errorf("kvm: vCPU %d: %w", v.index, err)
	}
	return nil
}

// Regs reads the general registers.
func (v *VCPU) Regs() (Regs, error) {
	var r Regs
	return r, v.with(func(fd int) error {
		_, err := ioctl(fd, "KVM_GET_REGS", kvmGetRegs, unsafe.Pointer(&r))
		return err
	})
}

// SetRegs writes the general registers.
func (v *VCPU) SetRegs(r Regs) error {
	return v.with(func(fd int) error {
		_, err := ioctl(fd, "KVM_SET_REGS", kvmSetRegs, unsafe.Pointer(&r))
		return err
	})
}

// Sregs reads the special registers.
func (v *VCPU) Sregs() (Sregs, error) {
	var r Sregs
	return r, v.with(func(fd int) error {
		_, err := ioctl(fd, "KVM_GET_SREGS", kvmGetSregs, unsafe.Pointer(&r))
		return err
	})
}

// SetSregs writes the special registers.
func (v *VCPU) SetSregs(r Sregs) error {
	return v.with(func(fd int) error {
		_, err := ioctl(fd, "KVM_SET_SREGS", kvmSetSregs, unsafe.Pointer(&r))
		if err == nil {
			v.setPriority(r.CR8)
		}
		return err
	})
}

// setPriority puts the task priority into struct kvm_run, for a vCPU whose local APIC the host
// emulates: KVM takes it from there whenever it enters the guest, whatever the special registers
// say. (KVM api, "cr8".)
func (v *VCPU) setPriority(cr8 uint64) {
	if !v.state.apic {
		v.data.CR8 = cr8
	}
}

// MSR reads a model-specific register, by its number. It fails with an MSRError where KVM
// has none of that number.
func (v *VCPU) MSR(index uint32) (uint64, error) {
	one := msrOne{n: 1, entry: gokvm.MSREntry{Index: index}}
	err := v.with(func(fd int) error {
		n, err := ioctl(fd, "KVM_GET_MSRS", kvmGetMSRs, unsafe.Pointer(&one))
		if err == nil && n != 1 {
			err = &MSRError{Index: index}
		}
		return err
	})
	return one.entry.Data, err
}

// SetRunnable makes a vCPU run from its present registers that otherwise would
// wait for another to start it.
func (v *VCPU) SetRunnable() error {
	return v.with(func(fd int) error {
		mp := gokvm.MPState{State: gokvm.MPStateRunnable}
		_, err := ioctl(fd, "KVM_SET_MP_STATE", kvmSetMPState, unsafe.Pointer(&mp))
		return err
	})
}

// CPUID returns the vCPU's CPUID table.
func (v *VCPU) CPUID() ([]CPUIDEntry, error) {
	var entries []CPUIDEntry
	return entries, v.with(func(fd int) error {
		err := v.state.readCPUID(fd)
		entries = slices.Clone(v.state.hasCPUID)
		return err
	})
}

// SetCPUID sets the vCPU's CPUID table, which must be done before its first Run.
func (v *VCPU) SetCPUID(entries []CPUIDEntry) error {
	return v.with(func(fd int) error {
		if len(entries) == 0 || len(entries) > maxCPUID {
			return fmt.Errorf("%d CPUID entries, want 1 to %d", len(entries), maxCPUID)
		}
		if err := checkAPICID(entries, v.staged.spare.id); err != nil {
			return err
		}
		table := &cpuidTable{n: uint32(len(entries))}
		copy(table.entries[:], entries)
		err := v.state.setCPUID(fd, table)
		if err == nil {
			v.given.told.Store(true)
		}
		return err
	})
}

// kick makes an active vCPU leave the guest, or not enter it, and look for work. The flag
// immediate_exit covers the time before KVM_RUN looks at it, the signal the time after. A vCPU
// that is not in KVM_RUN is sent no signal, which would disturb whatever its thread waits in. The
// two sides cannot miss each other: between what one writes and what it then reads (here the
// flag, then inKVM; there inKVM, then the flag) stands an atomic store, which no later load
// overtakes. SIGURG is the signal with which Go's runtime preempts its own threads: its handler
// is there, and does not mind one more. vm.mu is held.
func (v *VCPU) kick() {
	v.data.ImmediateExit = 1
	v.kicked.Store(true)
	if v.active && v.inKVM.Load() {
		unix.Tgkill(unix.Getpid(), v.tid, unix.SIGURG)
	}
}
