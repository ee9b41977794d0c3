package replication

import (
	"bytes"
	"context"
	"testing"
	"testing/synctest"
)

// loggedDisk returns the files of a secondary that has ended: its journal has so many records,
// each of which was stable when the next was made.
func loggedDisk(t *testing.T, records int) (hidden, active, disk *fakeDisk) {
	t.Helper()
	hidden, active, disk = newFake(minJournal, 0), newFake(minJournal, 0), newFake(testSize, 0x22)
	j, err := OpenJournal(hidden, active)
	must(t, err)
	s, err := NewSecondary(disk, SecondaryConfig{Journal: j})
	must(t, err)
	must(t, s.Start(context.Background()))
	for i := range records {
		write(t, s.Export(), 0x33, int64(i)*BlockSize, BlockSize)
	}
	return hidden, active, disk
}

// recordAt is where a record of one block begins.
func recordAt(i int) int { return logStart + i*(recordHeader+BlockSize) }

// A device that has lost a part of the log in the middle has lost pre-images of writes that
// were made: the disk is none of any checkpoint, and is not passed off as one.
func TestARecordThatRotsInTheMiddleOfALogIsFound(t *testing.T) {
	const records = 5
	for name, at := range map[string]int{"its magic": 0, "its number": 8, "its nonce": 16, "its block": 32, "its data": recordHeader + 100} {
		for i := range records - 1 {
			hidden, active, disk := loggedDisk(t, records)
			hidden.data[recordAt(i)+at] ^= 4
			before := bytes.Clone(disk.data)
			for range 2 {
				j, err := OpenJournal(hidden, active)
				must(t, err)
				_, _, err = j.Recover(context.Background(), disk)
				wantErr(t, name, err, ErrCorrupt)
				wantBytes(t, "the disk", disk.data, before, 0)
			}
		}
	}
}

// toldSync is a device whose syncs wait for a word.
type toldSync struct {
	*fakeDisk
	next chan struct{}
}

func (d toldSync) Sync() error { <-d.next; return d.fakeDisk.Sync() }

// Records that are written together reach a device in any order: that one of them is there
// says nothing of another.
func TestOfRecordsThatAreWrittenTogetherAnyMayBeMissing(t *testing.T) {
	const records = 4
	for missing := range records {
		synctest.Test(t, func(t *testing.T) {
			ctx := context.Background()
			dev := toldSync{newFake(minJournal, 0), make(chan struct{})}
			l := &hiddenLog{dev: newStableDisk(dev, "log"), end: logStart, batch: newBatch()}
			for i := range records {
				go func() {
					if _, _, err := l.appendBlocks(int64(i), make([]byte, BlockSize)); err != nil {
						t.Error(err)
					}
				}()
				synctest.Wait() // the first is being made stable, and the others wait for it
			}
			close(dev.next)
			synctest.Wait()
			dev.data[recordAt(missing)] ^= 4
			found := 0
			err := l.replay(ctx, func(int64, int64, []byte) error { found++; return nil })
			if err != nil || found != missing {
				t.Errorf("without record %d: %d records, %v", missing, found, err)
			}
		})
	}
}

// A log of a version that did not say what was stable ends where a record does not count.
func TestALogThatDoesNotSayWhatWasStableIsTaken(t *testing.T) {
	hidden, active, disk := loggedDisk(t, 3)
	for i := range 3 {
		clear(hidden.data[recordAt(i)+recordFields : recordAt(i)+recordHeader])
	}
	hidden.data[recordAt(2)] ^= 4 // the power cut came before it was stable, and the write after it
	copy(disk.data[2*BlockSize:3*BlockSize], bytes.Repeat([]byte{0x22}, BlockSize))
	j, err := OpenJournal(hidden, active)
	must(t, err)
	_, _, err = j.Recover(context.Background(), disk)
	must(t, err)
	wantBytes(t, "the disk", disk.data, bytes.Repeat([]byte{0x22}, testSize), 0)
}

// What one journal of a guest has lost, or says that cannot be, is found before the disk of
// another is changed.
func TestNoDiskOfAGroupIsChangedIfOneJournalIsCorrupt(t *testing.T) {
	for _, bad := range []int{0, 1} {
		var disks []Recovery
		var copies []*fakeDisk
		for i := range 2 {
			hidden, active, disk := loggedDisk(t, 3)
			if i == bad {
				hidden.data[recordAt(0)] ^= 4
			}
			j, err := OpenJournal(hidden, active)
			must(t, err)
			disks, copies = append(disks, Recovery{Journal: j, Disk: disk}), append(copies, disk)
		}
		before := [][]byte{bytes.Clone(copies[0].data), bytes.Clone(copies[1].data)}
		_, _, err := RecoverGroup(context.Background(), disks)
		wantErr(t, "the group", err, ErrCorrupt)
		for i := range copies {
			wantBytes(t, "a disk", copies[i].data, before[i], 0)
		}
	}
}
