//go:build linux && amd64

package kvm

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/gocolo/lockstep/internal/leaks"
	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate"
)

// refusal is an error that no step here fails with by itself.
const refusal = unix.EXFULL

// request is a request to KVM, and with a value the one whose argument that is.
func request(number uint32, value ...uint32) leaks.Call {
	args := map[int]uint32{1: number}
	for _, v := range value {
		args[2] = v
	}
	return leaks.Call{Number: unix.SYS_IOCTL, Args: args}
}

// Whatever step the kernel refuses, the VM is not made, or it is made without what that step was for; and all that
// the steps before took is given back.
func TestAVMOfWhichTheKernelRefusesAStepLeavesNothingBehind(t *testing.T) {
	require.Usable(t, require.KVM, Probe)
	create := func(ring int) error {
		vm, err := Create(Config{VCPUs: 2, Memory: 2 * leaks.LargeBytes, DirtyRing: ring})
		if err != nil {
			return err
		}
		return vm.Close()
	}
	must := musts(t)
	must(0, create(0))
	before := leaks.Now(t)
	for _, c := range []struct {
		what     string
		call     leaks.Call
		required bool
	}{
		{"the VM", request(kvmCreateVM), true},
		{"the identity map", request(kvmSetIdentityMapAddr), true},
		{"the task state segment", request(kvmSetTSSAddr), true},
		{"the interrupt controllers", request(kvmCreateIRQChip), true},
		{"the timer", request(kvmCreatePIT2), true},
		{"what KVM can do", request(kvmCheckExtension), true},
		{"what KVM is to do", request(kvmEnableCap), false},
		{"the list of MSRs", request(kvmGetMSRIndexList), true},
		{"a descriptor for trials", leaks.Call{Number: unix.SYS_FCNTL, Args: map[int]uint32{1: unix.F_DUPFD_CLOEXEC}}, true},
		{"the guest's memory", leaks.Call{Number: unix.SYS_MMAP, Args: map[int]uint32{3: unix.MAP_PRIVATE | unix.MAP_ANONYMOUS | unix.MAP_NORESERVE}}, true},
		{"a slot", request(kvmSetUserMemoryRegion), true},
		{"the size of struct kvm_run", request(kvmGetVCPUMmapSize), true},
		{"the CPUID of the host", request(kvmGetSupportedCPUID), true},
		{"the first vCPU", request(kvmCreateVCPU, 0), true},
		{"the second vCPU", request(kvmCreateVCPU, 1), true},
		{"struct kvm_run", leaks.Call{Number: unix.SYS_MMAP, Args: map[int]uint32{3: unix.MAP_SHARED, 5: 0}}, true},
		{"a dirty ring", leaks.Call{Number: unix.SYS_MMAP, Args: map[int]uint32{3: unix.MAP_SHARED, 5: ringPageOffset * PageSize}}, false},
		{"a CPUID", request(kvmSetCPUID2), true},
		{"to read a CPUID", request(kvmGetCPUID2), false},
		{"to read MSRs", request(kvmGetMSRs), false},
		{"to write MSRs", request(kvmSetMSRs), false},
		{"attributes of a vCPU", request(kvmHasDeviceAttr), false},
	} {
		for _, ring := range []int{0, AutoRing} {
			err := leaks.Refuse(t, c.call, refusal, func() error { return create(ring) })
			if err == nil && c.required {
				t.Errorf("ring %d, without %s: a VM was made", ring, c.what)
			}
			if !before.Check(t, fmt.Sprintf("a VM without %s, ring %d,", c.what, ring)) {
				return
			}
		}
	}
}

