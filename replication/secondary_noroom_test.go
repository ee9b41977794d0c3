package replication

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"

	"github.com/gocolo/lockstep/event"
)

// fileSystem is where the devices of a Journal are. It has no room for some of the writes.
type fileSystem struct {
	at, n  int // the writes from the at-th on, n of them, find no room
	made   int // percent of such a write is made all the same
	writes int
}

// sparseDisk is a disk on a fileSystem.
type sparseDisk struct {
	*fakeDisk
	fs *fileSystem
}

func (d sparseDisk) WriteAt(p []byte, off int64) (int, error) {
	d.fs.writes++
	if d.fs.writes < d.fs.at || d.fs.writes >= d.fs.at+d.fs.n {
		return d.fakeDisk.WriteAt(p, off)
	}
	n, _ := d.fakeDisk.WriteAt(p[:len(p)*d.fs.made/100/SectorSize*SectorSize], off)
	return n, syscall.ENOSPC
}

// What a host does when there was no room for what its secondary had to write.
const (
	comesBack = iota // it goes back to the last checkpoint, and begins again
	takesOver
	losesPower
	answers
)

// noRoomRun is a life of a secondary whose journal finds no room for n writes, from the at-th
// on. It returns how many writes the journal has made or tried.
func noRoomRun(t *testing.T, seed uint64, at, n, answer, made int) int {
	const size = 24 * BlockSize
	ctx := context.Background()
	where := fmt.Sprintf("seed %d, write %d and %d more, answer %d, %d%% made", seed, at, n-1, answer, made)
	rng := rand.New(rand.NewPCG(seed, 6))
	fs := &fileSystem{at: at, n: n, made: made}
	devices := [3]*fakeDisk{newPoweredFake(make([]byte, size)), newPoweredFake(make([]byte, minJournal)), newPoweredFake(make([]byte, minJournal))}
	copy(devices[0].data[:size/2], bytes.Repeat([]byte{9}, size/2))
	devices[0].settle()
	j, err := OpenJournal(sparseDisk{devices[1], fs}, sparseDisk{devices[2], fs})
	must(t, err)
	s, err := NewSecondary(devices[0], SecondaryConfig{Journal: j})
	must(t, err)

	// again does what may find no room until it finds some.
	again := func(what string, do func() error) {
		t.Helper()
		for range n + 1 {
			if err = do(); err == nil {
				return
			}
			if !errors.Is(err, syscall.ENOSPC) {
				break
			}
		}
		t.Fatalf("%s: %s: %v", where, what, err)
	}
	checkpoint := bytes.Clone(devices[0].data)
	primary, guest := bytes.Clone(checkpoint), bytes.Clone(checkpoint)
	change := func(d Disk, image []byte) error { return changeSome(rng, d, image) }
	sees := func() {
		t.Helper()
		p := make([]byte, size)
		if _, err := s.ReadAt(p, 0); err != nil || !bytes.Equal(p, guest) {
			t.Fatalf("%s: in state %v the guest sees another disk (%v)", where, s.State(), err)
		}
	}
	// survives asserts that the disk is one of images after a power cut.
	survives := func(images ...[]byte) {
		t.Helper()
		for i, d := range devices {
			devices[i] = d.cutPower(rng)
		}
		j, err := OpenJournal(devices[1], devices[2])
		if err == nil {
			_, _, err = j.Recover(ctx, devices[0])
		}
		for _, image := range images {
			if err == nil && bytes.Equal(devices[0].data, image) {
				return
			}
		}
		t.Fatalf("%s: the disk after a power cut is none of the %d that it may be (%v)", where, len(images), err)
	}
	failover := func() {
		t.Helper()
		if s.Stop(ctx, true) != nil {
			sees()
			if change(s, guest) != nil {
				return // it is torn
			}
			sees()
			again("commit", func() error { return s.Commit(ctx) })
			must(t, s.Sync()) // the write may have committed, for want of room, and gone to the disk
		}
		sees()
		survives(guest)
	}

	if err := s.Start(ctx); err != nil && answer == losesPower {
		survives(checkpoint)
		return fs.writes
	}
	again("start", func() error {
		if s.State() == Running {
			return nil
		}
		return s.Start(ctx)
	})
	for epoch := uint64(1); epoch < 4; epoch++ {
		var err error
		may := [][]byte{checkpoint}
		for i := rng.IntN(5); i >= 0 && err == nil; i-- {
			if err = change(s.Export(), primary); err == nil && change(s, guest) != nil {
				return fs.writes // a part of it is there, and its guest was told
			}
		}
		sees()
		if err == nil && epoch == 2 {
			err = s.Prepare(ctx, epoch)
		}
		if err == nil {
			err = s.Checkpoint(ctx, epoch)
			may = append(may, primary)
		}
		switch {
		case err == nil:
			checkpoint, guest = bytes.Clone(primary), bytes.Clone(primary)
		case answer == comesBack:
			wantErr(t, where, err, syscall.ENOSPC)
			sees()
			again("stop", func() error { return s.Stop(ctx, false) })
			wantBytes(t, where+": the disk of the last checkpoint", devices[0].data, checkpoint, 0)
			again("start", func() error { return s.Start(ctx) })
			primary, guest = bytes.Clone(checkpoint), bytes.Clone(checkpoint)
			epoch = 0
			fs.n = 0
		case answer == takesOver:
			sees()
			failover()
			return fs.writes
		default:
			survives(may...)
			return fs.writes
		}
		sees()
	}
	if err := change(s.Export(), primary); err == nil && change(s, guest) != nil {
		return fs.writes
	}
	if answer == takesOver {
		failover()
	} else {
		survives(checkpoint)
	}
	return fs.writes
}

