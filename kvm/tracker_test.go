//go:build linux && amd64

package kvm_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/gocolo/lockstep/internal/guest"
	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/kvm"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// blocksOf returns a machine's memory.
func blocksOf(m *machine) []ram.Block { return []ram.Block{{Name: kvm.RAMBlock, Host: m.Memory()}} }

// readLog returns the pages that a log reports of a machine.
func readLog(t testing.TB, log ram.DirtyLog, m *machine) ram.Bitmap {
	t.Helper()
	bitmap := ram.NewBitmap(len(m.Memory()) / kvm.PageSize)
	if err := log.ReadDirty(kvm.RAMBlock, bitmap); err != nil {
		t.Fatal(err)
	}
	return bitmap
}

func TestKVMsLogHasEveryPageThatTheKernelSawWritten(t *testing.T) {
	for name, ring := range map[string]int{"bitmap": 0, "ring": kvm.AutoRing} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t, guest.Params{VCPUs: 2, Pages: 256, Touch: 24, TSCPerMille: 500, Seed: 9}, kvm.Config{DirtyRing: ring})
			m.load()
			paused := true
			var missed []uint64
			v, err := ram.NewVerifier(blocksOf(m), ram.VerifierConfig{
				Log: m, Paused: func() bool { return paused },
				Missed: func(_ string, off uint64) { missed = append(missed, off) },
			})
			require.Granted(t, require.Userfaultfd, err)
			defer v.Close()
			if err := v.StartDirtyLog(); err != nil {
				t.Fatal(err)
			}
			readLog(t, v, m)
			copied := slices.Clone(m.Memory())
			m.start()
			pages := 0
			for n := uint64(1); n <= 20; n++ {
				paused = false
				m.resume()
				m.await(4 * n)
				got := readLog(t, v, m)
				pages += copyPages(copied, m.Memory(), got)
				m.pause()
				paused = true
				pages += copyPages(copied, m.Memory(), readLog(t, v, m))
				wantSame(t, fmt.Sprintf("pause %d", n), copied, m.Memory())
			}
			if missed != nil {
				t.Errorf("written and not in KVM's log: pages at %#x", missed)
			}
			if pages == 0 {
				t.Error("the guest wrote nothing")
			}
			// A device that does not say what it writes is named.
			m.Memory()[5*kvm.PageSize]++
			m.Memory()[9*kvm.PageSize]++
			m.MarkDirty(9*kvm.PageSize, 1)
			readLog(t, v, m)
			if want := []uint64{5 * kvm.PageSize}; !slices.Equal(missed, want) {
				t.Errorf("named %#x, want %#x", missed, want)
			}
		})
	}
}

func TestATrackerAloneHasAllThatAKVMGuestWrites(t *testing.T) {
	m := newMachine(t, guest.Params{VCPUs: 2, Pages: 128, Touch: 12, Seed: 4}, kvm.Config{})
	m.load()
	tr, err := ram.NewTracker(blocksOf(m))
	require.Granted(t, require.Userfaultfd, err)
	defer tr.Close()
	if err := tr.StartDirtyLog(); err != nil {
		t.Fatal(err)
	}
	copied := slices.Clone(m.Memory())
	m.start()
	for n := uint64(1); n <= 20; n++ {
		m.resume()
		m.await(4 * n)
		copyPages(copied, m.Memory(), readLog(t, tr, m))
		m.pause()
		copyPages(copied, m.Memory(), readLog(t, tr, m))
		wantSame(t, fmt.Sprintf("pause %d", n), copied, m.Memory())
	}
}

// BenchmarkTracker runs the same rounds of one guest with KVM's log and with a tracker, in
// turns, and reports the tracker's cost as a ratio to that of KVM's own log: of reading
// the log, and of the guest's rounds.
func BenchmarkTracker(b *testing.B) {
	for _, touch := range []int{100, 1000} {
		b.Run(fmt.Sprintf("pages=%d", touch), func(b *testing.B) {
			const rounds = 10
			m := newMachine(b, guest.Params{Pages: 20 * touch, Touch: touch, Seed: 1}, kvm.Config{})
			m.load()
			tr, err := ram.NewTracker(blocksOf(m))
			require.Granted(b, require.Userfaultfd, err)
			defer tr.Close()
			m.start()
			n := uint64(0)
			turn := func(log interface {
				ram.DirtyLog
				ram.LogSwitch
			}) (start, run, read time.Duration, pages int) {
				t0 := time.Now()
				if err := log.StartDirtyLog(); err != nil {
					b.Fatal(err)
				}
				start = time.Since(t0)
				t0 = time.Now()
				m.resume()
				n += rounds
				m.await(n)
				m.pause()
				run = time.Since(t0)
				bitmap := ram.NewBitmap(len(m.Memory()) / kvm.PageSize)
				t0 = time.Now()
				if err := log.ReadDirty(kvm.RAMBlock, bitmap); err != nil {
					b.Fatal(err)
				}
				read = time.Since(t0)
				if err := log.StopDirtyLog(); err != nil {
					b.Fatal(err)
				}
				return start, run, read, bitmap.Count()
			}
			var ours, theirs [3][]time.Duration
			pages := 0
			for b.Loop() {
				s, r, d, _ := turn(m)
				theirs[0], theirs[1], theirs[2] = append(theirs[0], s), append(theirs[1], r), append(theirs[2], d)
				s, r, d, k := turn(tr)
				ours[0], ours[1], ours[2] = append(ours[0], s), append(ours[1], r), append(ours[2], d)
				pages += k
			}
			ratio := func(i int) float64 {
				slices.Sort(ours[i])
				slices.Sort(theirs[i])
				return float64(ours[i][len(ours[i])/2]) / float64(theirs[i][len(theirs[i])/2])
			}
			b.ReportMetric(float64(pages)/float64(b.N), "pages/op")
			b.ReportMetric(ratio(0), "start-of-kvm")
			b.ReportMetric(ratio(1), "run-of-kvm")
			b.ReportMetric(ratio(2), "read-of-kvm")
			b.ReportMetric(float64(ours[2][len(ours[2])/2].Microseconds()), "read-µs")
			b.ReportMetric(0, "ns/op")
		})
	}
}
