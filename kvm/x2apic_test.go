//go:build linux && amd64

package kvm_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"testing"
	"unsafe"

	"github.com/gocolo/lockstep/kvm"
)

// A VMM chooses in which form KVM tells of the ID of an APIC in x2APIC mode (KVM_CAP_X2APIC_API), and KVM takes it in no
// other. The state of a guest is taken by a VM of either kind.
func TestTheIDOfAnX2APICIsTakenInTheFormThatTheVMWants(t *testing.T) {
	const (
		getLAPIC = 0x8400ae8e
		extended = 1 << 10 // of APIC_BASE
		id       = 0x20
	)
	long := enabled(t, 129, 1) // KVM_CAP_X2APIC_API: 32 bits
	kinds := []func(vm int){nil, long}
	for i, from := range kinds {
		for j, to := range kinds {
			t.Run(fmt.Sprintf("%d to %d", 8<<(2*i), 8<<(2*j)), func(t *testing.T) {
				a, b := newAdopted(t, 2, from), newAdopted(t, 2, to)
				sregs, err := a.vcpus[1].Sregs()
				if err != nil {
					t.Fatal(err)
				}
				sregs.ApicBase |= extended
				if err := a.vcpus[1].SetSregs(sregs); err != nil {
					t.Fatal(err)
				}
				for range 2 { // the second time to a vCPU that is in this mode
					b.load(a.save())
					var lapic [1024]byte
					if _, err := rawIoctl(b.fds[1], getLAPIC, unsafe.Pointer(&lapic)); err != nil {
						t.Fatal(err)
					}
					want := uint32(1) << 24
					if to != nil {
						want = 1
					}
					if got := binary.LittleEndian.Uint32(lapic[id:]); got != want {
						t.Errorf("the APIC has ID %#x, want %#x", got, want)
					}
				}
				state := b.save()
				a.load(state) // and back

				// Another ID is refused before anything is loaded.
				var lapic [1024]byte
				if _, err := rawIoctl(b.fds[1], getLAPIC, unsafe.Pointer(&lapic)); err != nil {
					t.Fatal(err)
				}
				at := bytes.LastIndex(state, lapic[:])
				if at < 0 {
					t.Fatal("the APIC is not in the state")
				}
				for _, other := range []uint32{0, 2, 2 << 24, 1<<24 | 1, 1 << 16} {
					binary.LittleEndian.PutUint32(state[at+id:], other)
					for _, x := range []*adopted{a, b} {
						if err := x.stage(state); !errors.Is(err, kvm.ErrState) {
							t.Errorf("ID %#x: %v", other, err)
						}
					}
				}
			})
		}
	}
}
