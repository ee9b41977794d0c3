package replication

import (
	"context"
	"fmt"
	"testing"
	"time"
)

// BenchmarkCheckpoint measures a checkpoint of overlays in memory, apart from
// the sync of the secondary disk, by what they hold.
func BenchmarkCheckpoint(b *testing.B) {
	ctx := context.Background()
	for _, mib := range []int64{1, 16, 128} {
		b.Run(fmt.Sprintf("%dMiB", mib), func(b *testing.B) {
			size := mib << 20
			s, err := NewSecondary(newFake(int(size), 0), SecondaryConfig{})
			if err != nil {
				b.Fatal(err)
			}
			if err := s.Start(ctx); err != nil {
				b.Fatal(err)
			}
			p := make([]byte, 64<<10)
			x := s.Export()
			var total, worst time.Duration
			n := 0
			for epoch := uint64(1); b.Loop(); epoch++ {
				for off := int64(0); off < size; off += int64(len(p)) {
					if off/int64(len(p))%2 == 0 {
						x.WriteAt(p, off)
					} else {
						s.WriteAt(p, off)
					}
				}
				begin := time.Now()
				if err := s.Checkpoint(ctx, epoch); err != nil {
					b.Fatal(err)
				}
				d := time.Since(begin)
				total, worst, n = total+d, max(worst, d), n+1
			}
			b.ReportMetric(float64(total.Nanoseconds())/float64(n), "ns/checkpoint")
			b.ReportMetric(float64(worst.Nanoseconds()), "ns/worst")
			b.ReportMetric(0, "ns/op") // with the writes, of no interest
		})
	}
}

// BenchmarkSecondaryGuest compares the guest's reads and writes through the
// overlays with a copy of memory, the bound of it.
func BenchmarkSecondaryGuest(b *testing.B) {
	for _, n := range []int{4 << 10, 64 << 10} {
		for _, op := range []string{"write", "read-own", "read-old", "read-disk"} {
			b.Run(fmt.Sprintf("%s/%dKiB", op, n>>10), func(b *testing.B) {
				const size = 16 << 20
				s, err := NewSecondary(newFake(size, 0), SecondaryConfig{})
				if err != nil {
					b.Fatal(err)
				}
				if err := s.Start(context.Background()); err != nil {
					b.Fatal(err)
				}
				p := make([]byte, n)
				if op == "write" || op == "read-own" {
					s.WriteAt(make([]byte, size), 0)
				} else {
					s.WriteAt(p, size-int64(n)) // an empty overlay has a short cut
				}
				if op == "read-old" {
					s.Export().WriteAt(make([]byte, size-n), 0)
				}
				from := make([]byte, size)
				copies := 1 + b.N/4
				b.SetBytes(int64(n))
				b.ReportAllocs()
				off := int64(0)
				i := 0
				for b.Loop() {
					if op == "write" {
						s.WriteAt(p, off)
					} else {
						s.ReadAt(p, off)
					}
					off = (off + int64(n)) % (size - int64(n))
					i++
				}
				took := b.Elapsed()
				copies = max(copies, i)
				begin := time.Now()
				for range copies {
					copy(p, from[off:])
					off = (off + int64(n)) % (size - int64(n))
				}
				bound := float64(time.Since(begin)) / float64(copies)
				b.ReportMetric(float64(took)/float64(i)/bound, "x-memcpy")
			})
		}
	}
}
