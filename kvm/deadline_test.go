//go:build linux && amd64

package kvm

import (
	"encoding/binary"
	"testing"
	"time"
	"unsafe"

	gokvm "github.com/bobuhiro11/gokvm/kvm"

	"github.com/gocolo/lockstep/internal/require"
)

// A vCPU stands still while the deadline of its timer passes. Whenever it is saved, its
// state has the deadline, or the interrupt, or both. (It takes a KVM that turns one into
// the other while the vCPU stands still, as with VMX's preemption timer, to fail.)
func TestADeadlineThatPassesWhileAVCPUIsSavedIsNotLost(t *testing.T) {
	require.Usable(t, require.KVM, Probe)
	vm, err := Create(Config{Memory: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := vm.Close(); err != nil {
			t.Error(err)
		}
	}()
	v := vm.VCPUs()[0]
	if err := v.save(); err != nil {
		t.Fatal(err)
	}
	const spurious, irr, lvtTimer, on, byDeadline, vector = 0xf0, 0x200, 0x320, 0x1ff, 2 << 17, 0x50
	lapic := v.state.lapic
	binary.LittleEndian.PutUint32(lapic.Regs[spurious:], on)
	binary.LittleEndian.PutUint32(lapic.Regs[lvtTimer:], byDeadline|vector)
	saves, kept := 0, 0
	for range 10 {
		if _, err := ioctl(v.fd, "KVM_SET_LAPIC", kvmSetLAPIC, unsafe.Pointer(&lapic)); err != nil {
			t.Fatal(err)
		}
		now, err := v.MSR(msrTSC)
		if err != nil {
			t.Fatal(err)
		}
		one := msrOne{n: 1, entry: gokvm.MSREntry{Index: msrTSCDeadline, Data: now + uint64(v.state.hasTSCKHz)/5}} // 200 µs
		if n, err := ioctl(v.fd, "KVM_SET_MSRS", kvmSetMSRs, unsafe.Pointer(&one)); err != nil || n != 1 {
			t.Skip("this KVM has no deadline of the TSC:", err)
		}
		for end := time.Now().Add(600 * time.Microsecond); ; saves++ {
			last := time.Now().After(end)
			if err := v.save(); err != nil {
				t.Fatal(err)
			}
			deadline, _ := v.state.savedMSR(msrTSCDeadline)
			arrived := v.state.lapic.Regs[irr+vector/32*16+vector%32/8]&(1<<(vector%8)) != 0
			if deadline == 0 && !arrived {
				t.Fatalf("save %d has neither the deadline nor its interrupt", saves)
			}
			if deadline != 0 {
				kept++
			}
			if last {
				break
			}
		}
	}
	t.Logf("%d saves, %d with the deadline", saves, kept)
	if kept >= saves {
		t.Log("this KVM keeps a deadline that is over until the vCPU runs: none could be lost")
	}
}
