//go:build linux && amd64

package kvm

import (
	"strings"
	"testing"

	"github.com/gocolo/lockstep/internal/require"
)

// A dirty ring has a power of two of entries, from 1024.
func TestADirtyRingOfAnotherSizeIsRefused(t *testing.T) {
	require.Usable(t, require.KVM, Probe)
	for _, n := range []int{1, 512, 1023, 1500, 1 << 21, -2} {
		vm, err := Create(Config{Memory: 1 << 20, DirtyRing: n})
		if err == nil {
			vm.Close()
		}
		if err == nil || !strings.Contains(err.Error(), "a power of two") {
			t.Errorf("a ring of %d entries: %v", n, err)
		}
	}
}
