package replication

import (
	"bytes"
	"context"
	"math/rand/v2"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/internal/require"
)

// roomRig is a pair whose secondary has room for little.
type roomRig struct {
	p           *Primary
	s           *Secondary
	local, disk *fakeDisk
	half        *[]event.DiskOverlayHalfFull
	full        *[]event.DiskOverlayFull
}

const roomBlocks = 32

func newRoomRig(t *testing.T, cfg SecondaryConfig) *roomRig {
	t.Helper()
	x := &roomRig{local: newFake(testSize, 0x11), disk: newFake(testSize, 0x11)}
	bus, half := heard[event.DiskOverlayHalfFull]()
	x.half, x.full = half, new([]event.DiskOverlayFull)
	event.Subscribe(bus, func(e event.DiskOverlayFull) { *x.full = append(*x.full, e) })
	var err error
	if cfg.Journal == nil && cfg.HiddenBytes == 0 {
		cfg.HiddenBytes = roomBlocks * BlockSize
	}
	x.s, err = NewSecondary(x.disk, cfg)
	must(t, err)
	x.p, err = NewPrimary(x.local, PrimaryConfig{Name: "d", InSync: true, Events: bus})
	must(t, err)
	must(t, joinOver(x.p, x.s))
	must(t, x.p.Mark(t.Context(), 0))
	must(t, x.s.Start(t.Context()))
	must(t, x.p.Loaded(t.Context(), 0))
	must(t, x.p.Start(t.Context()))
	return x
}

func (x *roomRig) fill(t *testing.T) {
	t.Helper()
	for b := range int64(roomBlocks - leafCost) {
		write(t, x.p, 0x22, b*BlockSize, BlockSize)
	}
}

func TestWriteForWhichThereIsNoRoomWaitsForACheckpoint(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newRoomRig(t, SecondaryConfig{})
		x.fill(t)
		if len(*x.half) != 1 || len(*x.full) != 0 {
			t.Errorf("heard %+v and %+v, want once that half is taken", *x.half, *x.full)
		}
		done := make(chan struct{})
		go func() { write(t, x.p, 0x33, testSize/2, BlockSize); close(done) }()
		synctest.Wait()
		select {
		case <-done:
			t.Fatal("it did not wait")
		default:
		}
		want(t, "it is not made yet", x.local, 0x11, testSize/2, BlockSize)
		wantFull := []event.DiskOverlayFull{{Mode: event.ModePrimary, Disk: "d", Overlay: "hidden", Bytes: roomBlocks * BlockSize, Bound: roomBlocks * BlockSize}}
		if len(*x.full) != 1 || (*x.full)[0] != wantFull[0] {
			t.Errorf("heard %+v, want %+v", *x.full, wantFull)
		}
		write(t, x.p, 0x44, 0, BlockSize) // what is saved already takes no more
		checkpointBoth(t, x.p, x.s, 1)
		<-done
		want(t, "the checkpoint is without it", x.s, 0x11, testSize/2, BlockSize)
		checkpointBoth(t, x.p, x.s, 2)
		want(t, "the next has it", x.s, 0x33, testSize/2, BlockSize)
		must(t, x.s.Err())
	})
}

func TestWriteThatWaitsForRoomEnds(t *testing.T) {
	for name, end := range map[string]func(x *roomRig){
		"at the deadline":     func(*roomRig) { time.Sleep(defaultTimeout + time.Second) },
		"when cut":            func(x *roomRig) { x.p.Cut() },
		"when stopped":        func(x *roomRig) { x.p.Stop(context.Background(), true) },
		"with the connection": func(x *roomRig) { x.p.link.Load().breakOff(&BrokenError{Op: "connection", Err: errLost}) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				x := newRoomRig(t, SecondaryConfig{})
				x.fill(t)
				done := make(chan struct{})
				go func() { write(t, x.p, 0x33, testSize/2, BlockSize); close(done) }()
				synctest.Wait()
				end(x)
				<-done
				want(t, "the local disk", x.local, 0x33, testSize/2, BlockSize)
				write(t, x.p, 0x33, testSize/2, BlockSize)
			})
		})
	}
	synctest.Test(t, func(t *testing.T) {
		x := newRoomRig(t, SecondaryConfig{})
		x.fill(t)
		done := make(chan error)
		go func() { _, err := x.p.WriteAt(make([]byte, BlockSize), testSize/2); done <- err }()
		synctest.Wait()
		x.p.Fence()
		wantErr(t, "fenced", <-done, ErrFenced)
	})
}

