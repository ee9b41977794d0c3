//go:build linux && amd64

package kvm_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strings"
	"testing"
	"unsafe"

	"github.com/gocolo/lockstep/kvm"
)

// MSRs of machine checks, and what banks can do.
const (
	mcgCap, mcgCtl   = 0x179, 0x17b
	mc0Ctl           = 0x400
	mc9Status        = 0x400 + 4*9 + 1
	mc20Status       = 0x400 + 4*20 + 1
	withCtl, withSER = 1 << 8, 1 << 24
)

// setUpMCE gives a vCPU machine-check banks, as its VMM does, and returns which it has then: on an AMD processor
// KVM lets them do less.
func setUpMCE(t *testing.T, fd int, value uint64) uint64 {
	t.Helper()
	const reqSetupMCE = 0x4008ae9c
	if _, err := rawIoctl(fd, reqSetupMCE, unsafe.Pointer(&value)); err != nil {
		t.Skipf("this KVM gives no vCPU the banks %#x: %v", value, err)
	}
	has, _ := readMSR(fd, mcgCap)
	return has
}

func (x *adopted) wantMSR(index uint32, want uint64) {
	x.Helper()
	if got, ok := readMSR(x.fds[0], index); !ok || got != want {
		x.Errorf("MSR %#x is %#x (%v), want %#x", index, got, ok, want)
	}
}

func msrEntry(index uint32, value uint64) []byte {
	return binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(nil, uint64(index)), value)
}

// with returns a state with another value of an MSR.
func with(t *testing.T, state []byte, index uint32, was, value uint64) []byte {
	t.Helper()
	changed := bytes.Replace(state, msrEntry(index, was), msrEntry(index, value), 1)
	if bytes.Equal(changed, state) && was != value {
		t.Fatalf("MSR %#x with %#x is not in the state", index, was)
	}
	return changed
}

// A vCPU has the machine-check banks that its guest was told of: their number and what they can do is part of a
// state, and so are their registers, whatever banks the vCPU had that is given the state.
func TestMachineCheckBanksAreRestored(t *testing.T) {
	a, all := newAdopted(t, 1, nil), newAdopted(t, 1, nil)
	ten := setUpMCE(t, a.fds[0], 10|withCtl|withSER)
	for _, index := range []uint32{mc9Status, mcgCtl} {
		if !writeMSR(a.fds[0], index, 0) || index == mc9Status && !writeMSR(a.fds[0], index, 5) {
			t.Skipf("this KVM does not take MSR %#x", index)
		}
	}
	if !writeMSR(all.fds[0], mc20Status, 7) {
		t.Skip("this KVM has no banks of its own")
	}
	few, many := a.save(), all.save()

	b := newAdopted(t, 1, nil)
	b.load(few)
	b.wantMSR(mcgCap, ten)
	b.wantMSR(mcgCtl, 0)
	b.wantMSR(mc9Status, 5)
	b.wantMSR(mc0Ctl, ^uint64(0)) // of a
	if _, ok := readMSR(b.fds[0], mc20Status); ok {
		t.Error("a bank that the guest does not have")
	}
	b.load(b.save())
	b.wantMSR(mc9Status, 5)

	b.load(many)
	b.wantMSR(mcgCap, 32)
	b.wantMSR(mc0Ctl, 0)
	b.wantMSR(mc20Status, 7)
	c := newAdopted(t, 1, nil)
	c.load(b.save()) // which now has the banks that b did not have
	c.wantMSR(mc20Status, 7)

	// Its VMM may choose more banks after it has chosen fewer, and the vCPU was saved.
	e := newAdopted(t, 1, nil)
	setUpMCE(t, e.fds[0], ten)
	e.save()
	writeMSR(e.fds[0], mcgCtl, 0) // which would stay without being there
	setUpMCE(t, e.fds[0], 32)
	if !writeMSR(e.fds[0], mc20Status, 9) {
		t.Fatal("the vCPU has no more banks")
	}
	c.load(e.save())
	c.wantMSR(mc20Status, 9)

	// Its VMM may choose the banks after the vCPU was adopted.
	d := newAdopted(t, 1, nil)
	setUpMCE(t, d.fds[0], ten)
	d.load(many)
	d.wantMSR(mcgCap, 32)
	d.wantMSR(mc20Status, 7)
}

