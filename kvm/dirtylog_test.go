//go:build linux && amd64

package kvm_test

import (
	"slices"
	"testing"

	"github.com/gocolo/lockstep/kvm"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// manualLog puts a VM's dirty log into the mode in which reading does not clear it.
func manualLog(t *testing.T, options uint64) func(vm int) {
	return enabled(t, 168, options) // KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2
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

// Where a guest had KVM write the time is no reason to write there again: what is loaded is the memory of the guest,
// as it was, and stays so.
func TestLoadingAStateWritesNoMemory(t *testing.T) {
	a, b := newAdopted(t, 1, manualLog(t, 1)), newAdopted(t, 1, manualLog(t, 1))
	if !a.touch(5 * kvm.PageSize) {
		t.Skip("this KVM writes no wall clock")
	}
	state := a.save()
	if err := b.StartDirtyLog(); err != nil {
		t.Fatal(err)
	}
	b.dirty()
	b.load(state)
	if got := b.dirty(); len(got) > 0 {
		t.Errorf("pages %v were written", got)
	}
	if i := slices.IndexFunc(b.mem, func(c byte) bool { return c != 0 }); i >= 0 {
		t.Errorf("memory at %#x has changed", i)
	}
}

// A slot of more pages than are cleared in one call, whose end is no multiple of 64, is cleared piece by piece: each
// page is reported once, in whichever piece it is.
func TestEachPageOfALargeSlotIsReportedOnce(t *testing.T) {
	const piece = 1 << 18
	x := newAdopted(t, 1, manualLog(t, 1), pages{2*piece + 67, 0})
	if err := x.StartDirtyLog(); err != nil {
		t.Fatal(err)
	}
	x.dirty()
	for _, want := range [][]int{{1, 200}, {}, {piece - 1, piece}, {}, {5, piece + 70, 2*piece + 1, 2*piece + 66}, {2*piece + 66}, {}} {
		for _, p := range want {
			if !x.touch(uint64(p) * kvm.PageSize) {
				t.Skip("this KVM writes no wall clock")
			}
		}
		if got := x.dirty(); !slices.Equal(got, want) {
			t.Errorf("pages %v were written, %v are reported", want, got)
		}
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

// A page that is named is reported again and again, and costs no fault; the others are
// logged as always. Which pages of which slot those are depends on where it is in the block.
func TestPagesThatStayWritableAreReportedUntilTheyAreNamedNoMore(t *testing.T) {
	x := newAdopted(t, 1, manualLog(t, 1), pages{65, 0}, pages{130, 3}, pages{1024, 64}, pages{1, 7})
	gpa := map[int]uint64{1: 1, 128: 68, 257: 197, 320: 262, 1343: 1285, 1344: 1293}
	named := ram.NewBitmap(len(x.mem) / kvm.PageSize)
	for _, p := range []int{1, 257, 320, 1344} {
		named.Set(p)
	}
	if x.KeepDirty("pc.ram", named) {
		t.Error("pages stay writable before the log is on")
	}
	must(t, x.StartDirtyLog())
	if x.KeepDirty("pc.ram", named) {
		t.Error("pages stay writable before it is known who clears the log")
	}
	touch := func(list ...int) {
		for _, p := range list {
			if !x.touch(gpa[p] * kvm.PageSize) {
				t.Skip("this KVM writes no wall clock")
			}
		}
	}
	want := func(why string, list ...int) {
		t.Helper()
		if got := x.dirty(); !slices.Equal(got, list) {
			t.Errorf("%s: pages %v are reported, want %v", why, got, list)
		}
	}
	touch(1, 128, 257, 320, 1343, 1344)
	want("who clears is found out", 1, 128, 257, 320, 1343, 1344)
	if !x.KeepDirty("pc.ram", named) {
		t.Fatal("no page stays writable, though the log is cleared by hand")
	}
	if x.KeepDirty("no such block", named) {
		t.Error("pages of a block stay writable that there is not")
	}
	touch(1, 128, 257, 1343)
	want("written", 1, 128, 257, 1343)
	want("not written", 1, 257)
	touch(257, 1343)
	want("two of them written", 1, 257, 1343)
	named.Clear(257)
	x.KeepDirty("pc.ram", named)
	want("one is named no more", 1, 257)
	want("after that", 1)
	touch(257, 320)
	want("written after that", 1, 257, 320)
	x.MarkDirty(gpa[1]*kvm.PageSize, 1)
	want("written by the host too", 1, 320)
	x.KeepDirty("pc.ram", nil)
	want("none is named", 1, 320)
	want("none is owed")
	x.KeepDirty("pc.ram", named)
	touch(1)
	want("named anew", 1)
	must(t, x.StopDirtyLog())
	must(t, x.StartDirtyLog())
	touch(1)
	want("begun anew", 1)
	want("nothing was named for this log")
}

// A list that ends before a slot does names none of its pages, wherever in the block the slot begins: also one that is as long
// as the slot, and one that ends where the slot begins.
func TestAListThatIsTooShortNamesNoPageOfASlot(t *testing.T) {
	x := newAdoptedWith(t, kvm.AttachConfig{OwnLog: true}, 1, nil, pages{64, 0}, pages{65, 0}, pages{64, 0})
	must(t, x.StartDirtyLog())
	words := len(x.mem) / kvm.PageSize / 64
	if !x.KeepDirty("pc.ram", make([]uint64, words)) {
		t.Skip("this KVM forgets each page that it is asked for")
	}
	for n := range words {
		if got := x.KeepDirty("pc.ram", make([]uint64, n)); got != (n > 0) { // the first slot has one word
			t.Errorf("%d words, of %d: pages stay writable: %v", n, words, got)
		}
	}
	named := make([]uint64, words-1) // of the last slot there are none
	for i := range named {
		named[i] = ^uint64(0)
	}
	x.KeepDirty("pc.ram", named)
	x.dirty()
	for _, page := range []uint64{3, 64, 128, 129} {
		if !x.touch(page * kvm.PageSize) {
			t.Skip("this KVM writes no wall clock")
		}
	}
	for _, want := range [][]int{{3, 64, 128, 192}, {3, 64, 128}} { // the last slot begins at page 192 of the block
		if got := x.dirty(); !slices.Equal(got, want) {
			t.Errorf("pages %v are reported, want %v", got, want)
		}
	}
}