// Whatever write of its journal finds no room for a while, a secondary shows its guest what
// it has to, loses nothing, and serves the next primary or goes on by itself when there is
// room.
func TestSecondaryAnyOfWhoseJournalsWritesFindsNoRoomForAWhile(t *testing.T) {
	seeds, step := uint64(12), 1
	if testing.Short() {
		seeds, step = 3, 9
	}
	runs := 0
	for seed := range seeds {
		for answer := range answers {
			for at := 1 + int(seed)%step; ; at += step {
				runs++
				if noRoomRun(t, seed, at, 1+(int(seed)+at/3)%3, answer, 50*(int(seed)+at)%150) < at { // it ended before
					break
				}
			}
		}
	}
	if runs < 100/step {
		t.Errorf("%d runs, want hundreds", runs)
	}
}

// A primary whose writes found no room in the journal of its secondary comes back when there
// is some, and the event says on which side, on which disk and why replication ended.
func TestPrimaryComesBackToASecondaryWhoseJournalHadNoRoom(t *testing.T) {
	ctx := context.Background()
	local := newFake(testSize, 0x11)
	p, err := NewPrimary(local, PrimaryConfig{Overwrite: true})
	must(t, err)
	disk, fs := newPoweredFake(make([]byte, testSize)), &fileSystem{}
	j, err := OpenJournal(sparseDisk{newFake(4*testSize, 0), fs}, sparseDisk{newFake(minJournal, 0), fs})
	must(t, err)
	bus, broken := heard[event.DiskBroken]()
	s, err := NewSecondary(disk, SecondaryConfig{Journal: j, Name: "d", Events: bus})
	must(t, err)
	protectFirst(t, p, s)
	checkpointBoth(t, p, s, 1)
	checkpoint := bytes.Clone(disk.data)

	fs.at, fs.n = fs.writes+1, 1
	_, err = s.Export().WriteAt(make([]byte, BlockSize), 0)
	wantErr(t, "a write without room for what it replaces", err, syscall.ENOSPC)
	if len(*broken) != 1 || (*broken)[0].Disk != "d" || (*broken)[0].Mode != event.ModeSecondary || (*broken)[0].Operation != "pre-image" {
		t.Errorf("heard %+v", *broken)
	}
	must(t, s.LocalErr())
	wantBytes(t, "the disk", disk.data, checkpoint, 0)
	must(t, p.Stop(ctx, true))
	write(t, p, 0x33, 0, testSize/2)

	// The next one comes while there is still no room, and the one after it when there is.
	must(t, joinOver(p, s))
	fs.at, fs.n = fs.writes+2, 1000
	wantErr(t, "a synchronisation without room", p.Synchronise(ctx, SyncConfig{}), syscall.ENOSPC)
	fs.n = 0
	protectFirst(t, p, s)
	write(t, p, 0x44, half, BlockSize)
	checkpointBoth(t, p, s, 1)
	wantBytes(t, "the copy", disk.data, local.data, 0)
}

// Those who append while a write of the log finds no room get the error, and what is appended
// afterwards is replayed, in order.
func TestLogThatFoundNoRoomEndsWhereItDid(t *testing.T) {
	for name, made := range map[string]int{"nothing is written": 0, "half is written": 50, "all is written": 100} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				fs := &fileSystem{made: made}
				dev := newFake(1<<20, 0)
				l := &hiddenLog{dev: newStableDisk(sparseDisk{dev, fs}, "log"), nonce: [16]byte{7}, end: logStart, batch: newBatch()}
				add := func(b int64) error {
					_, _, err := l.appendBlocks(b, bytes.Repeat([]byte{byte(b)}, BlockSize))
					return err
				}
				must(t, add(1))

				// One writes, and waits in the device, while others wait behind it.
				fs.at, fs.n = fs.writes+1, 1
				enter, leave := make(chan struct{}), make(chan struct{})
				l.dev.Disk = waitingDisk{l.dev.Disk, enter, leave}
				var wait sync.WaitGroup
				errs := make([]error, 4)
				wait.Go(func() { errs[0] = add(2) })
				<-enter
				for i := range errs[1:] {
					wait.Go(func() { errs[i+1] = add(int64(3 + i)) })
				}
				synctest.Wait()
				close(leave)
				wait.Wait()
				for _, err := range errs {
					wantErr(t, "an append without room", err, syscall.ENOSPC)
				}
				must(t, l.failed())
				must(t, add(9))
				must(t, add(8))
				var got []int64
				must(t, l.replay(t.Context(), func(b, n int64, p []byte) error {
					if n != BlockSize || p[0] != byte(b) || p[n-1] != byte(b) {
						t.Errorf("block %d is %#x", b, p[0])
					}
					got = append(got, b)
					return nil
				}))
				if fmt.Sprint(got) != "[1 9 8]" {
					t.Errorf("replayed %v", got)
				}
			})
		})
	}
}

