//go:build linux && amd64

package kvm_test

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/gocolo/lockstep/kvm"
)

// obeys reports whether this KVM sets a TSC as it is told.
func (x *adopted) obeys() bool {
	before, _ := readMSR(x.fds[0], 0x10)
	writeMSR(x.fds[0], 0x10, before+1<<42)
	after, _ := readMSR(x.fds[0], 0x10)
	return after-before > 1<<41
}

// khz returns the frequency of the guest's TSC.
func (x *adopted) khz() uint64 {
	n, err := rawValue(x.fds[0], 0xaea3, 0) // KVM_GET_TSC_KHZ
	if err != nil {
		x.Fatal(err)
	}
	return uint64(n)
}

// KVM takes a TSC that is written within a second of the last write for an attempt to
// synchronise vCPUs. Rolled back at once or later, the guest's TSC goes on from the
// saved one: no later than restoring took. The saved one was read within a call, and so were those by which
// it is judged. Where the host's TSC is not stable, each call begins with the same TSC, so
// that an early reading that took long may be later than a late one: by no more than they took.
func TestTheTSCIsRolledBackHoweverSoon(t *testing.T) {
	x := newAdopted(t, 2, nil)
	if !x.obeys() {
		t.Skip("this KVM takes a TSC and does not obey")
	}
	a := newAdopted(t, 2, nil)
	asked := time.Now()
	early, _ := readMSR(a.fds[0], 0x10) // the saved one is between these two, or as near to them as saving took
	state := a.save()
	late, _ := readMSR(a.fds[0], 0x10)
	khz, saving := x.khz(), time.Since(asked)
	x.load(state)
	for _, wait := range []time.Duration{0, 50, 300, 900, 1500} {
		time.Sleep(wait * time.Millisecond)
		begun := time.Now()
		x.load(state)
		got, _ := readMSR(x.fds[0], 0x10)
		took := time.Since(begun)
		if under, over := int64(early-got), int64(got-late); under > int64(khz)*(saving.Milliseconds()+20) || over > int64(khz)*((saving+took).Milliseconds()+20) {
			t.Errorf("rolled back after %v ms: the TSC is %+d ms from the saved one, saving took %v and restoring %v", int64(wait), over/int64(khz), saving, took)
		}
		if err := x.TSCError(); err != nil {
			t.Error(err)
		}
	}
}

// The TSCs of a VM's vCPUs stay as far apart as they were: to the cycle, unless the
// host's own TSC is not stable, where KVM moves the offsets when it likes.
func TestTheTSCsOfAVMKeepTheirDistance(t *testing.T) {
	x := newAdopted(t, 3, nil)
	if !x.obeys() {
		t.Skip("this KVM takes a TSC and does not obey")
	}
	apart := func(x *adopted, v int) int64 {
		first, ok := tscOffset(x.fds[0])
		other, _ := tscOffset(x.fds[v])
		if !ok {
			t.Skip("this KVM has no TSC offsets")
		}
		return int64(other - first)
	}
	a := newAdopted(t, 3, nil)
	khz := a.khz()
	for v, ms := range []uint64{0, 0, 5000} {
		now, _ := readMSR(a.fds[v], 0x10)
		writeMSR(a.fds[v], 0x10, now+ms*khz)
	}
	slack, was := int64(0), apart(a, 1)
	a.save()
	if now := apart(a, 1); now != was {
		t.Logf("the host's TSC is not stable: %d cycles are %d without anybody's doing", was, now)
		slack = int64(20 * khz)
	}
	y := newAdopted(t, 3, nil)
	for range 3 {
		begun := time.Now()
		y.load(a.save())
		for v := 1; v < 3; v++ {
			was, is, most := apart(a, v), apart(y, v), slack
			if slack > 0 { // what KVM moves them by is time that passes, while they are read too
				most += time.Since(begun).Milliseconds() * int64(khz)
			}
			if was-is > most || is-was > most {
				t.Errorf("vCPU %d was %d cycles from the first and is %d", v, was, is)
			}
		}
	}
}

// A host whose TSC is not stable is told of, once; no other is.
func TestAHostWhoseTSCIsNotStableIsSaid(t *testing.T) {
	var log bytes.Buffer
	x := newAdoptedWith(t, kvm.AttachConfig{Log: slog.New(slog.NewTextHandler(&log, nil))}, 2, nil)
	if !x.obeys() {
		t.Skip("this KVM takes a TSC and does not obey")
	}
	state := x.save()
	for range 3 {
		x.load(state)
	}
	last, ok := tscOffset(x.fds[0])
	if !ok {
		t.Skip("this KVM has no TSC offsets")
	}
	again, _ := tscOffset(x.fds[0])
	want := 0
	if last != again { // nobody has set it meanwhile
		want = 1
	}
	if got := strings.Count(log.String(), "TSC is not stable"); got != want {
		t.Errorf("the offset was %d, and is %d; the log tells %d times of a TSC that is not stable, want %d:\n%s", last, again, got, want, &log)
	}
}

// A KVM that takes a TSC and does not obey is told of, and the state is restored all
// the same.
func TestATSCThatIsNotObeyedIsSaid(t *testing.T) {
	x := newAdopted(t, 1, nil)
	if x.obeys() {
		t.Skip("this KVM obeys")
	}
	state := x.save()
	if err := x.TSCError(); err != nil {
		t.Error("before anything was restored:", err)
	}
	// A TSC runs on while the state is on its way.
	time.Sleep(100 * time.Millisecond)
	x.load(state)
	var e *kvm.TSCError
	if err := x.TSCError(); !errors.As(err, &e) || e.Got == e.Want || e.VCPU != 0 {
		t.Errorf("got %v, want a TSCError", err)
	}
}

// The clock of a guest that is to catch up goes on from where it was saved plus the time that
// has passed since; any other guest's goes on from where it was saved.
func TestAGuestCatchesUpWithTheWallClockIfAsked(t *testing.T) {
	for _, catchUp := range []bool{false, true} {
		x := newAdoptedWith(t, kvm.AttachConfig{CatchUp: catchUp}, 1, nil)
		state := x.save()
		saved := x.clock()
		const away = 300 * time.Millisecond
		time.Sleep(away)
		begun := time.Now()
		x.load(state)
		ahead := x.clock() - saved
		took := time.Since(begun)
		switch {
		case catchUp && ahead < away-away/10: // the clock of day may be slewed meanwhile
			t.Errorf("caught up: %v ahead of the saved clock after %v", ahead, away)
		case !catchUp && ahead > took+away/2:
			t.Errorf("did not catch up: %v ahead of the saved clock, loading took %v", ahead, took)
		}
	}
}
