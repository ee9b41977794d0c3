package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"testing"

	"github.com/gocolo/lockstep/internal/require"
)

// damage changes a capture at random: bytes anywhere, lengths, link types, pieces that are missing or there twice, an
// end that comes early.
func damage(r *rand.Rand, b []byte) []byte {
	b = bytes.Clone(b)
	for range 1 + r.IntN(4) {
		if len(b) < 8 {
			break
		}
		at := r.IntN(len(b))
		switch r.IntN(9) {
		case 0:
			b[at] ^= 1 << r.IntN(8)
		case 1:
			b[at] = byte([]int{0, 0xff, 0x7f, 0x80, r.IntN(256)}[r.IntN(5)])
		case 2: // the head
			b[r.IntN(min(len(b), 64))] = byte(r.IntN(256))
		case 3:
			at &^= 3
			v := []uint32{0, 1<<32 - 1, 1<<31 - 1, 1 << 31, 1 << 24, uint32(len(b)), r.Uint32(), 12, 28, 65535, 262144, 262145}[r.IntN(12)]
			if at+4 <= len(b) {
				[]binary.ByteOrder{binary.LittleEndian, binary.BigEndian}[r.IntN(2)].PutUint32(b[at:], v)
			}
		case 4: // a link of another type
			for i := range 200 {
				p := (at + i) &^ 3
				if p+10 <= len(b) && binary.LittleEndian.Uint32(b[p:]) == 1 {
					binary.LittleEndian.PutUint16(b[p+r.IntN(2)*8:], uint16([]int{0, 1, 9, 12, 14, 101, 105, 108, 113, 228, 229, 276, 189}[r.IntN(13)]))
					break
				}
			}
		case 5:
			b = b[:at]
		case 6:
			b = slices.Delete(b, at, min(len(b), at+r.IntN(60)))
		case 7:
			end := min(len(b), at+r.IntN(200))
			b = slices.Insert(b, at, bytes.Clone(b[at:end])...)
		case 8: // within the packets
			for range 10 {
				b[r.IntN(len(b))] ^= byte(r.IntN(256))
			}
		}
	}
	return b
}

// Whatever has become of a capture, what can be read of it is summed up, in memory that has to do with its length; one
// whose head is damaged is refused.
func TestADamagedCaptureIsSummedUpOrRefused(t *testing.T) {
	names, err := filepath.Glob("testdata/*.gz")
	if err != nil || len(names) < 10 {
		t.Fatal(names, err)
	}
	var all [][]byte
	for _, n := range names {
		all = append(all, plain(t, filepath.Base(n)))
	}
	for _, b := range formats(t, frames(t, 4)) {
		all = append(all, b)
	}
	dir := t.TempDir()
	summed := 0
	for seed := range require.Many[uint64](100, 300, 20000) {
		r := rand.New(rand.NewPCG(seed, 61))
		which := r.IntN(len(all))
		p, s := all[which], all[which]
		if r.IntN(3) == 0 {
			s = all[r.IntN(len(all))]
		}
		p = damage(r, p)
		if r.IntN(3) > 0 {
			s = damage(r, s)
		}
		args := [][]string{nil, {"-guest", "10.9.0.1"}, {"-guest", "52:54:00:00:00:01"}, {"-vlan", "5"}, {"-offset", "1h"}}[r.IntN(5)]
		args = append([]string{"-json"}, args...)
		for i, b := range [][]byte{p, s} {
			name := filepath.Join(dir, fmt.Sprint(i))
			write(t, name, b)
			args = append(args, name)
		}
		var was, is runtime.MemStats
		runtime.ReadMemStats(&was)
		var out, errs bytes.Buffer
		func() {
			defer func() {
				if e := recover(); e != nil {
					t.Fatalf("seed %d: %v\n%s", seed, e, debug.Stack())
				}
			}()
			err = run(t.Context(), args, &out, &errs)
		}()
		runtime.ReadMemStats(&is)
		if took := is.TotalAlloc - was.TotalAlloc; took > 64<<20 {
			t.Errorf("seed %d: %d MiB were taken for %d bytes", seed, took>>20, len(p)+len(s))
		}
		has := strings.Contains(out.String(), `"summary"`)
		if has {
			summed++
		}
		if !has && (err == nil || errors.Is(err, errDiverged) || out.Len() > 0) {
			t.Errorf("seed %d: no summary, %v\n%s", seed, err, out.String())
		}
	}
	t.Logf("%d were summed up", summed)
}

func write(t testing.TB, name string, b []byte) {
	t.Helper()
	if err := os.WriteFile(name, b, 0o666); err != nil {
		t.Fatal(err)
	}
}
