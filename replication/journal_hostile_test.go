package replication

import (
	"bytes"
	"context"
	"encoding/binary"
	"hash/crc32"
	"testing"
)

// sealedSuper returns a superblock whose checksum is right, with a number for the state that need
// not be one.
func sealedSuper(b superblock, state uint64) []byte {
	p := b.encode()
	binary.LittleEndian.PutUint64(p[32:], state)
	binary.LittleEndian.PutUint32(p[superEncoded-4:], crc32.Checksum(p[:superEncoded-4], castagnoli))
	return p
}

func TestASuperblockOfNoStateIsNone(t *testing.T) {
	for _, state := range []uint64{uint64(FailoverFailed), uint64(Done) + 1, 255, 256 + uint64(Running), 1 << 63} {
		hidden := newFake(minJournal, 0)
		copy(hidden.data, sealedSuper(superblock{seq: 4, epoch: 3, size: testSize}, state))
		if j, err := OpenJournal(hidden, newFake(minJournal, 0)); err == nil {
			t.Errorf("state %d was taken for %v", state, j)
		} else {
			wantErr(t, "the journal", err, ErrCorrupt)
		}
	}
}

// A map whose checksum is right may still say what cannot be. Then nothing is changed:
// the pre-images do not go to the disk either.
func TestAMapThatCannotBeChangesNothing(t *testing.T) {
	ctx := context.Background()
	entry := func(block uint64, slot uint32, data, zero byte) []byte {
		p := binary.LittleEndian.AppendUint64(nil, block)
		p = binary.LittleEndian.AppendUint32(p, slot)
		return append(p, data, zero, 0, 0)
	}
	for name, bad := range map[string][]byte{
		"a slot beyond the device": entry(2, 1<<20, 0xff, 0),
		"a block beyond the disk":  entry(testSize/BlockSize, 0, 1, 0),
		"a block below zero":       entry(1<<63, 0, 0, 1),
		"a sector twice":           entry(2, 0, 3, 2),
		"a block far beyond":       entry(1<<50, 0, 0xff, 0),
	} {
		t.Run(name, func(t *testing.T) {
			hidden, active, disk := newFake(minJournal, 0), newFake(minJournal, 0), newFake(testSize, 0x22)
			j, err := OpenJournal(hidden, active)
			must(t, err)
			s, err := NewSecondary(disk, SecondaryConfig{Journal: j})
			must(t, err)
			must(t, s.Start(ctx))
			write(t, s.Export(), 0x33, 4*BlockSize, BlockSize)
			write(t, s, 0x44, 0, BlockSize)
			must(t, s.PrepareFailover(ctx))
			b := j.super
			m := append(bytes.Clone(active.data[:mapEntry]), bad...)
			copy(active.data, m)
			b.seq, b.entries, b.entrySum = b.seq+1, 2, crc32.Checksum(m, castagnoli)
			copy(hidden.data[int64(b.seq%2)*superSlot:], b.encode())
			before := bytes.Clone(disk.data)
			for range 2 {
				j, err = OpenJournal(hidden, active)
				must(t, err)
				_, _, err = j.Recover(ctx, disk)
				wantErr(t, "recovery", err, ErrCorrupt)
				wantBytes(t, "the disk", disk.data, before, 0)
			}
		})
	}
}
