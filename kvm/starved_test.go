//go:build linux && amd64

package kvm_test

import (
	"fmt"
	"testing"

	"github.com/gocolo/lockstep/internal/leaks"
	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/kvm"
)

// A VM with two vCPUs opens descriptors for itself, for each of them and for the trial of states, and maps
// what KVM shares with each vCPU.
func TestAVMThatLacksADescriptorLeavesNothingBehind(t *testing.T) {
	require.Usable(t, require.KVM, kvm.Probe)
	for _, ring := range []int{0, kvm.AutoRing} {
		t.Run(fmt.Sprint("ring ", ring), func(t *testing.T) {
			n := leaks.Starve(t, func() error {
				vm, err := kvm.Create(kvm.Config{VCPUs: 2, Memory: 2 * leaks.LargeBytes, DirtyRing: ring})
				if err != nil {
					return err
				}
				return vm.Close()
			})
			if n < 4 {
				t.Errorf("it needs %d descriptors", n)
			}
		})
	}
}
