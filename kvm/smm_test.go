//go:build linux && amd64

package kvm

import (
	"bytes"
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

// Older kernels do not say which instruction they could not emulate. It is looked for where the guest was: outside of
// long mode that is behind the base of its code segment, in 32 bits; and a page that is not there ends it.
func TestTheInstructionOfAnErrorIsFoundWhereTheGuestWas(t *testing.T) {
	require.Usable(t, require.KVM, Probe)
	const pages = 4
	vm, err := Create(Config{Memory: pages * PageSize})
	if err != nil {
		t.Fatal(err)
	}
	defer vm.Close()
	v := vm.vcpus[0]
	for i := range vm.memory {
		vm.memory[i] = byte(i>>4 ^ i)
	}
	sregs, err := v.Sregs()
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ base, rip, at, want uint64 }{
		"at the beginning":             {0, 0x123, 0x123, longestInstruction},
		"behind a base":                {0x1230, 5, 0x1235, longestInstruction},
		"across two pages":             {0x1ff0, 9, 0x1ff9, longestInstruction},
		"behind a base that wraps":     {0xfffff000, 0x2010, 0x1010, longestInstruction},
		"before the end of the memory": {0, pages*PageSize - 3, pages*PageSize - 3, 3},
		"where there is no memory":     {0x100000, 0, 0, 0},
	} {
		sregs.CS.Base = c.base
		regs := Regs{RIP: c.rip, RFLAGS: 2}
		if err := errors.Join(v.SetSregs(sregs), v.SetRegs(regs)); err != nil {
			t.Fatal(err)
		}
		e := &ExitError{Reason: exitInternalError, Code: emulationFailed}
		v.where(e)
		if e.RIP != c.rip || !bytes.Equal(e.Instruction, vm.memory[c.at:][:c.want]) {
			t.Errorf("%s: RIP %#x and % x, want %#x and % x", name, e.RIP, e.Instruction, c.rip, vm.memory[c.at:][:c.want])
		}
	}
}

// Newer kernels say which bytes they have read. If they are more than an instruction can have, or none, it is looked for in memory.
func TestAnInstructionThatKVMTellsIsNoLongerThanOneCanBe(t *testing.T) {
	require.Usable(t, require.KVM, Probe)
	vm, err := Create(Config{Memory: PageSize})
	if err != nil {
		t.Fatal(err)
	}
	defer vm.Close()
	v := vm.vcpus[0]
	sregs, err := v.Sregs()
	if err != nil {
		t.Fatal(err)
	}
	sregs.CS.Base = 0
	if err := errors.Join(v.SetSregs(sregs), v.SetRegs(Regs{RFLAGS: 2})); err != nil {
		t.Fatal(err)
	}
	inMemory, told := vm.memory[:longestInstruction], raw(&v.data.Data[2], 2)
	for i := range inMemory {
		inMemory[i] = byte(i)
	}
	for i := range told {
		told[i] = byte(0x80 + i)
	}
	for n, want := range map[byte][]byte{0: inMemory, 1: told[1:2], longestInstruction: told[1:16], longestInstruction + 1: inMemory, 255: inMemory} {
		told[0] = n
		e := &ExitError{Reason: exitInternalError, Code: emulationFailed, Data: []uint64{1, 0, 0}}
		v.where(e)
		if !bytes.Equal(e.Instruction, want) {
			t.Errorf("%d bytes are told: % x, want % x", n, e.Instruction, want)
		}
	}
}

const longestInstruction = 15
