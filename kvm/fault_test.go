//go:build linux && amd64

package kvm

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/vmstate"
)

// adoptedHere is a VM of one vCPU and 64 pages whose log KVM clears as it is read, with the mapping of
// the vCPU's struct kvm_run.
func adoptedHere(t *testing.T) (vm *VM, vcpu int, run []byte) {
	t.Helper()
	require.Usable(t, require.KVM, Probe)
	must := musts(t)
	kvm := must(openKVM())
	t.Cleanup(func() { unix.Close(kvm) })
	fd := must(ioctlValue(kvm, "KVM_CREATE_VM", kvmCreateVM, 0))
	t.Cleanup(func() { unix.Close(fd) })
	must(ioctlValue(fd, "KVM_CREATE_IRQCHIP", kvmCreateIRQChip, 0))
	vm, err := Attach(uintptr(fd), AttachConfig{KVM: kvm})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { vm.Close() })
	mapping := func(fd, size, flags int) []byte {
		mem, err := unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, flags)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Munmap(mem) })
		return mem
	}
	if err := vm.AddSlot(Slot{Block: RAMBlock, Mem: mapping(-1, 64*PageSize, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)}); err != nil {
		t.Fatal(err)
	}
	vcpu = must(ioctlValue(fd, "KVM_CREATE_VCPU", kvmCreateVCPU, 0))
	t.Cleanup(func() { unix.Close(vcpu) })
	return vm, vcpu, mapping(vcpu, must(RunSize()), unix.MAP_SHARED)
}

// What KVM has said of a log and forgotten is reported although the second reading, which finds out
// whether it forgets, fails.
func TestNoPageIsLostWhereALogCannotBeReadAgain(t *testing.T) {
	vm, vcpu, run := adoptedHere(t)
	v, err := vm.AddVCPU(uintptr(vcpu), run)
	if err != nil {
		t.Fatal(err)
	}
	if err := vm.StartDirtyLog(); err != nil {
		t.Fatal(err)
	}
	const page = 5
	if v.state.writeMSR(vcpu, msrWallClockNew, page*PageSize) != nil && v.state.writeMSR(vcpu, msrWallClock, page*PageSize) != nil {
		t.Skip("this KVM writes no wall clock")
	}
	nowhere, err := unix.Mmap(-1, 0, PageSize, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(nowhere)
	s := (*vm.slots.Load())[0]
	s.again = unsafe.Slice((*uint64)(unsafe.Pointer(&nowhere[0])), len(s.log))
	bitmap := make([]uint64, 1)
	if err := vm.ReadDirty(RAMBlock, bitmap); err == nil {
		t.Fatal("a log was read to where nothing can be written")
	}
	s.again = nil
	if err := vm.ReadDirty(RAMBlock, bitmap); err != nil {
		t.Fatal(err)
	}
	if bitmap[0] != 1<<page {
		t.Errorf("pages %#x are reported, want page %d", bitmap[0], page)
	}
}

// KVM writes as much of a vCPU's XSAVE area as there is. A vCPU of which that has become more than when the
// VM was adopted is refused.
func TestAVCPUWhoseStateHasGrownIsRefused(t *testing.T) {
	vm, vcpu, run := adoptedHere(t)
	size := capability(vm.fd, capXSave2)
	if size == 0 {
		t.Skip("this KVM has no KVM_CAP_XSAVE2")
	}
	vm.sys.xsaveSize = size - 64
	if _, err := vm.AddVCPU(uintptr(vcpu), run); err == nil || !strings.Contains(err.Error(), "AMX") {
		t.Errorf("got %v, want a word of what to do", err)
	}
	vm.sys.xsaveSize = size
	if _, err := vm.AddVCPU(uintptr(vcpu), run); err != nil {
		t.Error(err)
	}
}

// A slot whose log KVM does not switch keeps no other from being off: neither when the log of all was to be
// switched on, nor off.
func TestALogThatCannotBeSwitchedLeavesTheOthersOff(t *testing.T) {
	vm, _, _ := adoptedHere(t)
	good := *vm.slots.Load()
	bad := &slot{Slot: good[0].Slot}
	bad.ID, bad.GPA = 1, 1 // not on a page
	off := func() bool {
		err := vm.readDirtyLog(good[0], good[0].log)
		if err != nil && !errors.Is(err, unix.ENOENT) {
			t.Fatal(err)
		}
		return err != nil
	}
	slots := []*slot{good[0], bad}
	vm.slots.Store(&slots)
	if err := vm.StartDirtyLog(); err == nil {
		t.Fatal("a slot was switched that KVM does not take")
	}
	if !off() {
		t.Error("the log of the first slot stays on, though that of the VM is off")
	}
	vm.slots.Store(&good)
	if err := vm.StartDirtyLog(); err != nil || off() {
		t.Fatal("the log is not on:", err)
	}
	slots = []*slot{bad, good[0]}
	vm.slots.Store(&slots)
	if err := vm.StopDirtyLog(); err == nil || !off() {
		t.Errorf("got %v; the log of the second slot is off: %v", err, off())
	}
	vm.slots.Store(&good)
}

// Where a VMM has KVM keep to the CPUID of a vCPU, the MSRs of KVM's own are there from when that is set, on
// kernels that hide them until then (6.1 does; here the test hides them). The clock of a vCPU that gets its
// CPUID after it was added is saved, and loaded into another such.
func TestTheClockOfAVCPUThatIsHeldToItsCPUIDMoves(t *testing.T) {
	const clock, at = 0x4b564d01, 5*PageSize | 1
	made := func() (*VM, *VCPU) {
		vm, vcpu, run := adoptedHere(t)
		v, err := vm.AddVCPU(uintptr(vcpu), run)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range []*VCPUState{v.state, v.shot.state, v.staged} {
			s.msrs = slices.DeleteFunc(s.msrs, func(i uint32) bool { return i>>8 == clock>>8 || i == 0x12 })
		}
		table, err := SupportedCPUID(0)
		if err = errors.Join(err, v.SetCPUID(table)); err != nil {
			t.Fatal(err)
		}
		return vm, v
	}
	registry := func(vm *VM) *vmstate.Registry {
		reg := &vmstate.Registry{}
		if err := vm.Register(reg); err != nil {
			t.Fatal(err)
		}
		return reg
	}
	a, v := made()
	if err := v.state.writeMSR(v.fd, clock, at); err != nil {
		t.Fatal(err)
	}
	state := encode(t, registry(a))
	if got, ok := v.state.savedMSR(clock); !ok || got != at {
		t.Errorf("saved as %#x, there: %v, want %#x", got, ok, at)
	}
	other, v := made()
	reg := registry(other)
	if err := errors.Join(reg.LoadDevices(state, nil), reg.Commit()); err != nil {
		t.Fatal(err)
	}
	if got, ok, err := v.state.readMSR(v.fd, clock); !ok || got != at {
		t.Errorf("loaded as %#x, there: %v, %v, want %#x", got, ok, err, at)
	}
}

// Who has asked for the VM's TSCError may read it while states are loaded.
func TestATSCErrorIsNotWrittenOnceItIsOut(t *testing.T) {
	vm := &VM{}
	v := &VCPU{vm: vm, index: 1, staged: &VCPUState{}}
	v.staged.tsc.err = &TSCError{Want: 1}
	vm.noteTSC(v)
	has, done := make(chan struct{}), make(chan string)
	go func() {
		err := vm.TSCError()
		close(has)
		done <- err.Error()
	}()
	<-has
	vm.noteTSC(v) // what it has is read meanwhile
	if got := <-done; !strings.Contains(got, "vCPU 1") {
		t.Error(got)
	}
}