// Banks that this KVM does not have, or that cannot do here what the guest was told, are refused in words while
// the state is decoded, and in the hello; the vCPU keeps its own.
func TestMachineCheckBanksThatDoNotFitAreRefusedInWords(t *testing.T) {
	a := newAdopted(t, 1, nil)
	ten := setUpMCE(t, a.fds[0], 10|withCtl|withSER)
	state := a.save()
	for value, want := range map[uint64]string{
		33:                 "33 machine-check banks, of which there are 32 here (MSR 0x179)",
		10 | 1<<9:          "MCG_EXT_P (MSR 0x179 bit 9)",
		10 | 1<<10:         "MCG_CMCI_P (MSR 0x179 bit 10)",
		10 | 1<<27:         "MCG_LMCE_P (MSR 0x179 bit 27)",
		10 | 1<<8 | 1<<63:  "MSR 0x179 bit 63",
		200 | 1<<11 | 1<<8: "MCG_TES_P (MSR 0x179 bit 11); 200 machine-check banks, of which there are 32 here",
	} {
		b := newAdopted(t, 1, nil)
		supports, err := kvm.ReadCPU()
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range supports.Features {
			if m.Index == mcgCap && value&0xff <= m.Value&0xff && value&^m.Value&^0xff == 0 {
				want = ""
			}
		}
		if want == "" {
			t.Logf("this KVM has %#x", value)
			continue
		}
		var judged *kvm.CPUError
		err = b.stage(with(t, state, mcgCap, ten, value))
		if !errors.As(err, &judged) || !errors.Is(err, kvm.ErrState) || !strings.Contains(err.Error(), want) {
			t.Errorf("the state with %#x: %v, want %q", value, err, want)
		}
		b.wantMSR(mcgCap, 32)
		theirs := described(t, a.VM, func(c *kvm.CPU) {
			for i := range c.MSRs {
				if c.MSRs[i].Index == mcgCap {
					c.MSRs[i].Value = value
				}
			}
		})
		judged = nil
		if err := b.JudgeCPU(theirs); !errors.As(err, &judged) || !strings.Contains(err.Error(), want) {
			t.Errorf("the description with %#x: %v, want %q", value, err, want)
		}
	}
	b := newAdopted(t, 1, nil)
	for _, value := range []uint64{ten, 3, 32} {
		theirs := described(t, a.VM, func(c *kvm.CPU) {
			c.MSRs = []kvm.MSR{{Index: mcgCap, Value: value}, {Index: mc0Ctl + 4, Value: ^uint64(0)}, {Index: 0x277, Value: 0x0606060606060606}}
		})
		if err := b.JudgeCPU(theirs); err != nil {
			t.Errorf("the description with %#x: %v", value, err)
		}
		theirs = described(t, a.VM, func(c *kvm.CPU) {
			c.MSRs = []kvm.MSR{{Index: mcgCap, Value: value}, {Index: mcgCtl, Value: ^uint64(0)}, {Index: mc20Status, Value: 1}}
		})
		err, few, without := b.JudgeCPU(theirs), value&0xff <= 20, value&withCtl == 0
		if (err != nil) != (few || without) ||
			few && !strings.Contains(err.Error(), "MSR 0x451") || without && !strings.Contains(err.Error(), "MSR 0x17b") {
			t.Errorf("registers of banks that are not there, with %#x: %v", value, err)
		}
	}
}

// A state is tried with the banks that it has, and not with those of an earlier one: a register that is there with
// those alone is refused before the guest is touched.
func TestAStateIsTriedWithTheBanksThatItHas(t *testing.T) {
	a, b := newAdopted(t, 1, nil), newAdopted(t, 1, nil)
	ten := setUpMCE(t, a.fds[0], 10|withCtl|withSER)
	state := a.save()
	if ctl, _ := readMSR(a.fds[0], mcgCtl); ctl != ^uint64(0) {
		t.Skip("this KVM has no MCG_CTL")
	}
	for range 2 {
		b.load(state)
		var msr *kvm.MSRError
		if err := b.stage(with(t, state, mcgCap, ten, 10)); !errors.As(err, &msr) || msr.Index != mcgCtl {
			t.Errorf("MCG_CTL of banks that have none: %v", err)
		}
		b.wantMSR(mcgCap, ten)
		b.wantMSR(mcgCtl, ^uint64(0))
	}
	// Another CPUID has a state tried on a new vCPU, which is given the banks anew.
	b.load(state)
	if err := b.stage(withCPUID(t, b, state, 1, 0, func(e *streamCPUID) { e.Eax ^= 0x10 })); err != nil {
		t.Error("another CPU with the same banks:", err)
	}
	less := with(t, with(t, state, mcgCap, ten, 10), mcgCtl, ^uint64(0), 0)
	b.load(less)
	b.wantMSR(mcgCap, 10)
	b.wantMSR(mcgCtl, 0)
}

// A state that does not say which banks its vCPU had is taken by a vCPU with any.
func TestAStateThatNamesNoMachineCheckBanksLeavesThem(t *testing.T) {
	a, b := newAdopted(t, 1, nil), newAdopted(t, 1, nil)
	ten := setUpMCE(t, a.fds[0], 10|withCtl|withSER)
	setUpMCE(t, b.fds[0], ten)
	const none = 0x12345678 // no CPU has it
	state := bytes.Replace(a.save(), msrEntry(mcgCap, ten), msrEntry(none, 0), 1)
	b.load(b.save())
	b.load(state)
	b.wantMSR(mcgCap, ten)
	b.wantMSR(mcgCtl, ^uint64(0))
}

// What KVM takes of the banks without an error and does not do is refused as well, in the state and in the hello.
func TestMachineCheckBanksThatKVMTakesAndDoesNotSetAreRefused(t *testing.T) {
	a, b := newAdopted(t, 1, nil), newAdopted(t, 1, nil)
	const asked = 10 | withCtl | withSER
	ten := setUpMCE(t, a.fds[0], asked)
	if ten == asked {
		t.Skip("this KVM does as it is told")
	}
	var msr *kvm.MSRError
	if err := b.stage(with(t, a.save(), mcgCap, ten, asked)); !errors.As(err, &msr) || msr.Index != mcgCap || !errors.Is(err, kvm.ErrState) {
		t.Errorf("the state: %v", err)
	}
	var judged *kvm.CPUError
	theirs := described(t, a.VM, func(c *kvm.CPU) { c.MSRs = []kvm.MSR{{Index: mcgCap, Value: asked}} })
	if err := b.JudgeCPU(theirs); !errors.As(err, &judged) || !strings.Contains(err.Error(), "machine-check banks with 0x100010a as MSR 0x179") {
		t.Errorf("the description: %v", err)
	}
	b.wantMSR(mcgCap, 32)
}
