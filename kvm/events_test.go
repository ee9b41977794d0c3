//go:build linux && amd64

package kvm_test

import (
	"context"
	"errors"
	"runtime"
	"sync/atomic"
	"testing"
	"unsafe"

	"github.com/gocolo/lockstep/kvm"
)

// vcpuEvents is struct kvm_vcpu_events.
type vcpuEvents struct {
	exception struct {
		injected, nr, hasErrorCode, pending uint8
		errorCode                           uint32
	}
	_           [8]byte // interrupt, NMI
	sipi, flags uint32
	_           [4 + 1 + 26]byte // SMI, triple fault, reserved
	hasPayload  uint8
	payload     uint64
}

const (
	getEvents, setEvents = 0x8040ae9f, 0x4040aea0
	validPayload         = 1 << 4
)

// payloads has a VM tell a pending exception's payload apart.
func payloads(t *testing.T) func(vm int) {
	return enabled(t, 164, 1) // KVM_CAP_EXCEPTION_PAYLOAD
}

// An exception that is pending, with what it will put into CR2 or DR6, is restored as
// pending; where the VM was not made to tell it apart, the state is refused while it is
// decoded. Without one, both kinds of VM take it.
func TestAPendingExceptionKeepsItsPayload(t *testing.T) {
	if n := unsafe.Sizeof(vcpuEvents{}); n != 64 {
		t.Fatalf("the struct has %d bytes", n)
	}
	a, b, plain := newAdopted(t, 1, payloads(t)), newAdopted(t, 1, payloads(t)), newAdopted(t, 1, nil)
	plain.load(a.save())
	b.load(plain.save())

	var e vcpuEvents
	if _, err := rawIoctl(a.fds[0], getEvents, unsafe.Pointer(&e)); err != nil {
		t.Fatal(err)
	}
	const pageFault = 14
	e.exception.nr, e.exception.hasErrorCode, e.exception.pending, e.exception.errorCode = pageFault, 1, 1, 6
	e.flags, e.hasPayload, e.payload = validPayload, 1, 0x12345678
	if _, err := rawIoctl(a.fds[0], setEvents, unsafe.Pointer(&e)); err != nil {
		t.Skip(err)
	}
	state := a.save()
	b.load(state)
	var got vcpuEvents
	if _, err := rawIoctl(b.fds[0], getEvents, unsafe.Pointer(&got)); err != nil {
		t.Fatal(err)
	}
	if got.exception != e.exception || got.hasPayload != 1 || got.payload != e.payload {
		t.Errorf("%+v, payload %d %#x; was %+v, %#x", got.exception, got.hasPayload, got.payload, e.exception, e.payload)
	}
	if err := plain.stage(state); !errors.Is(err, kvm.ErrState) {
		t.Error("a VM without payloads:", err)
	}
}

// What is not saved is refused where a guest uses it.
func TestASlotOfAnotherAddressSpaceCannotBeAdded(t *testing.T) {
	x := newAdopted(t, 1, nil)
	if err := x.AddSlot(kvm.Slot{ID: 1<<16 | 5, Block: "smram", GPA: 1 << 32, Mem: x.mem[:kvm.PageSize]}); err == nil {
		t.Error("a slot of system-management memory was added")
	}
}

// hyperV makes the vCPUs for Hyper-V's synthetic interrupts and timers.
func (x *adopted) hyperV() {
	x.Helper()
	for _, fd := range x.fds {
		enabled(x, 148, 0)(fd) // KVM_CAP_HYPERV_SYNIC2
	}
}

