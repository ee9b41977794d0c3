//go:build linux && amd64

package kvm

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/gocolo/lockstep/internal/require"
)

// Where a guest fails in system-management mode the error says so, and does not show what the
// guest's own memory has there.
func TestAnErrorInSystemManagementModeIsSaidInWords(t *testing.T) {
	const flags = 14
	run := make([]byte, PageSize)
	v := &VCPU{vm: &VM{}, fd: -1, run: run, data: (*RunData)(unsafe.Pointer(&run[0]))}
	v.data.ExitReason, v.data.Data[0] = exitInternalError, emulationFailed
	for _, smm := range []bool{false, true} {
		run[flags] = 2 // of something else
		if smm {
			run[flags] |= 1
		}
		e := v.exitError()
		if e.SMM != smm || strings.Contains(e.Error(), "in system-management mode") != smm {
			t.Errorf("in it: %v; got %v, %q", smm, e.SMM, e)
		}
		if err := v.failed(unix.EIO); !errors.Is(err, unix.EIO) || strings.Contains(err.Error(), "in system-management mode") != smm {
			t.Errorf("in it: %v; KVM gives the VM up: %q", smm, err)
		}
	}
}

// A guest that gets an SMI has no memory to go on with, and Run ends with an error that tells.
func TestAnSMIWithoutMemoryForItEndsRunInWords(t *testing.T) {
	const sendSMI = 0xaeb7
	require.Usable(t, require.KVM, Probe)
	vm, err := Create(Config{Memory: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer vm.Close()
	v := vm.vcpus[0]
	if !vm.sys.smm {
		t.Skip("this KVM has no system management")
	}
	s, err := v.Sregs()
	if err != nil {
		t.Fatal(err)
	}
	s.CS.Base, s.CS.Selector = 0, 0
	const program = 0x1000
	copy(vm.Memory()[program:], []byte{0xeb, 0xfe})             // JMP to itself
	copy(vm.Memory()[0x38000:], []byte{0x90, 0x90, 0xeb, 0xfc}) // of the guest, and not of system management
	if err := errors.Join(v.SetSregs(s), v.SetRegs(Regs{RIP: program, RFLAGS: 2})); err != nil {
		t.Fatal(err)
	}
	if _, err := ioctlValue(v.fd, "KVM_SMI", sendSMI, 0); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithTimeout(context.Background(), time.Minute)
	defer stop()
	var exit *ExitError
	err = v.Run(ctx, v.Dispatch(Handler{}))
	if errors.Is(err, unix.EIO) && strings.Contains(err.Error(), "in system-management mode") {
		return // newer kernels give the VM up before its first instruction there
	}
	if !errors.As(err, &exit) {
		t.Fatalf("got %v, want an ExitError", err)
	}
	if !exit.SMM || exit.RIP != 0x8000 || len(exit.Instruction) > 0 {
		t.Errorf("in system management: %v, RIP %#x, instruction % x; want RIP 0x8000, and no instruction", exit.SMM, exit.RIP, exit.Instruction)
	}
}
