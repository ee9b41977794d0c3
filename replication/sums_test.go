package replication

import (
	"bytes"
	"crypto/sha256"
	"testing"
)

// holed is a disk that is a hole from some place on.
type holed struct {
	*fakeDisk
	from int64
}

func (d holed) Extents(off, n int64, yield func(n int64, flags uint32) bool) error {
	if data := min(n, d.from-off); data > 0 {
		if !yield(data, 0) {
			return nil
		}
		n -= data
	}
	if n > 0 {
		yield(n, hole)
	}
	return nil
}

// A disk is of whole sectors, which need not be whole chunks.
func TestTheSumOfTheLastChunkIsThatOfWhatThereIs(t *testing.T) {
	disk := newFake(3*ChunkSize+SectorSize, 0)
	write(t, disk, 1, 0, ChunkSize)
	for name, d := range map[string]Disk{"a hole": holed{disk, ChunkSize}, "zeroes": disk} {
		got := read(t, NewSums(d), 3*sumSize, sumSize)
		if want := sha256.Sum256(make([]byte, SectorSize)); !bytes.Equal(got, want[:]) {
			t.Errorf("%s: %x, want %x", name, got, want)
		}
	}
}

func TestSumsAreReadFromAnyPlace(t *testing.T) {
	disk := newFake(3*ChunkSize, 0)
	for i := range int64(3) {
		write(t, disk, byte(i+1), i*ChunkSize, ChunkSize)
	}
	sums := NewSums(disk)
	all := make([]byte, 0, sums.Size())
	for i := range int64(3) {
		sum := sha256.Sum256(disk.data[i*ChunkSize:][:ChunkSize])
		all = append(all, sum[:]...)
	}
	all = all[:cap(all)]
	for off := int64(0); off < 4*sumSize; off += 5 {
		for _, n := range []int64{1, sumSize - 1, sumSize, 2*sumSize + 3} {
			wantBytes(t, "part of the sums", read(t, sums, off, n), all[off:off+n], off)
		}
	}
}

// The sum of a hole is known. To compute it, 64 GiB of a sparse disk would be read for one question.
func TestSumsOfHolesReadNothing(t *testing.T) {
	const data = 3 * ChunkSize
	disk := newFake(64*ChunkSize, 0)
	write(t, disk, 1, 0, data)
	most := int64(0)
	disk.failRead = func(off int64, n int) error { most = max(most, off+int64(n)); return nil }
	zero := sha256.Sum256(make([]byte, ChunkSize))
	sums := NewSums(holed{disk, data})
	got := read(t, sums, 0, sums.Size())
	for i := int64(3); i < 64; i++ {
		if !bytes.Equal(got[i*sumSize:][:sumSize], zero[:]) {
			t.Fatalf("the sum of chunk %d is %x, want that of zeroes", i, got[i*sumSize:][:sumSize])
		}
	}
	if most > data {
		t.Errorf("the disk was read up to %d, want the %d bytes that it has", most, data)
	}
}
