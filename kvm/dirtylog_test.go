//go:build linux && amd64

package kvm_test

import (
	"slices"
	"testing"
	"unsafe"

	"github.com/gocolo/lockstep/kvm"
)

// manualLog puts a VM's dirty log into the mode in which reading does not clear it.
func manualLog(t *testing.T, options uint64) func(vm int) {
	return func(vm int) {
		var e struct {
			cap, flags uint32
			args       [4]uint64
			_          [64]byte
		}
		e.cap, e.args[0] = 168, options // KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2
		if _, err := rawIoctl(vm, reqEnableCap, unsafe.Pointer(&e)); err != nil {
			t.Skip(err)
		}
	}
}

// Whether reading KVM's log clears it is its owner's choice, which KVM does not tell.
// Each page is reported once, in slots of any size, before and after the choice has
// been seen, and with vCPUs that may be running.
func TestEachPageIsReportedOnceWhoeverClearsTheLog(t *testing.T) {
	for name, options := range map[string]uint64{"KVM clears": 0, "cleared by hand": 1} {
		t.Run(name, func(t *testing.T) {
			x := newAdopted(t, 1, manualLog(t, options), pages{65, 0}, pages{130, 3}, pages{1024, 64}, pages{1, 7})
			// In the block each slot begins at a multiple of 64 pages.
			gpa := map[int]uint64{1: 1, 64: 64, 128: 68, 257: 197, 320: 262, 1343: 1285, 1344: 1293}
			if err := x.StartDirtyLog(); err != nil {
				t.Fatal(err)
			}
			x.dirty()
			for _, want := range [][]int{{64}, {}, {1, 64, 128, 257, 320, 1343, 1344}, {}, {1344}, {257, 1343}, {}} {
				for _, p := range want {
					if !x.touch(gpa[p] * kvm.PageSize) {
						t.Skip("this KVM writes no wall clock")
					}
				}
				if got := x.dirty(); !slices.Equal(got, want) {
					t.Errorf("pages %v were written, %v are reported", want, got)
				}
			}
			// A log that begins anew may have another owner's choice.
			manualLog(t, 1-options)(x.fd)
			if err := x.StopDirtyLog(); err != nil {
				t.Fatal(err)
			}
			if err := x.StartDirtyLog(); err != nil {
				t.Fatal(err)
			}
			x.touch(gpa[257] * kvm.PageSize)
			for _, want := range [][]int{{257}, {}, {}} {
				if got := x.dirty(); !slices.Equal(got, want) {
					t.Errorf("begun anew: pages %v were written, %v are reported", want, got)
				}
			}
		})
	}
}

// In the mode in which KVM says at first that everything was written, everything is
// reported at first, and no more.
func TestALogThatBeginsFullIsReportedAndForgotten(t *testing.T) {
	x := newAdopted(t, 1, manualLog(t, 3), pages{65, 0}, pages{130, 3})
	if err := x.StartDirtyLog(); err != nil {
		t.Fatal(err)
	}
	if got := x.dirty(); len(got) != 65+130 {
		t.Errorf("%d of %d pages", len(got), 65+130)
	}
	if got := x.dirty(); len(got) > 0 {
		t.Errorf("pages %v again", got)
	}
}
