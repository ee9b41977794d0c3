//go:build linux && amd64

package kvm_test

import (
	"io"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gocolo/lockstep/internal/guest"
	"github.com/gocolo/lockstep/kvm"
	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// A round of a guest that writes 64 pages, with a checkpoint after each: what that takes of
// the processors, the guest's own time and KVM's included, with pages that stay writable and
// without.
func BenchmarkARoundAndACheckpoint(b *testing.B) {
	const pages = 64
	for name, after := range map[string]int{"kept": 0, "protected": -1} {
		b.Run(name, func(b *testing.B) {
			defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(runtime.NumCPU() + 1))
			m := newMachine(b, guest.Params{Pages: pages, Touch: pages}, kvm.Config{})
			m.load()
			// At its frame the vCPU waits, out of the guest, until it is to stop.
			emits, stop := make(chan struct{}), make(chan struct{})
			done := b.Context().Done()
			m.ensure = func(uint64) error {
				select {
				case emits <- struct{}{}:
				case <-stop:
				case <-done:
				}
				select {
				case <-stop:
				case <-done:
				}
				return nil
			}
			m.start()
			saver := ram.NewSaver([]ram.Block{{Name: kvm.RAMBlock, Host: m.Memory()}}, m.VM, ram.SaverConfig{KeepAfter: after})
			var reg vmstate.Registry
			if err := saver.Register(&reg); err != nil {
				b.Fatal(err)
			}
			w := qemufile.NewWriter(io.Discard)
			checkpoint := func(first bool) {
				<-emits
				close(stop)
				m.pause()
				m.mu.Lock()
				stop = make(chan struct{})
				m.mu.Unlock()
				if first {
					if err := reg.SaveSetup(w); err != nil {
						b.Fatal(err)
					}
				} else if whole, err := reg.Capture(); err != nil || !whole {
					b.Fatal(whole, err)
				}
				m.resume()
				if err := reg.SaveComplete(w); err != nil {
					b.Fatal(err)
				}
				if err := w.Flush(); err != nil {
					b.Fatal(err)
				}
			}
			checkpoint(true)
			for range 20 { // until pages are kept, and each has been tried
				checkpoint(false)
			}
			cpu, sent := cpuTime(b), uint64(0)
			for b.Loop() {
				checkpoint(false)
				sent += saver.Stats().Pages
			}
			used := cpuTime(b) - cpu
			if sent < uint64(b.N)*pages {
				b.Fatalf("%d pages in %d checkpoints", sent, b.N)
			}
			b.ReportMetric(float64(used.Microseconds())/float64(b.N), "CPU-µs/op")
			b.ReportMetric(float64(sent)/float64(b.N), "pages/op")
		})
	}
}

// cpuTime returns what the process has used of the processors.
func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
