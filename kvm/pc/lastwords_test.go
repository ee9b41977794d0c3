//go:build linux && amd64

package pc

import (
	"context"
	"errors"
	"runtime"
	"testing"

	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/kvm"
	"github.com/gocolo/lockstep/kvm/internal/fake"
)

// heard is an uplink that gives away the context of its Receive.
type heard struct {
	fake.Nowhere
	given chan context.Context
}

// Receive implements Source.
func (h heard) Receive(ctx context.Context, _ func([]byte) error) error {
	h.given <- ctx
	<-ctx.Done()
	return ctx.Err()
}

// What a vCPU says in the access that it was in when Run was told to end still reaches the devices: they end
// when no vCPU is left.
func TestDevicesWorkUntilTheLastVCPUHasEnded(t *testing.T) {
	require.Usable(t, require.KVM, kvm.Probe)
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(runtime.NumCPU() + 1))
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	up := heard{given: make(chan context.Context)}
	accesses := 0
	m, err := Create(Config{Memory: 1 << 20, Devices: Devices{
		NICs: []NIC{{Uplink: up}},
		OtherPorts: func(uint16, bool, []byte) (bool, error) {
			accesses++
			working := <-up.given
			stop()
			if working.Err() != nil {
				t.Error("the devices are told to end while a vCPU is at a port")
			}
			return true, nil
		},
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	}()
	const at = 0x1000
	copy(m.memory[at:], []byte{0xe6, 0x84, 0xeb, 0xfe}) // out 0x84, al; jmp to itself
	v := m.vm.VCPUs()[0]
	s, err := v.Sregs()
	if err != nil {
		t.Fatal(err)
	}
	s.CS.Base, s.CS.Selector = 0, 0
	if err := errors.Join(v.SetSregs(s), v.SetRegs(kvm.Regs{RIP: at, RFLAGS: 2}), m.Resume(ctx)); err != nil {
		t.Fatal(err)
	}
	if err := m.Run(ctx); !errors.Is(err, context.Canceled) || accesses != 1 {
		t.Errorf("Run: %v, after %d accesses", err, accesses)
	}
}
