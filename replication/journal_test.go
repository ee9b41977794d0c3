package replication

import (
	"context"
	"errors"
	"path/filepath"
	"testing"

	"github.com/gocolo/lockstep/event"
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

	must(t, errors.Join(d.Close(), j.Close())) // as the kernel does for it
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
	must(t, errors.Join(d.Close(), j.Close()))
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
	bus, half := heard[event.DiskOverlayHalfFull]()
	j, err := OpenJournal(newFake(minJournal, 0), newFake(testSize, 0))
	must(t, err)
	disk := newFake(testSize, 0x11)
	s, err := NewSecondary(disk, SecondaryConfig{Journal: j, Events: bus})
	must(t, err)
	must(t, s.Start(ctx))
	_, err = s.Export().WriteAt(make([]byte, testSize), 0)
	wantErr(t, "write", err, ErrFull)
	want(t, "the disk is untouched", disk, 0x11, 0, testSize)
	if len(*half) != 1 || (*half)[0].Overlay != "hidden" || (*half)[0].Bound != minJournal-logStart {
		t.Errorf("heard %+v, want once that the hidden overlay is half full", *half)
	}
}