// A guest that uses Hyper-V's synthetic interrupts is refused by a vCPU that was not made for them while its state is
// decoded, before anything of another guest is touched, and taken by one that was.
func TestSyntheticInterruptsThatAVCPUCannotHaveAreRefusedWhileTheStateIsDecoded(t *testing.T) {
	const control = 0x40000080
	guest, plain := newAdopted(t, 2, nil), newAdopted(t, 2, nil)
	if err := plain.stage(guest.save()); err != nil {
		t.Error("a guest that has none:", err)
	}
	guest.hyperV()
	for _, fd := range guest.fds {
		writeMSR(fd, control, 0)
	}
	if err := plain.stage(guest.save()); err != nil {
		t.Error("a guest that does not use them:", err)
	}
	var state []byte
	for index, v := range map[uint32]uint64{control: 1, 0x40000082: 0x5001, 0x40000083: 0x6001, 0x40000090: 0x10030, 0x4000009f: 0x3f, 0x400000b0: 3 << 16, 0x400000b7: 1 << 30} {
		if !writeMSR(guest.fds[1], index, v) {
			t.Fatalf("MSR %#x does not take %#x", index, v)
		}
		state = guest.save()
		var msr *kvm.MSRError
		if err := plain.stage(state); !errors.As(err, &msr) || msr.Index != index || msr.Value != v {
			t.Errorf("MSR %#x of a guest that uses it: %v", index, err)
		}
		writeMSR(guest.fds[1], index, 0)
	}
	plain.hyperV()
	plain.load(state)
}

// A guest that runs, as on a secondary, need not stop for that.
func TestSyntheticInterruptsThatAVCPUCannotHaveAreRefusedWhileItRuns(t *testing.T) {
	const sint3, counter = 0x40000093, 0x2000
	guest := newAdopted(t, 1, nil)
	guest.hyperV()
	if !writeMSR(guest.fds[0], sint3, 0x33) {
		t.Fatal("the interrupt is not taken")
	}
	state := guest.save()
	for _, there := range []bool{false, true} {
		x := newAdopted(t, 1, nil)
		if there {
			x.hyperV()
		}
		copy(x.mem[0x1000:], []byte{0xfe, 0x06, counter & 0xff, counter >> 8, 0xeb, 0xfa}) // inc byte [counter], and again
		v := x.vcpus[0]
		s, err1 := v.Sregs()
		r, err2 := v.Regs()
		s.CS.Base, s.CS.Selector, r.RIP, r.RFLAGS = 0, 0, 0x1000, 2
		if err := errors.Join(err1, err2, v.SetSregs(s), v.SetRegs(r)); err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- v.Run(ctx, func(*kvm.RunData) error { return nil }) }()
		if err := x.Resume(ctx); err != nil {
			t.Error(err)
		}
		for n := (*uint32)(unsafe.Pointer(&x.mem[counter])); atomic.LoadUint32(n) == 0 && len(ended) == 0; {
			runtime.Gosched()
		}
		if err := x.stage(state); there != (err == nil) || !there && !errors.Is(err, kvm.ErrState) {
			t.Errorf("a vCPU that runs, and has them %v: %v", there, err)
		}
		stop()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Error("Run:", err)
		}
	}
}

// Hyper-V's synthetic interrupts and timers, where a VM is made for them, are restored.
func TestHyperVsInterruptsAndTimersAreRestored(t *testing.T) {
	vms := []*adopted{newAdopted(t, 2, nil), newAdopted(t, 2, nil)}
	for _, x := range vms {
		x.hyperV()
	}
	a, b := vms[0], vms[1]
	want := map[uint32]uint64{
		0x40000080: 1,                                                                           // SCONTROL
		0x40000082: 0x5001,                                                                      // SIEFP
		0x40000083: 0x6001,                                                                      // SIMP
		0x40000090: 0x10030,                                                                     // SINT0, masked
		0x40000093: 0x33,                                                                        // SINT3
		0x4000009f: 0x2003f,                                                                     // SINT15
		0x400000b0: 3 << 16, 0x400000b1: 1 << 40, 0x400000b6: 3<<16 | 1<<1, 0x400000b7: 1 << 30, // STIMER0, STIMER3
	}
	for index, v := range want {
		if !writeMSR(a.fds[1], index, v) {
			t.Errorf("MSR %#x does not take %#x", index, v)
		}
	}
	b.load(a.save())
	for index, v := range want {
		if got, _ := readMSR(b.fds[1], index); got != v {
			t.Errorf("MSR %#x was %#x and is %#x", index, v, got)
		}
	}
}