// steps are the requests by which a state is tried, given to a VM, and taken from it.
func steps() map[string]leaks.Call {
	list := map[string]leaks.Call{}
	for name, number := range map[string]uint32{
		"CREATE_VM": kvmCreateVM, "CREATE_VCPU": kvmCreateVCPU, "CREATE_IRQCHIP": kvmCreateIRQChip, "ENABLE_CAP": kvmEnableCap,
		"SET_CPUID2": kvmSetCPUID2, "SET_MP_STATE": kvmSetMPState, "SET_SREGS": kvmSetSregs, "SET_SREGS2": kvmSetSregs2,
		"SET_REGS": kvmSetRegs, "SET_XCRS": kvmSetXCRS, "SET_DEBUGREGS": kvmSetDebugRegs, "SET_LAPIC": kvmSetLAPIC,
		"SET_MSRS": kvmSetMSRs, "SET_XSAVE": kvmSetXSave, "SET_VCPU_EVENTS": kvmSetVCPUEvents, "SET_DEVICE_ATTR": kvmSetDeviceAttr,
		"SET_TSC_KHZ": kvmSetTSCKHz, "X86_SETUP_MCE": kvmX86SetupMCE, "SET_IRQCHIP": kvmSetIRQChip, "SET_PIT2": kvmSetPIT2, "SET_CLOCK": kvmSetClock,
		"GET_CPUID2": kvmGetCPUID2, "GET_MP_STATE": kvmGetMPState, "GET_SREGS": kvmGetSregs, "GET_SREGS2": kvmGetSregs2,
		"GET_REGS": kvmGetRegs, "GET_XCRS": kvmGetXCRS, "GET_DEBUGREGS": kvmGetDebugRegs, "GET_LAPIC": kvmGetLAPIC,
		"GET_MSRS": kvmGetMSRs, "GET_XSAVE": kvmGetXSave, "GET_XSAVE2": kvmGetXSave2, "GET_VCPU_EVENTS": kvmGetVCPUEvents,
		"GET_DEVICE_ATTR": kvmGetDeviceAttr, "GET_TSC_KHZ": kvmGetTSCKHz, "GET_IRQCHIP": kvmGetIRQChip, "GET_PIT2": kvmGetPIT2, "GET_CLOCK": kvmGetClock,
	} {
		list[name] = request(number)
	}
	return list
}

// A step that KVM refuses while a state is decoded leaves the guest as it was. One that it refuses while the state is given to
// the guest, or taken from it, is an error; and whichever it was, the guest has all of the next state.
func TestAfterAStepThatKVMRefusesAGuestHasAllOfTheNextState(t *testing.T) {
	list, v, load := states(t)
	var want []*VCPUState
	for _, state := range list {
		load(state)
		want = append(want, shows(t, v))
	}
	reg := &vmstate.Registry{}
	if err := v.vm.Register(reg); err != nil {
		t.Fatal(err)
	}
	reg.NewSession()
	refused := map[string]int{}
	for name, call := range steps() {
		for _, known := range []bool{false, true} { // what the vCPUs have already
			forget := func() {
				v.held.ok = v.held.ok && known
				v.staged.spare.told.ok = v.staged.spare.told.ok && known
			}
			load(list[0])
			forget()
			if err := leaks.Refuse(t, call, refusal, func() error { return reg.LoadDevices(list[3], nil) }); err != nil {
				refused["decoded"]++
				if !errors.Is(err, refusal) {
					t.Errorf("%s is refused while a state is decoded: %v", name, err)
				}
			}
			sameState(t, name+" was refused while another state was decoded", shows(t, v), want[0])
			load(list[3])
			sameState(t, name+" was refused while this state was decoded before", shows(t, v), want[3])

			if err := reg.LoadDevices(list[0], nil); err != nil {
				t.Fatal(err)
			}
			forget()
			if err := leaks.Refuse(t, call, refusal, reg.Commit); err != nil {
				refused["loaded"]++
			}
			load(list[3]) // what it had
			sameState(t, name+" was refused while another state was loaded", shows(t, v), want[3])

			err := leaks.Refuse(t, call, refusal, func() error { return reg.SaveDevices(qemufile.NewWriter(new(bytes.Buffer))) })
			if err != nil {
				refused["saved"]++
			}
			sameState(t, name+" was refused while this state was saved", shows(t, v), want[3])
			load(list[3])
			sameState(t, name+" was refused when the guest was saved before", shows(t, v), want[3])
		}
	}
	for when, least := range map[string]int{"decoded": 8, "loaded": 16, "saved": 16} {
		if refused[when] < least {
			t.Errorf("of the steps by which a state is %s %d are missed when KVM refuses them, want %d", when, refused[when], least)
		}
	}
	t.Log(refused)
}
