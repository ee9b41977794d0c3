//go:build linux && amd64

package kvm

import (
	"testing"
	"time"

	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/vmstate"
)

// A kernel without TSC offsets takes a TSC that is written within a second of the last
// for a synchronisation of vCPUs. The TSC is rolled back there as well, and the vCPUs of
// a VM stay in step. How it is judged is as in TestTheTSCIsRolledBackHoweverSoon.
func TestTheTSCIsRolledBackWithoutOffsets(t *testing.T) {
	require.Usable(t, require.KVM, Probe)
	vm, err := Create(Config{VCPUs: 2, Memory: PageSize})
	if err != nil {
		t.Fatal(err)
	}
	defer vm.Close()
	first := vm.vcpus[0]
	read := func(v *VCPU) uint64 {
		n, _, err := v.state.readMSR(v.fd, msrTSC)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	before := read(first)
	if err := first.state.writeMSR(first.fd, msrTSC, before+1<<42); err != nil {
		t.Fatal(err)
	}
	if read(first)-before < 1<<41 {
		t.Skip("this KVM takes a TSC and does not obey")
	}
	for _, v := range vm.vcpus {
		v.staged.tsc.attr = false
	}
	reg := &vmstate.Registry{}
	if err := vm.Register(reg); err != nil {
		t.Fatal(err)
	}
	asked := time.Now()
	early := read(first) // the saved one is between these two, or as near to them as saving took
	stream := encode(t, reg)
	late := read(first)
	khz, saving := uint64(first.state.hasTSCKHz), time.Since(asked)
	for _, wait := range []time.Duration{0, 50, 300, 900} {
		time.Sleep(wait * time.Millisecond)
		reg.NewSession()
		if err := reg.LoadDevices(stream, nil); err != nil {
			t.Fatal(err)
		}
		begun := time.Now()
		if err := reg.Commit(); err != nil {
			t.Fatal(err)
		}
		got := read(first)
		under, over, took := int64(early-got), int64(got-late), time.Since(begun)
		if under > int64(khz)*(saving.Milliseconds()+20) || over > int64(khz)*((saving+took).Milliseconds()+20) {
			t.Errorf("rolled back after %v ms: the TSC is %+d ms from the saved one, saving took %v and restoring %v", int64(wait), over/int64(khz), saving, took)
		}
		if err := vm.TSCError(); err != nil {
			t.Error(err)
		}
	}
}
