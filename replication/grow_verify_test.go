package replication

import (
	"bytes"
	"context"
	"fmt"
	"testing"
)

// Between the growth of the secondary's disk and that of the primary's, the last chunk of the one has zeroes behind what
// the other has. That is no difference, by checksums or without, and a chunk of which more differs is found.
func TestADiskThatGrowsFirstOnTheSecondaryDoesNotDiffer(t *testing.T) {
	ctx := context.Background()
	const from = 3*ChunkSize + 5*BlockSize
	for _, fill := range []byte{0, 0x11} {
		for _, to := range []int64{from, from + SectorSize, 4 * ChunkSize, 4*ChunkSize + BlockSize, 9 * ChunkSize} {
			why := fmt.Sprintf("%#x, grown from %d to %d", fill, from, to)
			x := newGrowRig(t, t.TempDir(), from)
			write(t, x.p, 0x11, 0, BlockSize)
			if fill != 0 {
				write(t, x.p, fill, 3*ChunkSize, 5*BlockSize)
			}
			checkpointBoth(t, x.p, x.s, 1)
			must(t, x.s.Grow(ctx, to))
			sums := NewSums(x.s.Export())
			for name, cfg := range map[string]VerifyConfig{"sums": {Sums: sums}, "bytes": {Secondary: x.s.Export()}} {
				differ, err := x.p.VerifyOnline(ctx, cfg)
				must(t, err)
				if n := differ.Bytes(); n != 0 {
					t.Errorf("%s, by %s: %d bytes differ", why, name, n)
				}
			}
			differ, err := Verify(ctx, x.local, sums)
			must(t, err)
			if n := differ.Bytes(); n != 0 {
				t.Errorf("%s: %d bytes differ", why, n)
			}
			must(t, Preflight(ctx, x.local, sums, 2))
			if to >= 4*ChunkSize {
				_, err := x.disk.WriteAt([]byte{1}, 4*ChunkSize-1) // which no one should
				must(t, err)
				if differ, err = x.p.VerifyOnline(ctx, VerifyConfig{Sums: sums}); err != nil || differ.Bytes() != 5*BlockSize {
					t.Errorf("%s: %d bytes differ (%v), want those of the last chunk", why, differ.Bytes(), err)
				}
				continue
			}
			must(t, x.p.Grow(ctx, to, x.remote()))
			checkpointBoth(t, x.p, x.s, 2)
			if !bytes.Equal(read(t, x.local, 0, to), read(t, x.disk, 0, to)) {
				t.Errorf("%s: the copies differ", why)
			}
		}
	}
}

// readHook is a disk that calls after at the end of each read.
type readHook struct {
	Disk
	after func()
}

func (d readHook) ReadAt(p []byte, off int64) (int, error) {
	defer d.after()
	return d.Disk.ReadAt(p, off)
}

// A repair ends with the connection that a growth replaces, wherever that comes, and what it has not repaired is
// repaired by the next one.
func TestAGrowthInTheMiddleOfARepairEndsItAndLosesNothing(t *testing.T) {
	ctx := context.Background()
	const from, to = 2*copyStep + ChunkSize, 3*copyStep + BlockSize
	for _, direction := range []Repair{RepairSecondary, RepairPrimary} {
		for at := range 4 {
			if testing.Short() && at%3 != 0 {
				continue
			}
			why := fmt.Sprintf("direction %d, at read %d", direction, at)
			x := newGrowRig(t, t.TempDir(), from)
			write(t, x.p, 0x11, 0, from)
			checkpointBoth(t, x.p, x.s, 1)
			write(t, x.local, 0x22, copyStep-BlockSize, 3*BlockSize) // which no one should
			write(t, x.local, 0x22, from-BlockSize, BlockSize)
			reads := 0
			grow := func() {
				if reads++; reads == at+1 {
					must(t, x.s.Grow(ctx, to))
					must(t, x.p.Grow(ctx, to, x.remote()))
					write(t, x.p, 0x33, from-2*BlockSize, 4*BlockSize)
				}
			}
			_, err := x.p.VerifyOnline(ctx, VerifyConfig{Secondary: readHook{x.s.Export(), grow}, Repair: direction})
			if at < 3 {
				wantSays(t, why, err, ErrNotRunning, "the disk has grown meanwhile")
			} else if must(t, err); reads > 3 {
				t.Fatalf("%s: it was in %d steps, want 3", why, reads)
			}
			_, err = x.p.VerifyOnline(ctx, VerifyConfig{Secondary: x.s.Export(), Repair: direction})
			must(t, err)
			checkpointBoth(t, x.p, x.s, 2)
			if n := x.p.Size(); !bytes.Equal(read(t, x.local, 0, n), read(t, x.disk, 0, n)) {
				t.Errorf("%s: the copies differ", why)
			}
		}
	}
}
