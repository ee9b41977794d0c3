//go:build linux && amd64

package kvm

import (
	"errors"
	"fmt"
	"testing"

	"github.com/gocolo/lockstep/internal/require"
)

// A log that is turned off forgets what it held: nothing of it is reported when the log is on again.
func TestALogThatWasOffBeginsEmpty(t *testing.T) {
	require.Usable(t, require.KVM, Probe)
	for _, ring := range []int{0, 1024} {
		t.Run(fmt.Sprintf("ring=%d", ring), func(t *testing.T) {
			vm, err := Create(Config{Memory: 1 << 20, DirtyRing: ring})
			if errors.Is(err, errors.ErrUnsupported) {
				t.Skip(err)
			}
			if err != nil {
				t.Fatal(err)
			}
			defer vm.Close()
			v := vm.vcpus[0]
			bitmap := make([]uint64, 4)
			read := func() []uint64 {
				t.Helper()
				clear(bitmap)
				if err := vm.ReadDirty(RAMBlock, bitmap); err != nil {
					t.Fatal(err)
				}
				return bitmap
			}
			write := func(page uint64) {
				t.Helper()
				if err := v.state.writeMSR(v.fd, msrWallClockNew, page*PageSize); err != nil {
					t.Skip("this KVM writes no wall clock:", err)
				}
			}
			if err := vm.StartDirtyLog(); err != nil {
				t.Fatal(err)
			}
			read()
			write(5)
			if got := read(); got[0] != 1<<5 {
				t.Skipf("this KVM writes no wall clock: %x", got)
			}
			write(7)
			if err := errors.Join(vm.StopDirtyLog(), vm.StartDirtyLog()); err != nil {
				t.Fatal(err)
			}
			write(9)
			if got := read(); got[0] != 1<<9 {
				t.Errorf("pages %x are reported, want %x", got, uint64(1<<9))
			}
		})
	}
}
