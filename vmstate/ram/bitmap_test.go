package ram

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

func TestBitmapAgainstASliceOfBools(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	rounds := 300
	if testing.Short() {
		rounds = 50
	}
	for range rounds {
		pages := 1 + r.IntN(400)
		b, model := NewBitmap(pages), make([]bool, pages)
		for range 40 {
			lo := r.IntN(pages)
			hi := lo + r.IntN(pages-lo+1)
			switch r.IntN(5) {
			case 0:
				b.SetRange(lo, hi)
				for i := lo; i < hi; i++ {
					model[i] = true
				}
			case 1:
				b.ClearRange(lo, hi)
				for i := lo; i < hi; i++ {
					model[i] = false
				}
			case 2:
				b.Set(lo)
				model[lo] = true
			case 3:
				b.Clear(lo)
				model[lo] = false
			case 4:
				other := NewBitmap(pages)
				other.SetRange(lo, hi)
				b.Or(other)
				for i := lo; i < hi; i++ {
					model[i] = true
				}
			}
			var want []int
			for i, set := range model {
				if b.Has(i) != set {
					t.Fatalf("page %d: %v, want %v", i, b.Has(i), set)
				}
				if set {
					want = append(want, i)
				}
			}
			if got := slices.Collect(b.All()); !slices.Equal(got, want) {
				t.Fatalf("All = %v, want %v", got, want)
			}
			var next []int
			for i := b.Next(0); i >= 0; i = b.Next(i + 1) {
				next = append(next, i)
			}
			if !slices.Equal(next, want) || b.Count() != len(want) {
				t.Fatalf("Next = %v, Count = %d, want %v", next, b.Count(), want)
			}
		}
	}
}

func TestWalkingABitmapMayStopAndMayClear(t *testing.T) {
	b := NewBitmap(200)
	b.SetRange(60, 70)
	for i := range b.All() {
		b.Clear(i)
		if i == 65 {
			break
		}
	}
	if got := slices.Collect(b.All()); !slices.Equal(got, []int{66, 67, 68, 69}) {
		t.Fatalf("left over: %v", got)
	}
	if b.Next(200) != -1 || b.Next(1<<20) != -1 {
		t.Error("a page was found beyond the end")
	}
}

func TestBitmapsAllocateNothing(t *testing.T) {
	b := NewBitmap(1 << 16)
	b.SetRange(100, 300)
	sum := 0
	if n := testing.AllocsPerRun(100, func() {
		b.SetRange(5, 90)
		b.ClearRange(6, 80)
		for i := range b.All() {
			sum += i
		}
		for i := b.Next(0); i >= 0; i = b.Next(i + 1) {
			sum += i
		}
		sum += b.Count()
	}); n != 0 {
		t.Fatalf("%v allocations", n)
	}
}

// BenchmarkBitmapWalk walks the bitmap of a 4 GiB guest and puts the time
// beside that of reading its words without looking for bits.
func BenchmarkBitmapWalk(b *testing.B) {
	const pages = 4 << 30 / PageSize
	for _, share := range []float64{0.001, 0.1, 1} {
		b.Run(fmt.Sprintf("%g%%", share*100), func(b *testing.B) {
			r := rand.New(rand.NewPCG(1, 2))
			bm := NewBitmap(pages)
			for i := range pages {
				if r.Float64() < share {
					bm.Set(i)
				}
			}
			set := bm.Count()
			var or uint64
			start := time.Now()
			const scans = 50
			for range scans {
				for _, w := range bm {
					or |= w
				}
			}
			bound := float64(time.Since(start).Nanoseconds()) / scans
			sum := int(or & 1)
			for b.Loop() {
				for i := range bm.All() {
					sum += i
				}
			}
			if sum == 0 {
				b.Fatal("nothing was walked")
			}
			perWalk := float64(b.Elapsed().Nanoseconds()) / float64(b.N)
			b.ReportMetric(perWalk/float64(set), "ns/page")
			b.ReportMetric(perWalk/bound, "x-scan")
		})
	}
}
