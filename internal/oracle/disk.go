package oracle

import (
	"bytes"
	"fmt"
	"io"

	"github.com/gocolo/lockstep/internal/guest"
)

// DiskVerdict counts what the survivor's disk has.
type DiskVerdict struct {
	DiskBlocks    uint64 // writes of the guest, over all vCPUs
	DiskLost      uint64 // sectors without their last write, and histories without a write
	DiskCorrupted uint64 // sectors with anything else: newer than memory, torn, or of another guest
}

// diskOracle knows what the guest's disk must have: what the histories of its
// vCPUs say was written last, sector by sector, and zeroes elsewhere.
type diskOracle struct {
	every uint64
	image []byte
}

func newDiskOracle(p guest.Params) *diskOracle {
	if p.Disk == 0 || p.DiskEvery == 0 {
		return nil
	}
	return &diskOracle{every: uint64(p.DiskEvery), image: make([]byte, p.Disk)}
}

// follow takes what the last round of a model has written.
func (d *diskOracle) follow(m *guest.Model) {
	if d == nil {
		return
	}
	if w, ok := m.Write(); ok {
		copy(d.image[w.Off:], w.Data)
	}
}

// FinishDisk compares the survivor's disk with the memory of its guest, which
// stands still, and with what has left.
func (o *Oracle) FinishDisk(histories []History, disk io.ReaderAt) error {
	d := o.disk
	for v := range o.chains {
		if v < len(histories) {
			o.lastWrite(v, &o.chains[v], histories[v])
		}
	}
	sector := make([]byte, guest.SectorSize)
	for off := 0; off < len(d.image); off += len(sector) {
		if _, err := disk.ReadAt(sector, int64(off)); err != nil {
			return fmt.Errorf("the survivor's disk: %w", err)
		}
		want := d.image[off:][:len(sector)]
		if bytes.Equal(sector, want) {
			continue
		}
		n, has := guest.SectorRound(want), guest.SectorRound(sector)
		if has < n {
			o.Note(&o.DiskLost, "sector %d of the disk has what round %d wrote, and not what round %d wrote", off/len(sector), has, n)
		} else {
			o.Note(&o.DiskCorrupted, "sector %d of the disk, written last in round %d, has something else, of round %d", off/len(sector), n, has)
		}
	}
	return nil
}

// lastWrite settles how far a vCPU has written. Its last frame may not have
// left, while what the round writes to the disk has, for that comes before.
func (o *Oracle) lastWrite(v int, c *chain, h History) {
	d, n := o.disk, h.Last()
	o.DiskBlocks += h.Written / d.every
	left := uint64(len(c.rounds))
	if n == left+1 && h.Written == n {
		m := c.model.Clone()
		if _, hash := m.Next(h.T); hash == h.Hashes[len(h.Hashes)-1] {
			d.follow(m)
			return
		}
	}
	if want := min(n, left) / d.every * d.every; h.Written != want {
		o.Note(&o.DiskLost, "vCPU %d: the last write is of round %d, after round %d it should be of round %d", v, h.Written, n, want)
	}
}
