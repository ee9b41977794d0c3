//go:build linux && amd64

package kvm

import (
	"context"
	"errors"
	"io"
	"testing"

	"github.com/gocolo/lockstep/internal/guest"
	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate"
)

// What each checkpoint does, on either side, allocates nothing.
func TestSavingAndRestoringAllocateNothing(t *testing.T) {
	require.Usable(t, require.KVM, Probe)
	p := guest.Params{VCPUs: 2, Pages: 8, Touch: 1}
	vm, err := Create(Config{VCPUs: 2, Memory: p.MemSize()})
	if err != nil {
		t.Fatal(err)
	}
	defer vm.Close()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(guest.Load(vm.Memory(), p))
	for i, v := range vm.VCPUs() {
		regs, err := v.Regs()
		sregs, err2 := v.Sregs()
		guest.SetBootState(i, &regs, &sregs)
		must(errors.Join(err, err2, v.SetSregs(sregs), v.SetRegs(regs), v.SetRunnable()))
	}
	must(vm.StartDirtyLog())
	reg := &vmstate.Registry{}
	must(vm.Register(reg))
	w := qemufile.NewWriter(io.Discard)
	bitmap := make([]uint64, len(vm.Memory())/PageSize/64+1)
	save := func() {
		must(reg.SaveDevices(w))
		must(reg.CaptureDevices())
		must(reg.SaveCaptured(w))
		must(w.Flush())
		must(vm.ReadDirty(RAMBlock, bitmap))
		vm.KeepDirty(RAMBlock, bitmap)
		vm.MarkDirty(0, PageSize)
	}
	save()
	if n := testing.AllocsPerRun(50, save); n != 0 {
		t.Errorf("saving: %v allocations", n)
	}
	stream := encode(t, reg)
	devices := []vmstate.PostLoader{chipDevice{vm}, pitDevice{vm}, vcpuDevice{vm.vcpus[0]}, vcpuDevice{vm.vcpus[1]}, clockDevice{vm}}
	must(reg.LoadDevices(stream, nil))
	must(reg.Commit())
	if n := testing.AllocsPerRun(50, func() {
		for _, d := range devices {
			must(d.PostLoad(1))
		}
		must(vm.vcpus[0].staged.check(true))
		must(vm.vcpus[0].staged.spare.try(vm.vcpus[0].staged))
	}); n != 0 {
		t.Errorf("restoring: %v allocations", n)
	}
	ctx := context.Background()
	if n := testing.AllocsPerRun(50, func() { must(vm.Pause(ctx)); must(vm.Resume(ctx)) }); n > 4 {
		t.Errorf("pausing: %v allocations, those of a context's callback apart", n)
	}
}
