package xbzrle

import (
	"bytes"
	"encoding/hex"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/gocolo/lockstep/internal/mapping"
)

const pageSize = 4096

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.Map(func(r rune) rune {
		if r == ' ' || r == '|' {
			return -1
		}
		return r
	}, s))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// count returns the bytes 1 to n.
func count(n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(i + 1)
	}
	return p
}

// The worked examples were fed to QEMU 7.2.22, which reproduced the pages; the
// last one was captured from its primary during a checkpoint.
var examples = []struct {
	name  string
	page  func(p []byte) // makes the new page out of zeros
	delta string
}{
	{"two adjacent bytes", func(p []byte) { p[5], p[6] = 0xaa, 0xbb }, "05 02 aa bb"},
	{"first, inner and last byte", func(p []byte) { p[0], p[200], p[4095] = 0x11, 0x22, 0x33 },
		"00 01 11 | c7 01 01 22 | b6 1e 01 33"},
	{"a run of 130", func(p []byte) { copy(p[300:], count(130)) },
		"ac 02 82 01" + hex.EncodeToString(count(130))},
	{"captured from QEMU", func(p []byte) { p[0x46c] = 0xc8 }, "ec 08 01 c8"},
	{"nothing changed", func(p []byte) {}, ""},
}

func TestWorkedExamples(t *testing.T) {
	for _, x := range examples {
		t.Run(x.name, func(t *testing.T) {
			old, new := make([]byte, pageSize), make([]byte, pageSize)
			x.page(new)
			want := unhex(t, x.delta)
			dst := make([]byte, pageSize)
			n, ok := Encode(dst, old, new)
			if !ok || !bytes.Equal(dst[:n], want) {
				t.Fatalf("Encode = % x, %v, want % x", dst[:n], ok, want)
			}
			if err := Decode(old, want); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(old, new) {
				t.Fatal("decoding the delta does not give the new page")
			}
		})
	}
}

func TestPageThatChangedThroughoutOverflows(t *testing.T) {
	old, new := make([]byte, pageSize), bytes.Repeat([]byte{7}, pageSize)
	if n, ok := Encode(make([]byte, pageSize), old, new); ok {
		t.Fatalf("4099 bytes are said to fit 4096 (n = %d)", n)
	}
	dst := make([]byte, pageSize+3)
	n, ok := Encode(dst, old, new)
	if !ok || n != pageSize+3 || !bytes.Equal(dst[:3], unhex(t, "00 80 20")) {
		t.Fatalf("Encode = %d, %v, % x", n, ok, dst[:3])
	}
}

func TestEncodeNeverWritesBeyondItsRoom(t *testing.T) {
	old, new := make([]byte, pageSize), make([]byte, pageSize)
	for i := 0; i < pageSize; i += 3 {
		new[i] = byte(i) | 1
	}
	full := make([]byte, 2*pageSize)
	whole, ok := Encode(full, old, new)
	if !ok {
		t.Fatal("does not fit twice a page")
	}
	step := 1
	if testing.Short() {
		step = 13
	}
	for room := whole; room >= 0; room -= step {
		n, ok := Encode(full[:room:room], old, new)
		if ok != (room >= whole) {
			t.Fatalf("room %d of %d: n = %d, ok = %v", room, whole, n, ok)
		}
	}
}

func TestLengthsDiffer(t *testing.T) {
	if _, ok := Encode(make([]byte, 10), make([]byte, 4), make([]byte, 5)); ok {
		t.Fatal("pages of different lengths were encoded")
	}
}

func TestDecodeRefuses(t *testing.T) {
	for _, x := range []struct {
		name, delta string
		want        error
	}{
		{"one byte is left for a length", "05", errShort},
		{"nothing follows an equal run", "05 01 aa | 03", errShort},
		{"delta ends inside a run", "05 03 aa bb", errShort},
		{"equal run of three bytes", "85 85 01 01 aa", errLength},
		{"changed run of three bytes", "05 85 85 01 aa", errLength},
		{"second equal run is 0", "05 01 aa | 00 01 bb", errEqualRun},
		{"changed run is 0", "05 00 01", errDiffRun},
		{"equal run leaves the page", "81 20 01 aa", errBeyondEnd},
		{"equal run ends at the page's end", "80 20 01 aa", errBeyondEnd},
		{"changed run leaves the page", "ff 1f 02 aa bb", errBeyondEnd},
	} {
		t.Run(x.name, func(t *testing.T) {
			err := Decode(make([]byte, pageSize), unhex(t, x.delta))
			if err != x.want || !errors.Is(err, ErrCorrupt) {
				t.Fatalf("Decode = %v, want %v", err, x.want)
			}
		})
	}
}

