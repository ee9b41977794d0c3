package replication

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"testing"
)

func FuzzIdentity(f *testing.F) {
	i := lineage(3)[2]
	f.Add(encodeIdentity(i))
	f.Add(make([]byte, SectorSize))
	f.Fuzz(func(t *testing.T, p []byte) {
		i, err := decodeIdentity(p)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Fatal(err)
			}
			return
		}
		if back, err := decodeIdentity(encodeIdentity(i)); err != nil || back != i {
			t.Fatalf("%v becomes %v, %v", i, back, err)
		}
	})
}

func FuzzMetadata(f *testing.F) {
	dev := newMetaDevice(testSize)
	d := reopened(f, newFake(testSize, 0), dev)
	if err := d.meta.update(func(i *Identity, b *peerBase) { *i = lineage(2)[1]; b.Copy = newID() }); err != nil {
		f.Fatal(err)
	}
	f.Add(bytes.Clone(dev.data), uint16(0), byte(0), false)
	f.Add(bytes.Clone(dev.data), uint16(4096+24), byte(1), true)
	f.Fuzz(func(t *testing.T, p []byte, at uint16, xor byte, fix bool) {
		p = append(p, make([]byte, max(0, metadataHead-len(p)))...)
		p = p[:len(p)/SectorSize*SectorSize]
		p[int(at)%len(p)] ^= xor
		if fix { // a checksum that is right
			for s := range 2 {
				slot := p[s*metadataSlot : s*metadataSlot+SectorSize]
				copy(slot, metadataMagic)
				if _, _, ok := decodeFacts(sealed(slot)); ok {
					copy(slot, sealed(slot))
				}
			}
		}
		m, err := OpenMetadata(&fakeDisk{data: p})
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Fatal(err)
			}
			return
		}
		if err := m.update(func(i *Identity, _ *peerBase) { i.Epoch++ }); err != nil {
			t.Fatal(err)
		}
		again, err := OpenMetadata(m.dev.Disk)
		if err != nil || again.id != m.id || again.peer != m.peer {
			t.Fatalf("%+v becomes %+v, %v", m.id, again, err)
		}
		if _, err := m.openIntent(testSize); err != nil {
			t.Fatal(err)
		}
	})
}

// sealed returns a sector with the checksum that it should have.
func sealed(p []byte) []byte {
	q := bytes.Clone(p)
	binary.LittleEndian.PutUint32(q[SectorSize-4:], crc32.Checksum(q[:SectorSize-4], castagnoli))
	return q
}
