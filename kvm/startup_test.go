//go:build linux && amd64

package kvm

import (
	"context"
	"errors"
	"testing"
	"time"

	gokvm "github.com/bobuhiro11/gokvm/kvm"

	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/vmstate"
)

// A vCPU that waits to be started is rolled back to that when another has just started it:
// the start belongs to what was undone.
func TestAStartThatWasRolledBackStartsNothing(t *testing.T) {
	require.Usable(t, require.KVM, Probe)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	vm, err := Create(Config{Memory: 1 << 20, VCPUs: 2})
	must(err)
	defer func() { must(vm.Close()) }()
	// The other's APIC ID is 1; INIT, then SIPI for 0x3000. (Intel SDM volume 3, 11.6.1.)
	copy(vm.Memory()[0x1000:], []byte{
		0x64, 0x66, 0xc7, 0x06, 0xf0, 0x00, 0xff, 0x01, 0x00, 0x00, // MOV DWORD FS:[0xf0], 0x1ff: the APIC is on
		0x64, 0x66, 0xc7, 0x06, 0x10, 0x03, 0x00, 0x00, 0x00, 0x01, // MOV DWORD FS:[0x310], 1<<24
		0x64, 0x66, 0xc7, 0x06, 0x00, 0x03, 0x00, 0x45, 0x00, 0x00, // MOV DWORD FS:[0x300], 0x4500
		0xe6, 0x99, // OUT 0x99, AL
		0x64, 0x66, 0xc7, 0x06, 0x00, 0x03, 0x03, 0x46, 0x00, 0x00, // MOV DWORD FS:[0x300], 0x4603
		0xe6, 0x99, 0xeb, 0xfe,
	})
	boot, other := vm.VCPUs()[0], vm.VCPUs()[1]
	s, err := boot.Sregs()
	must(err)
	s.CS.Base, s.CS.Selector, s.FS.Base, s.FS.Limit = 0, 0, 0xfee00000, 0xffff
	must(errors.Join(boot.SetSregs(s), boot.SetRegs(Regs{RIP: 0x1000, RFLAGS: 2})))
	reg := &vmstate.Registry{}
	must(vm.Register(reg))
	said := errors.New("said")
	goOn := func() {
		t.Helper()
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := boot.Run(ctx, boot.Dispatch(Handler{IO: func(*IO) error { return said }})); !errors.Is(err, said) {
			t.Fatal(err)
		}
	}
	goOn()
	waiting := encode(t, reg)
	if other.state.mp.State != gokvm.MPStateInitReceived {
		t.Fatalf("the other vCPU's MP state is %d after INIT", other.state.mp.State)
	}
	goOn()
	reg.NewSession()
	must(errors.Join(reg.LoadDevices(waiting, nil), reg.Commit()))
	encode(t, reg)
	if other.state.mp.State != gokvm.MPStateInitReceived {
		t.Errorf("its MP state is %d after a roll-back to before its SIPI", other.state.mp.State)
	}

	goOn() // and that it was sent again
	encode(t, reg)
	if r, err := other.Sregs(); other.state.mp.State != gokvm.MPStateRunnable || r.CS.Base != 0x3000 || err != nil {
		t.Errorf("its MP state is %d, at %#x, after SIPI (%v)", other.state.mp.State, r.CS.Base, err)
	}
}
