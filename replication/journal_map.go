package replication

import (
	"encoding/binary"
	"hash/crc32"
)

// The active device: a map of mapEntry bytes for each slot, then the slots.

const mapEntry = 16 // block u64, slot u32, data u8, zero u8, 2 unused

// activeSlots returns how many slots the active device has, which does not change before the
// journal is attached again, even if the device becomes longer. The caller holds mu.
func (j *Journal) activeSlots() int64 {
	n := j.active.Size()
	if had := j.super.active; had != 0 && had < uint64(n) {
		n = int64(had)
	}
	return slotsOf(n)
}

// slotsOf returns how many slots there are on a device of n bytes.
func slotsOf(n int64) int64 { return max(n-BlockSize, 0) / (BlockSize + mapEntry) }

// activeData returns where the first of so many slots is.
func activeData(slots int64) int64 {
	return (slots*mapEntry + BlockSize - 1) / BlockSize * BlockSize
}

func (j *Journal) writeMap(active *overlay) (n uint64, sum uint32, err error) {
	buf := make([]byte, 0, 64<<10)
	var off int64
	flush := func() error {
		sum = crc32.Update(sum, castagnoli, buf)
		err := writeFull(j.active, buf, off)
		off += int64(len(buf))
		buf = buf[:0]
		return err
	}
	le := binary.LittleEndian
	for _, leaf := range active.leavesInUse() {
		for b := int64(leaf) * leafBlocks; b < (int64(leaf)+1)*leafBlocks; b++ {
			e := active.lookup(b)
			if e.held() == 0 {
				continue
			}
			n++
			buf = le.AppendUint64(buf, uint64(b))
			buf = le.AppendUint32(buf, e.slot-1)
			buf = append(buf, e.data, e.zero, 0, 0)
			if len(buf) == cap(buf) {
				if err := flush(); err != nil {
					return 0, 0, err
				}
			}
		}
	}
	// Whole sectors; the rest of the last is not looked at.
	whole := len(buf)
	sum = crc32.Update(sum, castagnoli, buf)
	buf = buf[:(whole+SectorSize-1)/SectorSize*SectorSize]
	clear(buf[whole:])
	return n, sum, writeFull(j.active, buf, off)
}

// deviceSlots keeps blocks on a device, from base on.
type deviceSlots struct {
	dev  Disk
	base int64
}

func (d deviceSlots) grow(uint32) {}

func (d deviceSlots) readSlot(slot uint32, p []byte, at int) error {
	return readFull(d.dev, p, d.base+int64(slot)*BlockSize+int64(at))
}

func (d deviceSlots) writeSlot(slot uint32, p []byte, at int) error {
	return writeFull(d.dev, p, d.base+int64(slot)*BlockSize+int64(at))
}