// untilDone makes one checkpoint after the other until done is closed, and returns how many.
func (x *roomRig) untilDone(t *testing.T, done <-chan struct{}) (checkpoints uint64) {
	t.Helper()
	for {
		synctest.Wait()
		select {
		case <-done:
			return checkpoints
		default:
		}
		if checkpoints++; checkpoints == 100 {
			x.p.Cut()
			<-done
			t.Fatal("it waited for one checkpoint after the other")
		}
		checkpointBoth(t, x.p, x.s, checkpoints)
		time.Sleep(time.Second)
	}
}

func TestFUAWriteOfMoreThanTheRoomIsMadeInPieces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newRoomRig(t, SecondaryConfig{})
		done := make(chan struct{})
		go func() {
			defer close(done)
			must(t, x.p.WriteFUA(bytes.Repeat([]byte{0x33}, roomBlocks*BlockSize), BlockSize))
		}()
		e := x.untilDone(t, done)
		must(t, x.s.Err())
		checkpointBoth(t, x.p, x.s, e+1)
		want(t, "all of it", x.s, 0x33, BlockSize, roomBlocks*BlockSize)
	})
}

// A secondary whose room is too little for any write says so itself, at the first one. The guest
// does not wait for what no checkpoint makes.
func TestWriteForWhichThereIsNeverRoomWaitsForOneCheckpoint(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newRoomRig(t, SecondaryConfig{HiddenBytes: 2 * BlockSize})
		done := make(chan struct{})
		go func() { write(t, x.p, 0x33, 0, BlockSize); close(done) }()
		if e := x.untilDone(t, done); e != 1 {
			t.Errorf("it waited for %d checkpoints, want 1", e)
		}
		wantErr(t, "the secondary", x.s.Err(), ErrFull)
	})
}

// A vCPU that waits in a write would keep its guest from being paused, and so the
// checkpoint from being made that it waits for.
func TestWriteThatWaitsForRoomIsMadeBeforeTheGuestIsPaused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newRoomRig(t, SecondaryConfig{HiddenBytes: 2 * minSpare * BlockSize})
		left := func() int64 { c := x.p.room.charged.Load(); return c.bound() - int64(c.used) }
		block := int64(0)
		fill := func() {
			for write(t, x.p, 0x22, block*BlockSize, BlockSize); left() > 0; write(t, x.p, 0x22, block*BlockSize, BlockSize) {
				block++
			}
			block++
		}
		start := func() <-chan struct{} {
			done := make(chan struct{})
			go func(b int64) { write(t, x.p, 0x33, b*BlockSize, BlockSize); close(done) }(block)
			block++
			synctest.Wait()
			return done
		}
		waits := func(why string, done <-chan struct{}) {
			t.Helper()
			select {
			case <-done:
				t.Fatal(why, "it did not wait")
			default:
			}
		}
		for epoch := range uint64(2) { // and what was spare is so again
			fill()
			done := start()
			waits("there is no room: ", done)
			Group{x.p}.Drain()
			Group{x.p}.Drain()
			<-done
			if n := left(); n != 2*minSpare/8-1 {
				t.Errorf("room for %d more, want an eighth less one", n)
			}
			fill()
			done = start()
			waits("nor any to spare: ", done)
			checkpointBoth(t, x.p, x.s, epoch+1)
			<-done
		}
		must(t, x.s.Err()) // it has never had more than it could take
		must(t, x.p.Err())
	})
}

// A discard of more than there is room for is made in pieces; checkpoints come
// between them.
func TestLargeDiscardLetsCheckpointsInBetween(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newRoomRig(t, SecondaryConfig{})
		done := make(chan struct{})
		go func() { must(t, x.p.Trim(0, testSize)); close(done) }()
		epochs := 0
		for waiting := true; waiting; {
			synctest.Wait()
			select {
			case <-done:
				waiting = false
			default:
				epochs++
				checkpointBoth(t, x.p, x.s, uint64(epochs))
			}
		}
		if least := testSize / BlockSize / roomBlocks; epochs < least {
			t.Errorf("%d checkpoints, want at least %d", epochs, least)
		}
		checkpointBoth(t, x.p, x.s, uint64(epochs)+1)
		want(t, "the secondary's guest", x.s, 0, 0, testSize)
		must(t, x.s.Err())
	})
}

