package replication

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// crashed returns the devices of a journal, and the disk, of a host that was lost in an epoch in
// which the primary and the guest had both written every second block; with failover, when the
// guest had begun to go on.
func crashed(t *testing.T, failover bool) (hidden, active, disk *fakeDisk) {
	t.Helper()
	ctx := context.Background()
	hidden, active, disk = newFake(4*testSize, 0), newFake(4*testSize, 0), newFake(testSize, 0x22)
	j, err := OpenJournal(hidden, active)
	must(t, err)
	s, err := NewSecondary(disk, SecondaryConfig{Journal: j})
	must(t, err)
	must(t, s.Start(ctx))
	for off := int64(0); off < testSize; off += 2 * BlockSize {
		write(t, s.Export(), 0x33, off, BlockSize)
		write(t, s, 0x44, off+BlockSize, BlockSize)
	}
	if failover {
		must(t, s.PrepareFailover(ctx))
	}
	return hidden, active, disk
}

// What a device has lost with its end was the guest's: a log without its end would bring the disk
// back to no moment at all, and say that it is that of the checkpoint.
func TestAJournalThatHasLostItsEndIsNotApplied(t *testing.T) {
	for _, failover := range []bool{false, true} {
		hidden, active, _ := crashed(t, failover)
		for n := hidden.Size() - SectorSize; n >= minJournal; n -= 3 * SectorSize * 17 {
			hidden.data = hidden.data[:n]
			_, err := OpenJournal(hidden, active)
			wantErr(t, fmt.Sprintf("a log of %d bytes, failover %v", n, failover), err, ErrCorrupt)
		}
	}
	hidden, active, _ := crashed(t, true)
	active.data = active.data[:active.Size()-BlockSize]
	_, err := OpenJournal(hidden, active)
	wantErr(t, "the guest's own writes", err, ErrCorrupt)
}

// The slots of the guest's own writes stay where they are when the device becomes longer.
func TestAJournalOnLongerDevicesIsAppliedAsItWas(t *testing.T) {
	for _, failover := range []bool{false, true} {
		hidden, active, disk := crashed(t, failover)
		for _, d := range []*fakeDisk{hidden, active} {
			d.data = append(d.data, bytes.Repeat([]byte{0xee}, 3*testSize)...)
		}
		j, err := OpenJournal(hidden, active)
		must(t, err)
		_, went, err := j.Recover(context.Background(), disk)
		must(t, err)
		want := bytes.Repeat([]byte{0x22}, testSize)
		for off := BlockSize; failover && off < testSize; off += 2 * BlockSize {
			copy(want[off:], bytes.Repeat([]byte{0x44}, BlockSize))
		}
		if went != failover {
			t.Errorf("failover %v, want %v", went, failover)
		}
		wantBytes(t, "the disk", disk.data, want, 0)

		// From then on all of the devices is used.
		s, err := NewSecondary(disk, SecondaryConfig{Journal: j})
		must(t, err)
		if got, want := uint64(active.Size()), j.super.active; got != want {
			t.Errorf("the journal has %d bytes of the active device, want %d", want, got)
		}
		must(t, s.Start(context.Background()))
		must(t, s.Stop(context.Background(), false))
	}
}

// A guest's own writes do not count before a failover.
func TestAnActiveDeviceThatLostItsEndIsOnlyMissedAfterAFailover(t *testing.T) {
	hidden, active, disk := crashed(t, false)
	active.data = active.data[:minJournal]
	j, err := OpenJournal(hidden, active)
	must(t, err)
	_, _, err = j.Recover(context.Background(), disk)
	must(t, err)
	wantBytes(t, "the disk", disk.data, bytes.Repeat([]byte{0x22}, testSize), 0)
}

// A journal made before the lengths of its devices were recorded is used, and one of whose
// lengths a bit has changed is not.
func TestTheLengthsOfTheDevicesHaveASumOfTheirOwn(t *testing.T) {
	for _, b := range []superblock{{seq: 3, size: testSize}, {seq: 3, size: testSize, hidden: 1 << 20, active: 1 << 21}} {
		p := b.encode()
		var o superblock
		if !o.decode(p) || o.hidden != b.hidden || o.active != b.active {
			t.Errorf("lengths %d and %d, want %d and %d", o.hidden, o.active, b.hidden, b.active)
		}
		for i := superLengths; i < superSummed+4; i++ {
			p[i] ^= 4
			if o.decode(p) {
				t.Errorf("byte %d of the lengths %d and %d was changed, and they are %d and %d", i, b.hidden, b.active, o.hidden, o.active)
			}
			p[i] ^= 4
		}
	}
}

// An operator may give a journal more room, or less, with the next start. What is to be recovered
// stays where it is until it is.
func TestTheFilesOfAJournalGetTheLengthAskedForOnceTheyAreClean(t *testing.T) {
	dir, ctx := t.TempDir(), context.Background()
	base := filepath.Join(dir, "journal")
	lengths := func(why string, want int64) {
		t.Helper()
		for _, suffix := range []string{".hidden", ".active"} {
			st, err := os.Stat(base + suffix)
			must(t, err)
			if st.Size() != want {
				t.Errorf("%s: %s has %d bytes, want %d", why, suffix, st.Size(), want)
			}
		}
	}
	open := func(bytes int64) (*Journal, *File) {
		t.Helper()
		j, err := OpenJournalFiles(base, bytes)
		must(t, err)
		d, err := CreateFile(filepath.Join(dir, "image"), testSize)
		must(t, err)
		return j, d
	}
	shut := func(j *Journal, d *File) { must(t, errors.Join(j.Close(), d.Close())) }

	shut(open(1 << 20))
	for i, n := range []int64{8 << 20, 2 << 20, 4 << 20} {
		j, d := open(n)
		lengths("clean", n)
		s, err := NewSecondary(d, SecondaryConfig{Journal: j, Blank: i == 0})
		must(t, err)
		must(t, s.Start(ctx))
		write(t, s.Export(), byte(i+1), 0, testSize)
		must(t, s.Checkpoint(ctx, 1))
		write(t, s.Export(), 0xee, 0, testSize)
		shut(j, d) // the host is lost

		j, d = open(n / 2)
		lengths("to be recovered", n)
		_, _, err = j.Recover(ctx, d)
		must(t, err)
		wantBytes(t, "the disk", read(t, d, 0, testSize), bytes.Repeat([]byte{byte(i + 1)}, testSize), 0)
		shut(j, d)
	}
	_, err := OpenJournalFiles(base, minJournal-BlockSize)
	wantErr(t, "a journal that would be too short", err, ErrSize)
	lengths("refused", 4<<20)
}
