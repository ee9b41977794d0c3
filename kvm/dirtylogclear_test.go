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

// As long as it is not known who clears the log, because vCPUs are running and may have written the same pages again,
// pages that are reported are cleared all the same: each is reported once.
func TestWhileItIsNotKnownWhoClearsTheLogEachPageIsReportedOnce(t *testing.T) {
	require.Usable(t, require.KVM, Probe)
	vm, err := Create(Config{Memory: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer vm.Close()
	v := vm.vcpus[0]
	if err := vm.StartDirtyLog(); err != nil {
		t.Fatal(err)
	}
	runs := func(active bool) {
		vm.mu.Lock()
		defer vm.mu.Unlock()
		v.active = active
	}
	bitmap := make([]uint64, 4)
	read := func() uint64 {
		t.Helper()
		clear(bitmap)
		if err := vm.ReadDirty(RAMBlock, bitmap); err != nil {
			t.Fatal(err)
		}
		return bitmap[0]
	}
	read()
	s := (*vm.slots.Load())[0]
	if s.manual != manualYes {
		t.Skip("this KVM clears the log itself")
	}
	s.manual = manualUnknown
	for page := uint64(3); page < 6; page++ {
		if err := v.state.writeMSR(v.fd, msrWallClockNew, page*PageSize); err != nil {
			t.Skip("this KVM writes no wall clock:", err)
		}
		runs(true)
		first, second := read(), read()
		runs(false)
		if first != 1<<page || second != 0 {
			t.Errorf("page %d was written: %x and then %x are reported", page, first, second)
		}
		if s.manual != manualUnknown {
			t.Errorf("what the guest may have done itself is taken for %d", s.manual)
		}
	}
}
