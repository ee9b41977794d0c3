//go:build linux && amd64

package kvm

import (
	"context"
	"errors"
	"io"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/gocolo/lockstep/internal/guest"
	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate"
)

// The true pause of a checkpoint without its memory's copy: what the guest loses while
// its devices are saved and its dirty log is read. Beside it, in the same run, its
// parts, and its bound: the guest's own ioctls and a thread that is woken by another.
func BenchmarkStopped(b *testing.B) {
	for name, p := range map[string]guest.Params{
		"vcpus=1": {Pages: 64, Touch: 1, Delay: 1 << 16},
		"vcpus=2": {VCPUs: 2, Pages: 64, Touch: 1, Delay: 1 << 16},
	} {
		b.Run(name, func(b *testing.B) {
			defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(runtime.NumCPU() + max(p.VCPUs, 1)))
			vm := benchGuest(b, p, Config{Memory: 64 << 20}, nil)
			reg := &vmstate.Registry{}
			if err := vm.Register(reg); err != nil {
				b.Fatal(err)
			}
			if err := vm.StartDirtyLog(); err != nil {
				b.Fatal(err)
			}
			ctx := context.Background()
			w := qemufile.NewWriter(io.Discard)
			bitmap := make([]uint64, (64<<20)/PageSize/64)
			var stopped, pausing, saving, logging, resuming []time.Duration
			for b.Loop() {
				time.Sleep(300 * time.Microsecond)
				t0 := time.Now()
				if err := vm.Pause(ctx); err != nil {
					b.Fatal(err)
				}
				t1 := time.Now()
				if err := reg.CaptureDevices(); err != nil {
					b.Fatal(err)
				}
				t2 := time.Now()
				if err := vm.ReadDirty(RAMBlock, bitmap); err != nil {
					b.Fatal(err)
				}
				t3 := time.Now()
				if err := vm.Resume(ctx); err != nil {
					b.Fatal(err)
				}
				t4 := time.Now()
				if err := errors.Join(reg.SaveCaptured(w), w.Flush()); err != nil {
					b.Fatal(err)
				}
				for n := 0; vm.stops.out.Load() != 0 && n < 1000; n++ {
					time.Sleep(50 * time.Microsecond)
				}
				stopped = append(stopped, vm.Stopped())
				pausing = append(pausing, t1.Sub(t0))
				saving = append(saving, t2.Sub(t1))
				logging = append(logging, t3.Sub(t2))
				resuming = append(resuming, t4.Sub(t3))
			}
			percentiles(b, stopped)
			for name, list := range map[string][]time.Duration{"pause": pausing, "save": saving, "log": logging, "resume": resuming} {
				slices.Sort(list)
				b.ReportMetric(float64(list[len(list)/2].Nanoseconds())/1e3, name+"-p50-µs")
			}
			b.ReportMetric(float64(stopped[len(stopped)/10].Nanoseconds())/1e3, "p10-µs")
		})
	}
}