func TestEveryTruncationFailsOrDecodesAPrefix(t *testing.T) {
	delta := unhex(t, examples[1].delta)
	for n := range delta {
		page := make([]byte, pageSize)
		err := Decode(page, delta[:n])
		// The delta is a list without an end mark: cut between two pairs it
		// is a shorter list.
		if whole := n == 0 || n == 3 || n == 7; whole != (err == nil) {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
}

// naive is the format said in the simplest way.
func naive(old, new []byte) []byte {
	var out []byte
	put := func(v int) {
		if v >= 0x80 {
			out = append(out, byte(v)|0x80, byte(v>>7))
		} else {
			out = append(out, byte(v))
		}
	}
	for i := 0; ; {
		start := i
		for i < len(new) && old[i] == new[i] {
			i++
		}
		if i == len(new) {
			return out
		}
		put(i - start)
		start = i
		for i < len(new) && old[i] != new[i] {
			i++
		}
		put(i - start)
		out = append(out, new[start:i]...)
	}
}

func mutate(r *rand.Rand, p []byte) {
	for range r.IntN(60) {
		at := r.IntN(len(p))
		n := min(1+r.IntN(1<<r.IntN(9)), len(p)-at)
		for i := range n {
			p[at+i] = byte(r.Uint32())
		}
	}
}

func TestAgainstPlainCopy(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	rounds := 3000
	if testing.Short() {
		rounds = 300
	}
	for range rounds {
		size := pageSize
		if r.IntN(3) == 0 {
			size = 1 + r.IntN(200)
		}
		old := make([]byte, size)
		mutate(r, old)
		new := bytes.Clone(old)
		mutate(r, new)
		want := naive(old, new)
		dst := make([]byte, 3*size+4)
		n, ok := Encode(dst, old, new)
		if !ok || !bytes.Equal(dst[:n], want) {
			t.Fatalf("Encode differs from the plain encoder: % x, want % x", dst[:n], want)
		}
		if err := Decode(old, dst[:n]); err != nil || !bytes.Equal(old, new) {
			t.Fatalf("Decode: %v", err)
		}
	}
}

// TestPageThatChangesMeanwhileGivesAValidDelta encodes memory that another
// goroutine writes, as a guest does. The memory is a mapping, which the race
// detector does not track: reading it unordered is the point.
func TestPageThatChangesMeanwhileGivesAValidDelta(t *testing.T) {
	mem, err := mapping.New(pageSize)
	if err != nil {
		t.Fatal(err)
	}
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for i := 0; ; i++ {
			mem[i*7%64] ^= 1
			if i%4096 == 0 {
				select {
				case <-stop:
					return
				default:
				}
			}
		}
	}()
	old, dst := make([]byte, pageSize), make([]byte, pageSize)
	for range 100000 {
		n, ok := Encode(dst, old[:64], mem[:64])
		if !ok {
			t.Fatal("64 bytes overflow a page")
		}
		if err := Decode(old[:64], dst[:n]); err != nil {
			t.Fatalf("delta % x: %v", dst[:n], err)
		}
	}
	close(stop)
	<-done
	if err := mapping.Free(mem); err != nil {
		t.Fatal(err)
	}
}

func TestNothingAllocates(t *testing.T) {
	old, new := make([]byte, pageSize), make([]byte, pageSize)
	new[17], new[2000] = 1, 2
	dst := make([]byte, pageSize)
	bad := []byte{5, 0, 1}
	c := NewCache(pageSize, 8*pageSize)
	for i := range 8 {
		c.Put(uint64(i))
	}
	var key uint64
	if n := testing.AllocsPerRun(100, func() {
		n, _ := Encode(dst, old, new)
		_ = Decode(old, dst[:n])
		_ = Decode(old, bad)
		clear(old)
		c.Put(key)
		c.Get(key - 3)
		c.Drop(key - 5)
		key++
	}); n != 0 {
		t.Fatalf("%v allocations", n)
	}
}

func FuzzDecode(f *testing.F) {
	for _, x := range examples {
		f.Add(unhex(f, x.delta))
	}
	f.Add([]byte{5, 0, 1})
	f.Add([]byte{0x85, 0x85, 1, 1, 0xaa})
	f.Fuzz(func(t *testing.T, delta []byte) {
		page := make([]byte, pageSize)
		if err := Decode(page, delta); err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Fatalf("untyped error %v", err)
			}
			return
		}
		// What decodes says the same as what Encode makes of it.
		dst := make([]byte, 2*pageSize)
		n, ok := Encode(dst, make([]byte, pageSize), page)
		if !ok {
			return
		}
		again := make([]byte, pageSize)
		if err := Decode(again, dst[:n]); err != nil || !bytes.Equal(again, page) {
			t.Fatalf("re-encoded delta gives another page: %v", err)
		}
	})
}

