//go:build linux && amd64

package kvm

import (
	"context"
	"errors"
	"io"
	"slices"
	"testing"
	"time"
	"unsafe"

	gokvm "github.com/bobuhiro11/gokvm/kvm"

	"github.com/gocolo/lockstep/internal/guest"
	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate"
)

// benchGuest returns a VM that runs the test program until the benchmark ends.
// emit, if not nil, is called for each frame, on the vCPU's goroutine.
func benchGuest(b *testing.B, p guest.Params, cfg Config, emit func()) *VM {
	b.Helper()
	require.Usable(b, require.KVM, Probe)
	cfg.VCPUs, cfg.Memory = max(p.VCPUs, 1), max(cfg.Memory, p.MemSize())
	vm, err := Create(cfg)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := vm.Close(); err != nil {
			b.Error(err)
		}
	})
	if err := guest.Load(vm.Memory(), p); err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	for i, v := range vm.VCPUs() {
		regs, err := v.Regs()
		sregs, err2 := v.Sregs()
		guest.SetBootState(i, &regs, &sregs)
		if err := errors.Join(err, err2, v.SetSregs(sregs), v.SetRegs(regs), v.SetRunnable()); err != nil {
			b.Fatal(err)
		}
		go func() {
			ended <- v.Run(ctx, v.Dispatch(Handler{IO: func(x *IO) error {
				if x.In {
					x.Data[0] = guest.StatusReady
				} else if emit != nil {
					emit()
				}
				return nil
			}}))
		}()
	}
	b.Cleanup(func() {
		cancel()
		for range vm.VCPUs() {
			if err := <-ended; !errors.Is(err, context.Canceled) {
				b.Error(err)
			}
		}
	})
	return vm
}

// vcpuIoctl returns what the cheapest ioctl on a vCPU costs here: KVM loads the
// vCPU onto the CPU for each.
func vcpuIoctl(b *testing.B, v *VCPU) time.Duration {
	var mp gokvm.MPState
	const n = 200
	start := time.Now()
	for range n {
		if _, err := ioctl(v.fd, "KVM_GET_MP_STATE", kvmGetMPState, unsafe.Pointer(&mp)); err != nil {
			b.Fatal(err)
		}
	}
	return time.Since(start) / n
}

// percentiles reports the median and the 99th percentile.
func percentiles(b *testing.B, d []time.Duration) {
	slices.Sort(d)
	b.ReportMetric(float64(d[len(d)/2].Nanoseconds())/1e3, "p50-µs")
	b.ReportMetric(float64(d[len(d)*99/100].Nanoseconds())/1e3, "p99-µs")
	b.ReportMetric(0, "ns/op")
}

func BenchmarkPause(b *testing.B) {
	for name, p := range map[string]guest.Params{
		"computing/vcpus=1": {Pages: 64, Touch: 1, Delay: 1 << 20},
		"computing/vcpus=2": {VCPUs: 2, Pages: 64, Touch: 1, Delay: 1 << 20},
		"ports/vcpus=1":     {Pages: 64, Touch: 1},
	} {
		b.Run(name, func(b *testing.B) {
			vm := benchGuest(b, p, Config{}, nil)
			ctx := context.Background()
			var took, resumed []time.Duration
			for b.Loop() {
				time.Sleep(200 * time.Microsecond)
				start := time.Now()
				if err := vm.Pause(ctx); err != nil {
					b.Fatal(err)
				}
				took = append(took, time.Since(start))
				start = time.Now()
				if err := vm.Resume(ctx); err != nil {
					b.Fatal(err)
				}
				resumed = append(resumed, time.Since(start))
			}
			percentiles(b, took)
			slices.Sort(resumed)
			b.ReportMetric(float64(resumed[len(resumed)/2].Nanoseconds())/1e3, "resume-p50-µs")
		})
	}
}

// ioctlsToSave is how many vCPU ioctls a save takes, about what a restore takes.
const ioctlsToSave = 9

