//go:build linux && amd64

package kvm

import (
	"context"
	"errors"
	"testing"
	"time"

	gokvm "github.com/bobuhiro11/gokvm/kvm"

	"github.com/gocolo/lockstep/internal/require"
)

// The TSC of a vCPU that waits for an interrupt goes on, unless the host's own is not stable: there KVM lets
// it stand still until the vCPU enters the guest.
func TestTheTSCOfAVCPUThatWaitsGoesOnWhereTheHostsIsStable(t *testing.T) {
	require.Usable(t, require.KVM, Probe)
	vm, err := Create(Config{Memory: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer vm.Close()
	v := vm.vcpus[0]
	if !v.state.tsc.attr || v.state.hasTSCKHz == 0 {
		t.Skip("this KVM has no TSC offsets, or does not tell the frequency")
	}
	const entry = 0x1000
	copy(vm.Memory()[entry:], []byte{0xf4, 0xeb, 0xfd}) // HLT; JMP there
	s, err := v.Sregs()
	if err != nil {
		t.Fatal(err)
	}
	s.CS.Base, s.CS.Selector = 0, 0
	if err := errors.Join(v.SetSregs(s), v.SetRegs(Regs{RIP: entry, RFLAGS: 2})); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- v.Run(ctx, v.Dispatch(Handler{})) }()
	defer func() {
		stop()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	}()
	// Each reading begins with the same TSC where it stands still, and so the least of some is the
	// one that was interrupted least.
	look := func() (least time.Duration) {
		least = 1<<63 - 1
		if err := vm.Pause(ctx); err != nil {
			t.Fatal(err)
		}
		for range 5 {
			n, _, err := v.state.readMSR(v.fd, msrTSC)
			if err != nil {
				t.Fatal(err)
			}
			least = min(least, time.Duration(n/uint64(v.state.hasTSCKHz))*time.Millisecond)
		}
		if err := vm.Resume(ctx); err != nil {
			t.Fatal(err)
		}
		return least
	}
	offset := func() uint64 {
		if err := v.state.tscOffset(v.fd, "KVM_GET_DEVICE_ATTR", kvmGetDeviceAttr); err != nil {
			t.Fatal(err)
		}
		return v.state.tsc.word
	}
	if err := vm.Pause(ctx); err != nil {
		t.Fatal(err)
	}
	first := offset()
	stable := offset() == first // nobody sets it meanwhile
	if err := vm.Resume(ctx); err != nil {
		t.Fatal(err)
	}
	for v.state.mp.State != gokvm.MPStateHalted {
		if err := vm.Pause(ctx); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(v.save(), vm.Resume(ctx)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond)
	}
	const waits = time.Second
	before := look()
	time.Sleep(waits)
	on := look() - before
	if stable != (on > waits/2) {
		t.Errorf("the host's TSC is stable: %v; that of a vCPU that has waited for %v went on by %v", stable, waits, on)
	}
	t.Logf("the host's TSC is stable: %v; that of a vCPU that has waited for %v went on by %v", stable, waits, on)
}