func TestZeroesTakeNoRoomForPreImages(t *testing.T) {
	ctx := context.Background()
	j := func() *Journal {
		j, err := OpenJournal(newFake(minJournal, 0), newFake(minJournal, 0))
		must(t, err)
		return j
	}
	for name, cfg := range map[string]SecondaryConfig{"in memory": {HiddenBytes: 8 * BlockSize}, "in a journal": {Journal: j()}} {
		file, err := CreateFile(filepath.Join(t.TempDir(), "image"), 4<<20)
		must(t, err)
		defer file.Close()
		for what, disk := range map[string]Disk{"zeroes": newFake(4<<20, 0), "holes": file} {
			if cfg.Journal != nil {
				cfg.Journal = j()
			}
			s, err := NewSecondary(disk, cfg)
			must(t, err)
			must(t, s.Start(ctx))
			x := s.Export()
			write(t, x, 0x22, 0, 4<<20)
			if err := s.Err(); err != nil {
				t.Errorf("%s, %s: %v", name, what, err)
				continue
			}
			want(t, "the secondary's guest", s, 0, 0, 4<<20)
			must(t, s.Stop(ctx, false))
			want(t, "the last checkpoint", disk, 0, 0, 4<<20)
		}
	}
}

// A block of zeroes, of which the log has only a header, is recovered.
func TestZeroesOfALogAreRecovered(t *testing.T) {
	ctx := context.Background()
	const size = testSize + SectorSize // the last block is one sector
	disk := newPoweredFake(make([]byte, size))
	copy(disk.data[3*BlockSize:], bytes.Repeat([]byte{0x11}, 5*BlockSize+100))
	before := bytes.Clone(disk.data)
	hidden, active := newFake(minJournal, 0), newFake(minJournal, 0)
	j, err := OpenJournal(hidden, active)
	must(t, err)
	s, err := NewSecondary(disk, SecondaryConfig{Journal: j})
	must(t, err)
	must(t, s.Start(ctx))
	write(t, s.Export(), 0x22, 0, size)
	wantBytes(t, "the guest's view", read(t, s, 0, size), before, 0)
	j, err = OpenJournal(hidden, active)
	must(t, err)
	_, _, err = j.Recover(ctx, disk)
	must(t, err)
	wantBytes(t, "recovered", disk.data, before, 0)
}

// However a run has ended, a primary that comes back finds a secondary that
// takes it.
func TestReconnectAfterEveryEnd(t *testing.T) {
	ctx := context.Background()
	for name, end := range map[string]func(t *testing.T, x *roomRig){
		"the connection is lost": func(*testing.T, *roomRig) {},
		"the secondary stopped": func(t *testing.T, x *roomRig) {
			must(t, x.s.Stop(ctx, false))
		},
		"a checkpoint was prepared": func(t *testing.T, x *roomRig) { must(t, x.s.Prepare(ctx, 1)) },
		"a write failed": func(t *testing.T, x *roomRig) {
			x.disk.failWrite = func(int64, int) error { return errInjected }
			x.s.Export().WriteAt(make([]byte, BlockSize), 0)
			x.disk.failWrite = nil
			wantErr(t, "the run", x.s.Err(), ErrBroken)
		},
		"there was no room": func(t *testing.T, x *roomRig) {
			_, err := x.s.Export().WriteAt(bytes.Repeat([]byte{0x66}, 2*roomBlocks*BlockSize), 0)
			wantErr(t, "write", err, ErrFull)
		},
	} {
		for _, journal := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				cfg := SecondaryConfig{}
				if journal {
					j, err := OpenJournal(newFake(4*minJournal, 0), newFake(minJournal, 0))
					must(t, err)
					cfg.Journal = j
				}
				x := newRoomRig(t, cfg)
				write(t, x.p, 0x22, 0, BlockSize)
				must(t, x.p.Sync())
				must(t, x.p.Stop(ctx, true))
				end(t, x)
				write(t, x.p, 0x33, BlockSize, BlockSize)
				must(t, joinOver(x.p, x.s))
				must(t, x.p.Synchronise(ctx, SyncConfig{}))
				must(t, x.p.Mark(ctx, 0))
				if x.s.State() == Running {
					must(t, x.s.Checkpoint(ctx, x.s.Epoch()+1))
				} else {
					must(t, x.s.Start(ctx))
				}
				must(t, x.p.Loaded(ctx, 0))
				must(t, x.p.Start(ctx))
				wantBytes(t, "the copy", x.disk.data, x.local.data, 0)
				write(t, x.p, 0x44, 0, BlockSize)
				checkpointBoth(t, x.p, x.s, 9)
				want(t, "the secondary's guest", x.s, 0x44, 0, BlockSize)
				must(t, x.s.Stop(ctx, true))
				wantBytes(t, "the promoted disk", x.disk.data, x.local.data, 0)
			})
		}
	}
}

