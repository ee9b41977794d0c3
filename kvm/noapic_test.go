//go:build linux && amd64

package kvm

import (
	"context"
	"errors"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/vmstate"
)

// A host may have all of the interrupt controllers itself, the local APICs too. CR8, their
// task priority, reaches KVM by struct kvm_run then: what is set, or loaded, is what the
// guest runs with.
func TestAnAdoptedVMWithoutAnAPICKeepsItsTaskPriority(t *testing.T) {
	require.Usable(t, require.KVM, Probe)
	must := musts(t)
	kvm := must(openKVM())
	defer unix.Close(kvm)
	fd := must(ioctlValue(kvm, "KVM_CREATE_VM", kvmCreateVM, 0))
	defer unix.Close(fd)
	must(ioctlValue(fd, "KVM_SET_TSS_ADDR", kvmSetTSSAddr, tss))
	vm, err := Attach(uintptr(fd), AttachConfig{KVM: kvm})
	must(0, err)
	defer vm.Close()
	mem, err := unix.Mmap(-1, 0, PageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	must(0, err)
	defer unix.Munmap(mem)
	copy(mem, []byte{0xe6, 0x99, 0xeb, 0xfc}) // OUT 0x99, AL; JMP
	must(0, vm.AddSlot(Slot{Block: RAMBlock, Mem: mem}))
	vcpu := must(ioctlValue(fd, "KVM_CREATE_VCPU", kvmCreateVCPU, 0))
	defer unix.Close(vcpu)
	run, err := unix.Mmap(vcpu, 0, must(RunSize()), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	must(0, err)
	defer unix.Munmap(run)
	v, err := vm.AddVCPU(uintptr(vcpu), run)
	must(0, err)
	cpuid, err := SupportedCPUID(0)
	must(0, err)
	must(0, v.SetCPUID(cpuid))
	reg := &vmstate.Registry{}
	must(0, vm.Register(reg))
	if v.state.apic {
		t.Fatal("it has an APIC")
	}

	set := func(cr8 uint64) {
		t.Helper()
		s, err := v.Sregs()
		must(0, err)
		s.CS.Base, s.CS.Selector, s.CR8 = 0, 0, cr8
		must(0, errors.Join(v.SetSregs(s), v.SetRegs(Regs{RFLAGS: 2})))
	}
	ran := errors.New("ran")
	priority := func() uint64 {
		t.Helper()
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := v.Run(ctx, v.Dispatch(Handler{IO: func(*IO) error { return ran }})); !errors.Is(err, ran) {
			t.Fatal(err)
		}
		s, err := v.Sregs()
		must(0, err)
		return s.CR8
	}
	set(5)
	if got := priority(); got != 5 {
		t.Errorf("CR8 is %d, 5 was set", got)
	}
	state := encode(t, reg)
	set(9)
	if got := priority(); got != 9 {
		t.Errorf("CR8 is %d, 9 was set", got)
	}
	must(0, errors.Join(reg.LoadDevices(state, nil), reg.Commit()))
	if got := priority(); got != 5 {
		t.Errorf("CR8 is %d, 5 was loaded", got)
	}
}
