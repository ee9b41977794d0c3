//go:build linux && amd64

package kvm

import (
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/vmstate"
)

// A host may have the interrupt controllers itself and leave the local APICs to KVM; its
// VM's states are tried on a spare of the same kind.
func TestAnAdoptedVMWithLocalAPICsAloneIsSavedAndRestored(t *testing.T) {
	require.Usable(t, require.KVM, Probe)
	must := musts(t)
	kvm := must(openKVM())
	defer unix.Close(kvm)
	size := must(ioctlValue(kvm, "KVM_GET_VCPU_MMAP_SIZE", kvmGetVCPUMmapSize, 0))
	adopt := func() (*VCPU, *vmstate.Registry) {
		fd := must(ioctlValue(kvm, "KVM_CREATE_VM", kvmCreateVM, 0))
		t.Cleanup(func() { unix.Close(fd) })
		enable := enableCap{cap: capSplitIRQChip, args: [4]uint64{24}}
		if _, err := ioctl(fd, "KVM_ENABLE_CAP", kvmEnableCap, unsafe.Pointer(&enable)); err != nil {
			t.Skip("this KVM has no split controllers:", err)
		}
		vm, err := Attach(uintptr(fd), AttachConfig{KVM: kvm})
		must(0, err)
		t.Cleanup(func() { vm.Close() })
		vcpu := must(ioctlValue(fd, "KVM_CREATE_VCPU", kvmCreateVCPU, 0))
		t.Cleanup(func() { unix.Close(vcpu) })
		run, err := unix.Mmap(vcpu, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		must(0, err)
		t.Cleanup(func() { unix.Munmap(run) })
		v, err := vm.AddVCPU(uintptr(vcpu), run)
		must(0, err)
		cpuid, err := SupportedCPUID(0)
		must(0, err)
		must(0, v.SetCPUID(cpuid))
		reg := &vmstate.Registry{}
		must(0, vm.Register(reg))
		return v, reg
	}
	from, save := adopt()
	to, load := adopt()
	if !from.state.apic || from.vm.chips.hasChips {
		t.Fatal("the VM is of another kind")
	}
	regs, err := from.Regs()
	must(0, err)
	regs.R14 = 0x1234
	must(0, from.SetRegs(regs))
	must(0, load.LoadDevices(encode(t, save), nil))
	must(0, load.Commit())
	if got, err := to.Regs(); err != nil || got != regs {
		t.Errorf("the registers are %+v, were %+v (%v)", got, regs, err)
	}
}
