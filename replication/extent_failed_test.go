package replication

import (
	"bytes"
	"testing"
	"testing/synctest"
)

// failsToTell is a disk, or the other side of one, that tells its extents up to a place, and
// then fails.
type failsToTell struct {
	Disk
	upTo   int64
	failed *int
}

func (d failsToTell) Extents(off, n int64, yield func(n int64, flags uint32) bool) error {
	for end := min(off+n, d.upTo); off < end; off += SectorSize {
		var sector [SectorSize]byte
		if _, err := d.ReadAt(sector[:], off); err != nil {
			return err
		}
		flags := uint32(0)
		if isZero(sector[:]) {
			flags = ExtentZero
		}
		if n -= SectorSize; !yield(SectorSize, flags) {
			return nil
		}
	}
	if n > 0 {
		*d.failed++
		return errInjected
	}
	return nil
}

// What a disk fails to tell of its holes is read, or sent, as if it were data.
func TestADiskThatFailsToTellItsHolesIsCopiedAllTheSame(t *testing.T) {
	for i, upTo := range []int64{0, SectorSize, ChunkSize + 3*SectorSize, testSize} {
		for j, side := range []string{"the primary", "the secondary", "both"} {
			if testing.Short() && (i+j)%2 == 1 {
				continue
			}
			failed := 0
			fails := func(d Disk, here bool) Disk {
				if !here {
					return d
				}
				return failsToTell{d, upTo, &failed}
			}
			local, remote := newFake(testSize, 0), newFake(testSize, 0x22)
			clear(remote.data[:testSize/2])
			copy(local.data[testSize/3:], bytes.Repeat([]byte{0x11}, testSize/5))
			p, err := NewPrimary(fails(local, side != "the secondary"), PrimaryConfig{Overwrite: true})
			must(t, err)
			must(t, p.Attach(DiskRemote(fails(remote, side != "the primary"))))
			if err := p.Synchronise(t.Context(), SyncConfig{Sums: NewSums(fails(remote, side != "the primary"))}); err != nil {
				t.Errorf("%s, told %d bytes: %v", side, upTo, err)
			}
			wantBytes(t, side, remote.data, local.data, 0)
			differ, err := Verify(t.Context(), fails(local, true), NewSums(fails(remote, true)))
			if err != nil || differ.Bytes() != 0 {
				t.Errorf("%s, told %d bytes: %v is compared", side, upTo, err)
			}
			if (failed > 0) != (upTo < testSize) {
				t.Errorf("it has failed %d times", failed)
			}
			must(t, p.Detach())
		}
	}
}

// Where room on the secondary is short, the primary looks whether what is replaced is zero.
// Then a write takes no room, and need not wait for a checkpoint.
func TestAGuestWritesToADiskThatFailsToTellItsHolesWithoutWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newRoomRig(t, SecondaryConfig{})
		failed := 0
		x.p.local.Disk = failsToTell{x.local, 0, &failed}
		clear(x.local.data[testSize/2:])
		clear(x.disk.data[testSize/2:])
		x.fill(t)
		for off := int64(testSize / 2); off < testSize; off += testSize / 8 {
			write(t, x.p, 0x33, off, BlockSize)
		}
		if failed == 0 || len(*x.full) > 0 {
			t.Errorf("%d writes waited, and it was asked %d times", len(*x.full), failed)
		}
	})
}

// cutRemote is lost while it is asked for its holes.
type cutRemote struct {
	*fakeRemote
	p *Primary
}

func (r cutRemote) Extents(int64, int64, func(int64, uint32) bool) error {
	r.p.Cut()
	return errInjected
}

func TestASynchronisationSaysWhyTheOtherSideIsLost(t *testing.T) {
	for name, disk := range map[string]Disk{"a hole": failsToTell{newFake(testSize, 0), testSize, new(int)}, "data": newFake(testSize, 0x11)} {
		p, err := NewPrimary(disk, PrimaryConfig{Overwrite: true})
		must(t, err)
		must(t, p.Attach(cutRemote{newFakeRemote(newFake(testSize, 0x22), 1), p}))
		if name == "data" {
			p.Cut()
		}
		wantErr(t, name, p.Synchronise(t.Context(), SyncConfig{}), ErrCut)
		must(t, p.Detach())
	}
}
