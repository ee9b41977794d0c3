//go:build linux && amd64

package copies

import (
	"bytes"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"strconv"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	headSize = 10      // of a page's record, once its block is known
	large    = 2 << 20 // a huge page
	memory   = 32 * large
)

// mapped returns memory that has its pages, huge ones if they were asked for and granted.
func mapped(b *testing.B, n int, huge bool) []byte {
	b.Helper()
	all, err := unix.Mmap(-1, 0, n+large, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { unix.Munmap(all) })
	how := unix.MADV_NOHUGEPAGE
	if huge {
		how = unix.MADV_HUGEPAGE
	}
	if err := unix.Madvise(all, how); err != nil {
		b.Skip("huge pages:", err)
	}
	begin := -uintptr(unsafe.Pointer(&all[0])) % large
	mem := all[begin:][:n:n]
	r := rand.New(rand.NewPCG(1, 2))
	for i := range mem {
		mem[i] = byte(r.Uint32()) | 1
	}
	return mem
}

// against times both in turns and reports the ratio of the medians, and of the least of each: other
// work on the machine only adds to a time.
func against(b *testing.B, pages int, tried, done func()) {
	var x, y []time.Duration
	for _, f := range []func(){tried, done} {
		f()
	}
	for b.Loop() {
		t0 := time.Now()
		tried()
		t1 := time.Now()
		done()
		x, y = append(x, t1.Sub(t0)), append(y, time.Since(t1))
	}
	slices.Sort(x)
	slices.Sort(y)
	b.ReportMetric(float64(x[len(x)/2])/float64(y[len(y)/2]), "x-of-what-is-done")
	b.ReportMetric(float64(x[0])/float64(y[0]), "least-x-of-what-is-done")
	b.ReportMetric(float64(y[len(y)/2])/float64(pages), "ns/page-done")
	b.ReportMetric(0, "ns/op")
}

// A page that is streamed is the page, wherever its place begins.
func TestAStreamedPageIsThePage(t *testing.T) {
	from := make([]byte, pageSize)
	rand.NewChaCha8([32]byte{}).Read(from)
	for begin := range 130 {
		to := make([]byte, begin+pageSize+64)
		stream(to[begin:begin+pageSize], from)
		fence()
		if !bytes.Equal(to[begin:begin+pageSize], from) || bytes.ContainsFunc(to[:begin], notZero) || bytes.ContainsFunc(to[begin+pageSize:], notZero) {
			t.Fatalf("at %d it is another, or more was written", begin)
		}
	}
}

func notZero(r rune) bool { return r != 0 }

// records copies pages as a capture does.
func records(to, from []byte, pages []int) {
	at := 0
	for _, p := range pages {
		at += headSize
		at += copy(to[at:at+pageSize], from[p*pageSize:])
	}
}

// The arena on huge pages: it is the destination alone that is the saver's own. The guest's
// memory is on ordinary ones, or on huge ones too.
func BenchmarkHugePages(b *testing.B) {
	for name, guestHuge := range map[string]bool{"guest=ordinary": false, "guest=huge": true} {
		b.Run(name, func(b *testing.B) {
			from := mapped(b, memory, guestHuge)
			const n = 4000
			pages := rand.New(rand.NewPCG(5, 6)).Perm(memory / pageSize)[:n]
			ordinary, huge := mapped(b, n*(pageSize+headSize), false), mapped(b, n*(pageSize+headSize), true)
			against(b, n, func() { records(huge, from, pages) }, func() { records(ordinary, from, pages) })
		})
	}
}

// The bound of a capture with two workers: a thread that runs already, and waits for nothing, copies
// half of the pages, and this one the other half.
func BenchmarkTwoThreads(b *testing.B) {
	if runtime.NumCPU() < 2 {
		b.Skip("there is one CPU")
	}
	for _, n := range []int{256, 1000, 4000} {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			size := n * (pageSize + headSize)
			from, to, other := mapped(b, memory, false), mapped(b, size, false), mapped(b, size, false)
			pages := rand.New(rand.NewPCG(5, 6)).Perm(memory / pageSize)[:n]
			first, second := to[:size/2], to[size/2:]
			var asked, done atomic.Uint32 // the number of a copy
			ended := make(chan struct{})
			go func() {
				runtime.LockOSThread()
				defer close(ended)
				for last := uint32(0); last != math.MaxUint32; {
					if next := asked.Load(); next != last {
						records(second, from, pages[n/2:])
						last = next
						done.Store(next)
					}
				}
			}()
			against(b, n, func() {
				next := asked.Add(1)
				records(first, from, pages[:n/2])
				for done.Load() != next {
				}
			}, func() { records(other, from, pages) })
			asked.Store(math.MaxUint32)
			<-ended
		})
	}
}

// Stores past the caches, which do not read a line before they write it. What was captured is
// read again when it is sent: in a second variant, that is counted.
func BenchmarkNonTemporalStores(b *testing.B) {
	for name, read := range map[string]bool{"copied": false, "copied-and-read": true} {
		for _, n := range []int{64, 256, 512, 1000, 2000, 4000} {
			b.Run(name+"/"+strconv.Itoa(n), func(b *testing.B) {
				size := n * (pageSize + headSize)
				from, to, other := mapped(b, memory, false), mapped(b, size, false), mapped(b, size, false)
				pages := rand.New(rand.NewPCG(5, 6)).Perm(memory / pageSize)[:n]
				sent := make([]byte, 64<<10)
				send := func(to []byte) {
					for at := 0; read && at < n*pageSize; at += len(sent) {
						copy(sent, to[at:])
					}
				}
				against(b, n, func() {
					at := 0
					for _, p := range pages {
						at += headSize
						stream(to[at:at+pageSize], from[p*pageSize:(p+1)*pageSize])
						at += pageSize
					}
					fence()
					send(to)
				}, func() {
					records(other, from, pages)
					send(other)
				})
			})
		}
	}
}

// A range of 2 MiB copied as one, if so many of its 512 pages are dirty, against the dirty
// ones alone. What is sent would have to be gathered from it afterwards.
func BenchmarkWholeRanges(b *testing.B) {
	for _, dirty := range []int{512, 448, 384, 256} {
		b.Run(strconv.Itoa(dirty)+"-of-512", func(b *testing.B) {
			from, whole, one := mapped(b, memory, false), mapped(b, memory, false), mapped(b, memory+memory/pageSize*headSize, false)
			var pages []int
			r := rand.New(rand.NewPCG(5, 6))
			for first := 0; first < memory/pageSize; first += 512 {
				some := r.Perm(512)[:dirty]
				slices.Sort(some)
				for _, p := range some {
					pages = append(pages, first+p)
				}
			}
			against(b, len(pages), func() {
				for at := 0; at < memory; at += large {
					copy(whole[at:at+large], from[at:])
				}
			}, func() { records(one, from, pages) })
		})
	}
}