// In a log a block of zeroes takes a header, so that enough of them fill it: a write of the
// primary's waits then too, and does not end replication.
func TestZeroesFillTheLogOfAJournal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const size = 2 << 20
		j, err := OpenJournal(newFake(minJournal, 0), newFake(minJournal, 0))
		must(t, err)
		local, disk := newFake(size, 0), newFake(size, 0)
		for _, d := range []*fakeDisk{local, disk} {
			copy(d.data, bytes.Repeat([]byte{0x11}, 16*BlockSize))
		}
		s, err := NewSecondary(disk, SecondaryConfig{Journal: j})
		must(t, err)
		p := startOver(t, local, s)
		done := make(chan struct{})
		go func() {
			defer close(done)
			for b := range int64(size / BlockSize) {
				write(t, p, 0x22, b*BlockSize, BlockSize)
			}
		}()
		epochs := uint64(0)
		for finished := false; !finished; {
			synctest.Wait()
			select {
			case <-done:
				finished = true
			default:
			}
			epochs++
			checkpointBoth(t, p, s, epochs)
			must(t, s.Err())
		}
		want(t, "the secondary", s, 0x22, 0, size)
		if most := int64(size/BlockSize) * recordHeader / (minJournal - logStart); int64(epochs) > 3*most+3 {
			t.Errorf("it took %d checkpoints, as if a block of zeroes took as much as another", epochs)
		}
	})
}

// startOver returns a primary that replicates local, whose copy s has, after the first
// checkpoint.
func startOver(t *testing.T, local Disk, s *Secondary) *Primary {
	t.Helper()
	p, err := NewPrimary(local, PrimaryConfig{InSync: true})
	must(t, err)
	must(t, joinOver(p, s))
	must(t, p.Mark(t.Context(), 0))
	must(t, s.Start(t.Context()))
	must(t, p.Loaded(t.Context(), 0))
	must(t, p.Start(t.Context()))
	return p
}

// TestNothingThatAGuestWritesFillsTheSecondary has a guest write at random, over data, zeroes
// and holes: its writes wait, and the secondary never has too little room.
func TestNothingThatAGuestWritesFillsTheSecondary(t *testing.T) {
	seeds := require.Many[uint64](2, 20, 60)
	for seed := range seeds {
		synctest.Test(t, func(t *testing.T) {
			const size = 8 << 20
			rng := rand.New(rand.NewPCG(seed, 3))
			cfg := SecondaryConfig{HiddenBytes: 1 << (17 + rng.IntN(5))}
			if seed%2 == 0 {
				j, err := OpenJournal(newFake(minJournal<<rng.IntN(6), 0), newFake(minJournal, 0))
				must(t, err)
				cfg.Journal = j
			}
			local, disk := newFake(size, 0), newFake(size, 0)
			for b := int64(0); b < size; b += BlockSize {
				if rng.IntN(8) == 0 {
					copy(local.data[b:], bytes.Repeat([]byte{1}, BlockSize*rng.IntN(40)))
				}
			}
			copy(disk.data, local.data)
			s, err := NewSecondary(disk, cfg)
			must(t, err)
			p := startOver(t, local, s)
			done := make(chan struct{})
			go func() {
				defer close(done)
				at := int64(0)
				for range 400 {
					if n := rng.Int64N(16) + 1; rng.IntN(3) == 0 {
						at = rng.Int64N(size)
					} else {
						at = (at + n*SectorSize*rng.Int64N(32)) % size
					}
					switch n := min(1+rng.Int64N(1<<(9+rng.IntN(9))), size-at); rng.IntN(6) {
					case 0:
						must(t, p.WriteZeroes(at, min(n*8, size-at)))
					case 1:
						must(t, p.WriteZeroes(at&^(BlockSize-1), BlockSize))
					default:
						write(t, p, byte(rng.IntN(2)), at, n)
					}
				}
			}()
			for epoch, finished := uint64(1), false; !finished; epoch++ {
				synctest.Wait()
				select {
				case <-done:
					finished = true
				default:
				}
				if err := s.Err(); err != nil {
					t.Fatalf("seed %d, epoch %d: %v", seed, epoch, err)
				}
				checkpointBoth(t, p, s, epoch)
			}
			if !bytes.Equal(local.data, disk.data) {
				t.Fatalf("seed %d: the copies differ", seed)
			}
		})
	}
}
