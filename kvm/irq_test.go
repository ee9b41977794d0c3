//go:build linux && amd64

package kvm

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/gocolo/lockstep/internal/require"
)

func TestALineRaisesARequestAtTheControllers(t *testing.T) {
	require.Usable(t, require.KVM, Probe)
	vm, err := Create(Config{Memory: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer vm.Close()
	// The IOAPIC's requests are a 32-bit word 16 bytes into its state (struct
	// kvm_ioapic_state), behind the chip's number.
	requests := func() (bits byte) {
		t.Helper()
		if err := vm.chips.saveChips(vm.fd); err != nil {
			t.Fatal(err)
		}
		return raw(&vm.chips.chip[2], 1)[8+16]
	}
	for _, level := range []bool{true, false, true, true, false} {
		if err := vm.SetIRQ(4, level); err != nil {
			t.Fatal(err)
		}
		if got := requests()>>4&1 == 1; got != level {
			t.Errorf("line 4 is %v, the controller says %v", level, got)
		}
	}
	if err := newHostVMWithout(t).SetIRQ(4, true); !errors.Is(err, unix.ENXIO) {
		t.Error("a VM without controllers:", err)
	}
}

func newHostVMWithout(t *testing.T) *VM {
	vm, _, _ := newHostVM(t).attach(t)
	t.Cleanup(func() { vm.Close() })
	return vm
}

func TestEachVCPUHasItsOwnAPICID(t *testing.T) {
	require.Usable(t, require.KVM, Probe)
	for i := range 3 {
		table, err := SupportedCPUID(i)
		if err != nil {
			t.Fatal(err)
		}
		found := false
		for _, e := range table {
			switch e.Function {
			case 1:
				found = true
				if e.Ebx>>24 != uint32(i) {
					t.Errorf("vCPU %d: APIC ID %d", i, e.Ebx>>24)
				}
				if e.Ecx&(1<<31) == 0 || e.Ecx&(1<<5) != 0 {
					t.Errorf("vCPU %d: leaf 1 has ECX %#x: a hypervisor and no VMX is wanted", i, e.Ecx)
				}
			case 0xb, 0x1f:
				if e.Edx != uint32(i) {
					t.Errorf("vCPU %d: x2APIC ID %d", i, e.Edx)
				}
			case 0x80000001:
				if e.Ecx&(1<<2) != 0 {
					t.Errorf("vCPU %d has SVM", i)
				}
			}
		}
		if !found {
			t.Error("no leaf 1")
		}
	}
	size, err := RunSize()
	if err != nil || size < PageSize {
		t.Errorf("struct kvm_run of %d bytes, %v", size, err)
	}
}

func TestExtendedTopologyIsOfOneThread(t *testing.T) {
	table := cpuidOf([]CPUIDEntry{
		{Function: 0x8000001e, Eax: 7, Ebx: 0x0103, Ecx: 2},
		{Function: 0x8000001e},
		{Function: 1, Ebx: 0xaa112233},
	}, 5)
	if e := table[0]; e.Eax != 5 || e.Ebx != 5 || e.Ecx != 0 {
		t.Errorf("%+v", e)
	}
	if e := table[1]; e.Eax|e.Ebx|e.Ecx != 0 {
		t.Errorf("a topology where there was none: %+v", e)
	}
	if table[2].Ebx != 0x05112233 {
		t.Errorf("%#x", table[2].Ebx)
	}
}

// KVM would write to memory that has been captured, or that is compared.
func TestNothingIsOfferedByWhichKVMWritesToMemoryUnbidden(t *testing.T) {
	const clock, stolenTime, flush = 1 << 3, 1 << 5, 1 << 9
	table := cpuidOf([]CPUIDEntry{{Function: 0x40000001, Eax: clock | stolenTime | flush}}, 0)
	if table[0].Eax != clock {
		t.Errorf("features %#x", table[0].Eax)
	}
}
