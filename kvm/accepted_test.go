//go:build linux && amd64

package kvm

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/gocolo/lockstep/vmstate"
)

// Whatever a state says, but of MSRs that name memory: what is taken while it is decoded, KVM takes as well when it is committed,
// and a state that was good before is as good after it.
func TestAStateThatIsTakenWhileItIsDecodedIsRestored(t *testing.T) {
	list, v, load := states(t)
	vm := v.vm
	reg := &vmstate.Registry{}
	if err := vm.Register(reg); err != nil {
		t.Fatal(err)
	}
	load(list[0])
	want := shows(t, v)
	rounds := 1000
	if testing.Short() {
		rounds = 100
	}
	r := rand.New(rand.NewPCG(3, 4))
	taken := 0
	for n := range rounds {
		bad := bytes.Clone(list[r.IntN(len(list))])
		for range 1 + r.IntN(3) {
			i := r.IntN(len(bad))
			switch r.IntN(3) {
			case 0:
				bad[i] ^= 1 << r.IntN(8)
			case 1:
				bad[i] = byte(r.Uint32())
			default:
				bad[i] = [...]byte{0, 1, 0x7f, 0x80, 0xff}[r.IntN(5)]
			}
		}
		reg.NewSession()
		if err := reg.LoadDevices(bad, nil); err != nil {
			continue
		}
		taken++
		var msr *MSRError // of one that a VM without memory cannot try, nothing is promised
		if err := reg.Commit(); err != nil && !(errors.As(err, &msr) && !tried(msr.Index)) {
			t.Errorf("round %d: it was taken, and then: %v", n, err)
		}
		if n%20 == 0 {
			load(list[0])
			sameState(t, "after it", shows(t, v), want)
		}
	}
	if taken < rounds/10 {
		t.Errorf("%d of %d states were taken", taken, rounds)
	}
}

// A vCPU that has run keeps its CPUID: KVM gives it no other, which is known while the state is
// decoded. One that has not run takes it.
func TestAVCPUThatHasRunTakesNoOtherCPUID(t *testing.T) {
	list, v, load := states(t)
	other := func(s *VCPUState) bool { // clears a feature that a guest can be without
		for i := range s.cpuid.entries[:s.cpuid.n] {
			if c := &s.cpuid.entries[i]; c.Function == 1 {
				const fxsr = 1 << 24
				had := c.Edx&fxsr != 0
				c.Edx &^= fxsr
				return had
			}
		}
		return false
	}
	load(list[0])
	if !other(v.staged) {
		t.Fatal("no features in the state")
	}
	if err := v.staged.check(v.staged.apic); !errors.Is(err, ErrState) {
		t.Errorf("a vCPU that has run: %v, want ErrState", err)
	}

	vm, err := Create(Config{VCPUs: 1, Memory: uint64(len(v.vm.Memory()))})
	if err != nil {
		t.Fatal(err)
	}
	defer vm.Close()
	reg := &vmstate.Registry{}
	fresh := vm.vcpus[0]
	if err := errors.Join(vm.Register(reg), reg.LoadDevices(list[0], nil), reg.Commit()); err != nil {
		t.Fatal(err)
	}
	other(fresh.staged)
	if err := errors.Join(fresh.staged.check(fresh.staged.apic), fresh.restore()); err != nil {
		t.Error("a vCPU that has not run:", err)
	}
}
