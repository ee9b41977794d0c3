//go:build linux && amd64

package kvm_test

import (
	"context"
	"errors"
	"sync"
	"testing"

	"github.com/gocolo/lockstep/colo/colotest"
	"github.com/gocolo/lockstep/internal/guest"
	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/kvm"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// What colo asks of any host, asked of a VM of this package: with one vCPU and
// with two, with bitmaps and with rings where the kernel has them.
func TestAVMConformsToWhatASessionReliesOn(t *testing.T) {
	require.Usable(t, require.KVM, kvm.Probe)
	for name, cfg := range map[string]kvm.Config{
		"1 vCPU":              {VCPUs: 1},
		"2 vCPUs":             {VCPUs: 2},
		"2 vCPUs, best log":   {VCPUs: 2, DirtyRing: kvm.AutoRing},
		"2 vCPUs, small ring": {VCPUs: 2, DirtyRing: 1024},
	} {
		t.Run(name, func(t *testing.T) {
			colotest.TestVM(t, func(t *testing.T) colotest.Host { return host(t, cfg) })
		})
	}
}

// host boots the flat test program and returns its VM, paused, with its vCPUs'
// loops started.
func host(t *testing.T, cfg kvm.Config) colotest.Host {
	p := guest.Params{VCPUs: cfg.VCPUs, Pages: 64, Touch: 4, Seed: 1}
	cfg.Memory = p.MemSize()
	vm, err := kvm.Create(cfg)
	var missing *kvm.CapabilityError
	if errors.As(err, &missing) {
		t.Skip(err)
	}
	must(t, err)
	must(t, vm.Pause(t.Context()))
	must(t, guest.Load(vm.Memory(), p))
	for i, v := range vm.VCPUs() {
		regs, err := v.Regs()
		must(t, err)
		sregs, err := v.Sregs()
		must(t, err)
		guest.SetBootState(i, &regs, &sregs)
		must(t, errors.Join(v.SetSregs(sregs), v.SetRegs(regs), v.SetRunnable()))
	}
	must(t, vm.StartDirtyLog())

	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	for _, v := range vm.VCPUs() {
		handle := v.Dispatch(kvm.Handler{IO: func(io *kvm.IO) error {
			if io.In {
				io.Data[0] = guest.StatusReady
			}
			return nil
		}})
		running.Go(func() {
			if err := v.Run(ctx, handle); ctx.Err() == nil {
				t.Errorf("vCPU %d: %v", v.Index(), err)
			}
		})
	}
	t.Cleanup(func() {
		stop()
		running.Wait()
		must(t, vm.Close())
	})
	return colotest.Host{
		VM:       vm,
		Log:      vm,
		Blocks:   []ram.Block{{Name: kvm.RAMBlock, Host: vm.Memory()}},
		Register: vm.Register,
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
