//go:build linux && amd64

package kvm

import (
	"encoding/binary"
	"errors"
	"testing"
	"time"
	"unsafe"

	gokvm "github.com/bobuhiro11/gokvm/kvm"

	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/vmstate"
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

// A deadline that is far away is in the state, and is the vCPU's again: on another one, whose timer was in another
// mode, and after a roll-back of one whose TSC was beyond the deadline already. It does not fire when it is given.
func TestADeadlineIsRestoredWhateverTheTimerWas(t *testing.T) {
	require.Usable(t, require.KVM, Probe)
	const spurious, irr, lvtTimer, on, byDeadline, vector, far = 0xf0, 0x200, 0x320, 0x1ff, 2 << 17, 0x50, 1 << 40
	var regs [3]*vmstate.Registry
	var list [3]*VCPU
	for i := range list {
		vm, err := Create(Config{Memory: 1 << 20})
		if err != nil {
			t.Fatal(err)
		}
		defer vm.Close()
		list[i], regs[i] = vm.vcpus[0], &vmstate.Registry{}
		if err := vm.Register(regs[i]); err != nil {
			t.Fatal(err)
		}
	}
	a, b := list[0], list[1]
	// On a KVM that takes a TSC and does not obey, nothing is to be known of the time after that.
	obeys := false
	if err := list[2].with(func(fd int) error {
		before, _, err := a.state.readMSR(fd, msrTSC)
		if err == nil {
			err = a.state.writeMSR(fd, msrTSC, before+2*far)
		}
		after, _, readErr := a.state.readMSR(fd, msrTSC)
		obeys = after-before >= far
		return errors.Join(err, readErr)
	}); err != nil {
		t.Fatal(err)
	}
	if err := a.save(); err != nil {
		t.Fatal(err)
	}
	lapic := a.state.lapic
	binary.LittleEndian.PutUint32(lapic.Regs[spurious:], on)
	binary.LittleEndian.PutUint32(lapic.Regs[lvtTimer:], byDeadline|vector)
	var now uint64
	if err := a.with(func(fd int) error {
		if _, err := ioctl(fd, "KVM_SET_LAPIC", kvmSetLAPIC, unsafe.Pointer(&lapic)); err != nil {
			return err
		}
		var err error
		if now, _, err = a.state.readMSR(fd, msrTSC); err != nil {
			return err
		}
		return a.state.writeMSR(fd, msrTSCDeadline, now+far)
	}); err != nil {
		t.Skip("this KVM has no deadline of the TSC:", err)
	}
	state := encode(t, regs[0])
	for i, v := range []*VCPU{b, a, b, a} {
		if i > 0 && obeys { // time goes on beyond the deadline, and the timer fires
			if err := v.with(func(fd int) error { return v.state.writeMSR(fd, msrTSC, now+2*far) }); err != nil {
				t.Fatal(err)
			}
		}
		reg := regs[0]
		if v == b {
			reg = regs[1]
		}
		reg.NewSession()
		if err := errors.Join(reg.LoadDevices(state, nil), reg.Commit()); err != nil {
			t.Fatal(err)
		}
		is := shows(t, v)
		if deadline, ok := is.savedMSR(msrTSCDeadline); !ok || deadline != now+far {
			t.Errorf("load %d: the deadline is %d (%v), want %d", i, deadline, ok, uint64(now+far))
		}
		if is.lapic.Regs[irr+vector/32*16+vector%32/8]&(1<<(vector%8)) != 0 {
			t.Errorf("load %d: the deadline has fired", i)
		}
	}
}
