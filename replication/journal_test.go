package replication

import (
	"bytes"
	"context"
	"path/filepath"
	"testing"
)

// openJournaled opens an image and its journal, as a process does that starts
// after another was killed.
func openJournaled(t *testing.T, dir string) (*File, *Journal) {
	t.Helper()
	d, err := CreateFile(filepath.Join(dir, "image"), testSize)
	must(t, err)
	t.Cleanup(func() { d.Close() })
	j, err := OpenJournalFiles(filepath.Join(dir, "journal"), 4<<20)
	must(t, err)
	t.Cleanup(func() { j.Close() })
	return d, j
}

func TestJournalInFilesSurvivesAKill(t *testing.T) {
	ctx := context.Background()
	dir := t.TempDir()
	d, j := openJournaled(t, dir)
	write(t, d, 0x11, 0, testSize)
	s, err := NewSecondary(d, SecondaryConfig{Journal: j})
	must(t, err)
	must(t, s.Start(ctx))
	write(t, s.Export(), 0x22, 0, half)
	must(t, s.Checkpoint(ctx, 1))
	write(t, s.Export(), 0x44, 0, testSize)
	write(t, s, 0x33, 0, half)
	want(t, "the guest's view", s, 0x33, 0, half)
	want(t, "the guest's view", s, 0x11, half, half)

	d, j = openJournaled(t, dir)
	_, err = NewSecondary(d, SecondaryConfig{Journal: j})
	wantErr(t, "an unclean journal", err, ErrUnclean)
	_, _, err = j.Recover(ctx, newFake(testSize*2, 0))
	wantErr(t, "another disk", err, ErrSize)
	epoch, failedOver, err := j.Recover(ctx, d)
	must(t, err)
	if epoch != 1 || failedOver {
		t.Errorf("recovered epoch %d, failover %v", epoch, failedOver)
	}
	want(t, "the last checkpoint", d, 0x22, 0, half)
	want(t, "the last checkpoint", d, 0x11, half, half)

	// And again, killed between the order to fail over and the commit.
	s, err = NewSecondary(d, SecondaryConfig{Journal: j, DeferCommit: true})
	must(t, err)
	must(t, s.Start(ctx))
	write(t, s.Export(), 0x55, 0, testSize)
	write(t, s, 0x66, BlockSize, 100)
	must(t, s.WriteZeroes(half, BlockSize))
	must(t, s.Stop(ctx, true))
	d, j = openJournaled(t, dir)
	if _, failedOver, err := j.Recover(ctx, d); err != nil || !failedOver {
		t.Fatalf("failover %v, %v", failedOver, err)
	}
	want(t, "the last checkpoint", d, 0x22, 0, BlockSize)
	want(t, "the guest's write", d, 0x66, BlockSize, 100)
	want(t, "the guest's zeroes", d, 0, half, BlockSize)
	want(t, "the last checkpoint", d, 0x11, half+BlockSize, BlockSize)
	if !j.Clean() {
		t.Errorf("%v after recovery", j)
	}
}

func TestWhatIsNoJournalIsRefused(t *testing.T) {
	_, err := OpenJournal(newFake(testSize, 0x11), newFake(testSize, 0))
	wantErr(t, "garbage", err, ErrCorrupt)
	_, err = OpenJournal(newFake(4096, 0), newFake(testSize, 0))
	wantErr(t, "too small", err, ErrSize)
}

func TestFullLogOfPreImagesFailsTheWrite(t *testing.T) {
	ctx := context.Background()
	asked := 0
	j, err := OpenJournal(newFake(minJournal, 0), newFake(testSize, 0))
	must(t, err)
	disk := newFake(testSize, 0x11)
	s, err := NewSecondary(disk, SecondaryConfig{Journal: j, RequestCheckpoint: func() { asked++ }})
	must(t, err)
	must(t, s.Start(ctx))
	_, err = s.Export().WriteAt(make([]byte, testSize), 0)
	wantErr(t, "write", err, ErrFull)
	want(t, "the disk is untouched", disk, 0x11, 0, testSize)
	if asked != 1 {
		t.Errorf("%d requests for a checkpoint", asked)
	}
}

// FuzzRecover has devices of any content: neither a panic nor a write beyond
// the disk may come of it.
func FuzzRecover(f *testing.F) {
	hidden, active := newFake(minJournal, 0), newFake(minJournal, 0)
	j, err := OpenJournal(hidden, active)
	if err != nil {
		f.Fatal(err)
	}
	s, err := NewSecondary(newFake(1<<20, 1), SecondaryConfig{Journal: j, DeferCommit: true})
	if err != nil {
		f.Fatal(err)
	}
	s.Start(context.Background())
	s.Export().WriteAt(make([]byte, 10000), 5)
	s.WriteAt(make([]byte, 100), 20000)
	f.Add(bytes.Clone(hidden.data), bytes.Clone(active.data))
	s.Stop(context.Background(), true)
	f.Add(bytes.Clone(hidden.data), bytes.Clone(active.data))
	f.Fuzz(func(t *testing.T, h, a []byte) {
		hidden, active := newFake(minJournal, 0), newFake(minJournal, 0)
		copy(hidden.data, h)
		copy(active.data, a)
		j, err := OpenJournal(hidden, active)
		if err != nil {
			return
		}
		j.super.size = 64 << 10 // what the checksum protects, a fuzzer does not find
		j.Recover(context.Background(), newFake(64<<10, 0))
	})
}
