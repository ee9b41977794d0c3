package replication

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// BenchmarkJournal compares the primary's writes into a secondary whose
// overlays are in files, each of which waits until its pre-image is stable,
// with as many pwrites of as many bytes to a file, each followed by its
// fdatasync. Both are done by so many goroutines at a time as there would be
// requests under way; the journal's share a sync.
func BenchmarkJournal(b *testing.B) {
	ctx := context.Background()
	const size = 8 << 20
	for _, n := range []int64{4 << 10, 64 << 10} {
		for _, depth := range []int64{1, 16} {
			b.Run(fmt.Sprintf("%dKiB/depth%d", n>>10, depth), func(b *testing.B) {
				dir := b.TempDir()
				file := func(name string) *File {
					f, err := CreateFile(filepath.Join(dir, name), size)
					if err != nil {
						b.Fatal(err)
					}
					b.Cleanup(func() { f.Close() })
					for off := int64(0); off < size; off += int64(len(zeroes)) { // its blocks are there
						f.WriteAt(zeroes[:], off)
					}
					return f
				}
				disk, plain := file("disk"), file("plain")
				j, err := OpenJournalFiles(filepath.Join(dir, "journal"), 4*size)
				if err != nil {
					b.Fatal(err)
				}
				defer j.Close()
				s, err := NewSecondary(disk, SecondaryConfig{Journal: j})
				if err != nil {
					b.Fatal(err)
				}
				if err := s.Start(ctx); err != nil {
					b.Fatal(err)
				}
				x := s.Export()
				requests := min(size/n, 256)
				round := func(write func(p []byte, off int64) error) time.Duration {
					var wg sync.WaitGroup
					begin := time.Now()
					for g := range depth {
						wg.Go(func() {
							p := make([]byte, n)
							for i := g; i < requests; i += depth {
								if err := write(p, i*n); err != nil {
									b.Error(err)
									return
								}
							}
						})
					}
					wg.Wait()
					return time.Since(begin)
				}
				var journaled, bare time.Duration
				epoch, rounds := uint64(0), 0
				both := func() {
					journaled += round(func(p []byte, off int64) error { _, err := x.WriteAt(p, off); return err })
					bare += round(func(p []byte, off int64) error {
						_, err := plain.WriteAt(p, off)
						return errors.Join(err, plain.Sync())
					})
					rounds++
					epoch++
					if err := s.Checkpoint(ctx, epoch); err != nil { // so that there are pre-images to be saved again
						b.Fatal(err)
					}
				}
				both() // the log's blocks are there from now on
				journaled, bare, rounds = 0, 0, 0
				for b.Loop() {
					both()
				}
				rate := func(d time.Duration) float64 { return float64(n*requests*int64(rounds)) / d.Seconds() / 1e6 }
				b.ReportMetric(rate(journaled), "journal-MB/s")
				b.ReportMetric(rate(bare), "pwrite+fdatasync-MB/s")
				b.ReportMetric(rate(journaled)/rate(bare), "ratio")
				b.ReportMetric(0, "ns/op")
			})
		}
	}
}
