package replication

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"
)

// nullDisk is a large disk without content, for the time that the overlays
// take alone.
type nullDisk int64

func (d nullDisk) Size() int64                              { return int64(d) }
func (d nullDisk) ReadAt(p []byte, _ int64) (int, error)    { clear(p); return len(p), nil }
func (d nullDisk) WriteAt(p []byte, off int64) (int, error) { return len(p), nil }
func (d nullDisk) Sync() error                              { return nil }

// BenchmarkCheckpoint measures a checkpoint of overlays in memory, apart from
// the sync of the secondary disk, by what they hold: half of it pre-images,
// half the guest's own writes. Of "sparse" each block has a leaf of the map to
// itself, which is as much map as there can be. The yardstick is a copy of one
// page: how long the machine lets something wait that is as short.
func BenchmarkCheckpoint(b *testing.B) {
	ctx := context.Background()
	for _, mib := range []int64{1, 16, 128, 1024} {
		for _, how := range []string{"dense", "sparse"} {
			b.Run(fmt.Sprintf("%s/%dMiB", how, mib), func(b *testing.B) {
				bound := mib << 20
				step, n := int64(64<<10), bound/(64<<10)
				if how == "sparse" {
					step, n = leafBlocks*BlockSize, bound/((leafCost+1)*BlockSize)
				}
				s, err := NewSecondary(nullDisk(step*n), SecondaryConfig{ActiveBytes: bound, HiddenBytes: bound})
				if err != nil {
					b.Fatal(err)
				}
				if err := s.Start(ctx); err != nil {
					b.Fatal(err)
				}
				p := make([]byte, min(step, 64<<10))
				if how == "sparse" {
					p = p[:BlockSize]
				}
				x := s.Export()
				fill := func() {
					for i := range n {
						var err error
						if i%2 == 0 {
							_, err = x.WriteAt(p, i*step)
						} else {
							_, err = s.WriteAt(p, i*step)
						}
						if err != nil {
							b.Fatal(err)
						}
					}
				}
				var page [2][BlockSize]byte
				var took, yardstick []time.Duration
				epoch := uint64(0)
				checkpoint := func() {
					fill()
					epoch++
					begin := time.Now()
					if err := s.Checkpoint(ctx, epoch); err != nil {
						b.Fatal(err)
					}
					d := time.Since(begin)
					begin = time.Now()
					page[epoch%2] = page[(epoch+1)%2]
					took, yardstick = append(took, d), append(yardstick, time.Since(begin))
				}
				checkpoint() // takes the memory for the first time
				took, yardstick = took[:0], yardstick[:0]
				for b.Loop() {
					checkpoint()
				}
				slices.Sort(took)
				slices.Sort(yardstick)
				b.ReportMetric(float64(took[len(took)/2].Nanoseconds()), "ns-p50")
				b.ReportMetric(float64(took[len(took)-1].Nanoseconds()), "ns-max")
				b.ReportMetric(float64(yardstick[len(yardstick)-1].Nanoseconds()), "ns-yardstick-max")
				b.ReportMetric(0, "ns/op") // with the writes, of no interest
			})
		}
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