func FuzzRoundTrip(f *testing.F) {
	f.Add([]byte{}, []byte{}, uint16(4096))
	f.Add([]byte{1, 2, 3, 4, 5, 6, 7, 8, 9}, []byte{1, 2, 3, 0, 5, 6, 7, 8, 9}, uint16(9))
	f.Fuzz(func(t *testing.T, old, new []byte, room uint16) {
		size := min(max(len(old), len(new)), pageSize)
		p, q := make([]byte, size), make([]byte, size)
		copy(p, old)
		copy(q, new)
		dst := make([]byte, min(int(room), pageSize))
		n, ok := Encode(dst, p, q)
		want := naive(p, q)
		if !ok {
			if len(want)+2 <= len(dst) {
				t.Fatalf("%d bytes are said not to fit %d", len(want), len(dst))
			}
			return
		}
		if !bytes.Equal(dst[:n], want) {
			t.Fatalf("% x, want % x", dst[:n], want)
		}
		if err := Decode(p, dst[:n]); err != nil || !bytes.Equal(p, q) {
			t.Fatalf("Decode: %v", err)
		}
	})
}

// onePercent returns a page and the same with 41 bytes (1 %) changed, each on
// its own.
func onePercent() (old, new []byte) {
	r := rand.New(rand.NewPCG(3, 4))
	old = make([]byte, pageSize)
	for i := range old {
		old[i] = byte(r.Uint32())
	}
	new = bytes.Clone(old)
	for range pageSize / 100 {
		new[r.IntN(pageSize)]++
	}
	return old, new
}

// equalRate measures the comparison of two equal pages by the runtime, the
// bound that encode and decode are put beside, in bytes per nanosecond.
func equalRate(b *testing.B, old []byte) float64 {
	same := bytes.Clone(old)
	const rounds = 20000
	start := time.Now()
	for range rounds {
		if !bytes.Equal(old, same) {
			b.Fatal("not equal")
		}
	}
	return float64(rounds*pageSize) / float64(time.Since(start).Nanoseconds())
}

func report(b *testing.B, bound float64) {
	rate := float64(pageSize) * float64(b.N) / float64(b.Elapsed().Nanoseconds())
	b.ReportMetric(rate, "GB/s")
	b.ReportMetric(bound, "compare-GB/s")
	b.ReportMetric(rate/bound, "of-compare")
}

func BenchmarkEncode(b *testing.B) {
	old, new := onePercent()
	dst := make([]byte, pageSize)
	bound := equalRate(b, old)
	b.ReportAllocs()
	for b.Loop() {
		if _, ok := Encode(dst, old, new); !ok {
			b.Fatal("overflow")
		}
	}
	report(b, bound)
}

func BenchmarkDecode(b *testing.B) {
	old, new := onePercent()
	dst := make([]byte, pageSize)
	n, _ := Encode(dst, old, new)
	bound := equalRate(b, old)
	b.ReportAllocs()
	for b.Loop() {
		if err := Decode(old, dst[:n]); err != nil {
			b.Fatal(err)
		}
	}
	report(b, bound)
}
