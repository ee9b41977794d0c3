package zstd

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"testing"
)

// sample returns the content of the files in testdata: pages of many kinds.
func sample() []byte {
	r := rand.New(rand.NewPCG(1, 2))
	words := bytes.Fields([]byte("checkpoint vmstate section dirty bitmap stage commit failover relaunch mirror redirector lease generation"))
	var p []byte
	for i := range 50 {
		switch i % 5 {
		case 0:
			p = append(p, make([]byte, 4096)...)
		case 1:
			for range 512 {
				p = append(p, words[r.IntN(len(words))]...)
				p = append(p, ' ')
			}
		case 2:
			for range 512 {
				p = append(p, byte(r.Uint32()))
			}
		case 3:
			for range 1024 {
				p = append(p, byte(i), 0, byte(r.IntN(4)), 0)
			}
		case 4:
			p = append(p, p[r.IntN(len(p)/2):][:4096]...)
		}
	}
	return p
}

func testdata(t testing.TB, name string) []byte {
	t.Helper()
	p, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestFramesOfEveryLevelAreDecompressed(t *testing.T) {
	want := sample()
	files, err := filepath.Glob(filepath.Join("testdata", "*.zst"))
	if err != nil || len(files) < 4 {
		t.Fatal(files, err)
	}
	for _, f := range files {
		p := testdata(t, filepath.Base(f))
		var d Decoder
		got := make([]byte, len(want))
		if err := d.Decode(got, p); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %v", f, err)
		}
		// A second frame on the same decoder.
		if err := d.Decode(got, p); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s again: %v", f, err)
		}
		for _, n := range []int{len(want) - 1, len(want) + 1} {
			if err := new(Decoder).Decode(make([]byte, n), p); !errors.Is(err, ErrCorrupt) {
				t.Errorf("%s for %d bytes: %v", f, n, err)
			}
		}
		for n := 0; n < len(p); n += 1 + len(p)/50 {
			if err := new(Decoder).Decode(got, p[:n]); !errors.Is(err, ErrCorrupt) {
				t.Fatalf("%s cut at %d: %v", f, n, err)
			}
		}
	}
}

func TestAWindowBeyondTheBoundIsRefused(t *testing.T) {
	// A window of 1 GiB, and a frame of 4 GiB.
	for _, p := range []string{"\x28\xb5\x2f\xfd\x00\xa0", "\x28\xb5\x2f\xfd\xa0\x00\x00\x00\xff"} {
		if err := new(Decoder).Decode(nil, []byte(p)); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%x: %v", p, err)
		}
	}
}

// What was decompressed stays where it is when a frame begins: many frames of little cost what
// they say, and not a copy of the last window each.
func TestAFrameTakesNoCopyOfTheOneBefore(t *testing.T) {
	// A window of 32 MiB, and a block that repeats a byte.
	frame := func(n int) []byte {
		h := n<<3 | 1<<1 | 1
		return []byte{0x28, 0xb5, 0x2f, 0xfd, 0, 120, byte(h), byte(h >> 8), byte(h >> 16), 'x'}
	}
	const large, frames = 128 << 10, 1000
	var d Decoder
	for range 4 << 20 / large {
		if err := d.Decode(make([]byte, large), frame(large)); err != nil {
			t.Fatal(err)
		}
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	got, small := make([]byte, 1), frame(1)
	for range frames {
		if err := d.Decode(got, small); err != nil || got[0] != 'x' {
			t.Fatal(got, err)
		}
	}
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 64<<20 {
		t.Errorf("%d frames of a byte took %d MiB", frames, n>>20)
	}
}

func FuzzDecode(f *testing.F) {
	files, _ := filepath.Glob(filepath.Join("testdata", "*.zst"))
	for _, name := range files {
		p := testdata(f, filepath.Base(name))
		f.Add(p, len(sample()))
	}
	f.Add([]byte("\x28\xb5\x2f\xfd\x24\x05\x29\x00\x00hello\x00\x00\x00\x00"), 5)
	f.Fuzz(func(t *testing.T, p []byte, n int) {
		if n < 0 || n > 1<<20 {
			return
		}
		var d Decoder
		got := make([]byte, n)
		if err := d.Decode(got, p); err != nil && !errors.Is(err, ErrCorrupt) {
			t.Fatalf("error of unknown kind: %v", err)
		}
		d.Decode(got, p)
	})
}