// waitingDisk says that its first write has begun, and waits in it.
type waitingDisk struct {
	Disk
	enter, leave chan struct{}
}

func (d waitingDisk) WriteAt(p []byte, off int64) (int, error) {
	select {
	case <-d.leave:
	default:
		close(d.enter)
		<-d.leave
	}
	return d.Disk.WriteAt(p, off)
}

// A sync that fails is final, even if it says that there was no room: nobody knows what of
// the log is there.
func TestJournalWhoseSyncFoundNoRoomIsNotTrustedAgain(t *testing.T) {
	hidden := newFake(minJournal, 0)
	j, err := OpenJournal(hidden, newFake(minJournal, 0))
	must(t, err)
	s, _ := newSecondary(t, SecondaryConfig{Journal: j})
	hidden.failSync = func() error { return syscall.ENOSPC }
	_, err = s.Export().WriteAt(make([]byte, BlockSize), 0)
	var lost *SyncError
	if !errors.As(err, &lost) || !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("error %v", err)
	}
	hidden.failSync = nil
	if err := s.LocalErr(); !errors.As(err, &lost) {
		t.Errorf("the copy is usable: %v", err)
	}
	wantErr(t, "stop", s.Stop(t.Context(), false), syscall.ENOSPC)
}

// A superblock for which there was no room may be on the device all the same, and count after a
// power cut. Wherever the power fails in what is done next, the disk is one that it may be.
func TestSuperblockForWhichThereWasNoRoomDoesNotCountWhileTheDiskIsChanged(t *testing.T) {
	ctx := context.Background()
	const size = 24 * BlockSize
	for name, c := range map[string]struct {
		fails, next func(s *Secondary) error
	}{
		"a checkpoint": {
			func(s *Secondary) error { return s.Checkpoint(ctx, 1) },
			func(s *Secondary) error { return s.Stop(ctx, false) },
		},
		"a failover": {
			func(s *Secondary) error { return s.PrepareFailover(ctx) },
			func(s *Secondary) error {
				// What the guest writes now makes the map another.
				if _, err := s.WriteAt(make([]byte, BlockSize), 9*BlockSize); err != nil {
					return err
				}
				return s.Commit(ctx)
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			for at, ended := 0, false; !ended; at++ {
				fs, host := &fileSystem{made: 100}, &power{left: -1}
				var devices [3]*fakeDisk
				for i, n := range []int{size, minJournal, minJournal} {
					devices[i] = newPoweredFake(make([]byte, n))
					devices[i].power = host
				}
				j, err := OpenJournal(sparseDisk{devices[1], fs}, sparseDisk{devices[2], fs})
				must(t, err)
				s, err := NewSecondary(devices[0], SecondaryConfig{Journal: j})
				must(t, err)
				must(t, s.Start(ctx))
				before := bytes.Clone(devices[0].data)
				write(t, s.Export(), 0x22, 0, 8*BlockSize)
				write(t, s, 0x33, 4*BlockSize, 2*BlockSize)
				write(t, s, 0x44, 12*BlockSize, 2*BlockSize)
				primary := bytes.Clone(devices[0].data)
				guest := read(t, s, 0, size)

				fs.at, fs.n = fs.writes+1, 1
				if name == "a failover" {
					fs.at++ // the map is before it
				}
				wantErr(t, name, c.fails(s), syscall.ENOSPC)
				if fs.writes != fs.at {
					t.Fatal("it was another write than that of the superblock")
				}
				devices[1].settle() // it has become stable besides
				host.left = at
				ended = c.next(s) == nil
				for i := range devices {
					devices[i] = devices[i].cutPower(rand.New(rand.NewPCG(uint64(at), 3)))
				}
				j, err = OpenJournal(devices[1], devices[2])
				must(t, err)
				_, _, err = j.Recover(ctx, devices[0])
				must(t, err)
				got := devices[0].data
				if !bytes.Equal(got, before) && !bytes.Equal(got, primary) && !bytes.Equal(got, guest) {
					t.Errorf("power fails after %d operations: the disk is none that it may be", at)
				}
				if at > 200 {
					t.Fatal("it does not end")
				}
			}
		})
	}
}
