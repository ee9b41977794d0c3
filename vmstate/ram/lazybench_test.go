package ram

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/gocolo/lockstep/internal/mapping"
	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/qemufile"
)

// sparse is the body of sections that have a page with contents in each 16 MiB of a block,
// and zeros in between; each Read is a part of it.
type sparse struct {
	pages, at int
	buf       []byte
}

func (s *sparse) Read(p []byte) (int, error) {
	for len(s.buf) < len(p) && s.at < s.pages {
		s.buf = appendRecord(s.buf, s.at, s.at%4096 == 0)
		if s.at++; s.at == s.pages {
			s.buf = append(s.buf, 0, 0, 0, 0, 0, 0, 0, flagEOS)
		}
	}
	n := copy(p, s.buf)
	s.buf = append(s.buf[:0], s.buf[n:]...)
	return n, nil
}

// appendRecord appends page i of the block "ram".
func appendRecord(b []byte, i int, data bool) []byte {
	var head [16]byte
	flags := uint64(flagZero)
	if data {
		flags = flagPage
	}
	b = append(b, head[:recordHead(head[:], "ram", uint64(i)*PageSize|flags, false)]...)
	if !data {
		return append(b, 0)
	}
	for range PageSize {
		b = append(b, 1)
	}
	return b
}

// BenchmarkFirstPage takes the time from nothing until a guest's first touch of its memory has
// been answered, with memory that comes when it is touched, and the time to load the stream of
// a guest of the same size, nearly all of whose pages are zeros, in the same run.
func BenchmarkFirstPage(b *testing.B) {
	for _, mib := range []int{256, 4 << 10, 16 << 10} {
		b.Run(fmt.Sprintf("MiB=%d", mib), func(b *testing.B) {
			pages := mib << 20 / PageSize
			var lazy, whole time.Duration
			for b.Loop() {
				lazy += firstPage(b, pages)
				whole += wholeStream(b, pages)
			}
			b.ReportMetric(float64(lazy.Microseconds())/float64(b.N), "first-page-µs")
			b.ReportMetric(float64(whole.Microseconds())/float64(b.N), "whole-stream-µs")
			b.ReportMetric(float64(whole)/float64(lazy), "whole/first")
		})
	}
}

func lazyMemory(b *testing.B, pages int) (*Lazy, func()) {
	b.Helper()
	mem, err := mapping.New(pages * PageSize)
	if err != nil {
		b.Skip(err)
	}
	l, err := NewLazy([]Block{{Name: "ram", Host: mem}})
	if err != nil {
		b.Fatal(err)
	}
	require.Granted(b, require.Userfaultfd, l.Probe())
	return l, func() {
		if err := errors.Join(l.Close(), mapping.Free(mem)); err != nil {
			b.Error(err)
		}
	}
}

// firstPage starts on memory that is nowhere yet, and touches a page in its middle.
func firstPage(b *testing.B, pages int) time.Duration {
	b.Helper()
	l, free := lazyMemory(b, pages)
	defer free()
	begun := time.Now()
	if err := errors.Join(l.PostcopyAdvised(), l.Listen()); err != nil {
		b.Fatal(err)
	}
	asked := make(chan uint64, 1)
	served, placed := make(chan error, 1), make(chan error, 1)
	go func() { served <- l.Serve(func(_ string, start uint64, _ uint32) { asked <- start }) }()
	go func() { // the stream
		p := appendRecord(nil, int(<-asked/PageSize), true)
		placed <- l.LoadState(reader(append(p, 0, 0, 0, 0, 0, 0, 0, flagEOS)), Version)
	}()
	err := l.Ensure("ram", uint64(pages/2*PageSize), 1)
	took := time.Since(begun)
	l.Interrupt()
	if err := errors.Join(err, <-placed, <-served); err != nil {
		b.Fatal(err)
	}
	return took
}

// wholeStream loads all of the memory.
func wholeStream(b *testing.B, pages int) time.Duration {
	b.Helper()
	l, free := lazyMemory(b, pages)
	defer free()
	begun := time.Now()
	if err := l.LoadState(qemufile.NewReader(&sparse{pages: pages}), Version); err != nil {
		b.Fatal(err)
	}
	return time.Since(begun)
}

// BenchmarkFirstPageOfAFile takes the time from opening a mapped-ram file, of which each page
// in 16 MiB has contents, until a guest's first touch of its memory has been answered, and the
// time until all of it is there, in the same run.
func BenchmarkFirstPageOfAFile(b *testing.B) {
	for _, mib := range []int{256, 4 << 10, 16 << 10} {
		b.Run(fmt.Sprintf("MiB=%d", mib), func(b *testing.B) {
			pages := mib << 20 / PageSize
			f := mappedFile(b)
			m, err := CreateMapped(f, 0, []BlockInfo{{Name: "ram", Length: uint64(pages) * PageSize}})
			if err != nil {
				b.Fatal(err)
			}
			contents := bytes.Repeat([]byte{1}, PageSize)
			for i := 0; i < pages; i += 4096 {
				if err := m.WritePage("ram", uint64(i)*PageSize, contents); err != nil {
					b.Fatal(err)
				}
			}
			if err := m.Commit(); err != nil {
				b.Fatal(err)
			}
			var first, whole time.Duration
			for b.Loop() {
				l, free := lazyMemory(b, pages)
				begun := time.Now()
				if _, err := l.OpenMapped(f, 0); err != nil {
					b.Fatal(err)
				}
				if err := l.Listen(); err != nil {
					b.Fatal(err)
				}
				filled := make(chan error, 1)
				go func() { filled <- l.Fill(context.Background()) }()
				if err := l.Ensure("ram", uint64(pages/2*PageSize), 1); err != nil {
					b.Fatal(err)
				}
				first += time.Since(begun)
				if err := <-filled; err != nil {
					b.Fatal(err)
				}
				whole += time.Since(begun)
				free()
			}
			b.ReportMetric(float64(first.Microseconds())/float64(b.N), "first-page-µs")
			b.ReportMetric(float64(whole.Microseconds())/float64(b.N), "whole-µs")
		})
	}
}