func BenchmarkSave(b *testing.B) {
	vm := benchGuest(b, guest.Params{Pages: 64, Touch: 1}, Config{}, nil)
	if err := vm.Pause(context.Background()); err != nil {
		b.Fatal(err)
	}
	reg := &vmstate.Registry{}
	if err := vm.Register(reg); err != nil {
		b.Fatal(err)
	}
	w := qemufile.NewWriter(io.Discard)
	unit := vcpuIoctl(b, vm.vcpus[0])
	b.ReportAllocs()
	for b.Loop() {
		if err := reg.SaveDevices(w); err != nil {
			b.Fatal(err)
		}
		if err := w.Flush(); err != nil {
			b.Fatal(err)
		}
	}
	report(b, unit)
	_ = vm.Resume(context.Background())
}

func report(b *testing.B, unit time.Duration) {
	each := float64(b.Elapsed().Nanoseconds()) / float64(b.N)
	b.ReportMetric(float64(unit.Nanoseconds()), "ns/vcpu-ioctl")
	b.ReportMetric(each/float64(unit.Nanoseconds()*ioctlsToSave), "x-of-9-ioctls")
}

func BenchmarkRestore(b *testing.B) {
	vm := benchGuest(b, guest.Params{Pages: 64, Touch: 1}, Config{}, nil)
	if err := vm.Pause(context.Background()); err != nil {
		b.Fatal(err)
	}
	reg := &vmstate.Registry{}
	if err := vm.Register(reg); err != nil {
		b.Fatal(err)
	}
	stream := encode(b, reg)
	unit := vcpuIoctl(b, vm.vcpus[0])
	b.ReportAllocs()
	for b.Loop() {
		reg.NewSession()
		if err := reg.LoadDevices(stream, nil); err != nil {
			b.Fatal(err)
		}
		if err := reg.Commit(); err != nil {
			b.Fatal(err)
		}
	}
	report(b, unit)
	_ = vm.Resume(context.Background())
}

func BenchmarkReadDirtyIdle(b *testing.B) {
	for name, cfg := range map[string]Config{
		"bitmap/128MiB": {Memory: 128 << 20},
		"bitmap/1GiB":   {Memory: 1 << 30},
		"ring/1GiB":     {Memory: 1 << 30, DirtyRing: 4096},
	} {
		b.Run(name, func(b *testing.B) {
			require.Usable(b, require.KVM, Probe)
			vm, err := Create(cfg)
			if err != nil {
				b.Fatal(err)
			}
			defer vm.Close()
			if err := vm.StartDirtyLog(); err != nil {
				b.Fatal(err)
			}
			bitmap := make([]uint64, cfg.Memory/PageSize/64)
			var bound time.Duration
			if cfg.DirtyRing == 0 {
				const n = 100
				s := (*vm.slots.Load())[0]
				start := time.Now()
				for range n {
					if err := vm.readDirtyLog(s, s.log); err != nil {
						b.Fatal(err)
					}
				}
				bound = time.Since(start) / n
			}
			b.ReportAllocs()
			for b.Loop() {
				if err := vm.ReadDirty(RAMBlock, bitmap); err != nil {
					b.Fatal(err)
				}
			}
			if bound > 0 {
				b.ReportMetric(float64(b.Elapsed())/float64(b.N)/float64(bound), "x-of-ioctl")
			}
		})
	}
}

func BenchmarkReadDirtyPerPage(b *testing.B) {
	const pages = 1000
	for name, cfg := range map[string]Config{
		"bitmap": {Memory: 256 << 20},
		"ring":   {Memory: 256 << 20, DirtyRing: 8192},
	} {
		b.Run(name, func(b *testing.B) {
			round := make(chan struct{}, 1)
			vm := benchGuest(b, guest.Params{Pages: pages, Touch: pages}, cfg, func() {
				select {
				case round <- struct{}{}:
				default:
				}
			})
			if err := vm.StartDirtyLog(); err != nil {
				b.Fatal(err)
			}
			bitmap := make([]uint64, cfg.Memory/PageSize/64)
			var took []time.Duration
			for b.Loop() {
				<-round
				<-round
				if err := vm.Pause(context.Background()); err != nil {
					b.Fatal(err)
				}
				start := time.Now()
				if err := vm.ReadDirty(RAMBlock, bitmap); err != nil {
					b.Fatal(err)
				}
				took = append(took, time.Since(start))
				if err := vm.Resume(context.Background()); err != nil {
					b.Fatal(err)
				}
			}
			percentiles(b, took)
			b.ReportMetric(float64(took[len(took)/2].Nanoseconds())/pages, "ns/page")
		})
	}
}
