package replication

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"syscall"
	"testing"
)

// bootAt starts the next process of the secondary, whose disks are to be as they were at the start that one of them had made.
func (x *forwardRig) bootAt(starts [2][]byte) {
	x.t.Helper()
	if epoch := x.boot(); epoch != 0 {
		x.t.Errorf("recovered to %d, want the start", epoch)
	}
	for i, d := range x.disks {
		wantBytes(x.t, fmt.Sprintf("disk %d", i), d[0].data, starts[i], 0)
		if id := x.secondary(i).Identity(); id.State != CopyClean || id.Generation != x.primaries[i].Identity().Generation && id.Generation != x.primaries[i].Identity().History[0] {
			x.t.Errorf("disk %d is %v, its primary's %v", i, id, x.primaries[i].Identity())
		}
	}
}

// startsApart has the first disk started and the second not, since its journal has no room for that; nor can the first one be
// stopped again. It returns what the disks are at that start.
func (x *forwardRig) startsApart() (starts [2][]byte) {
	x.t.Helper()
	ctx := context.Background()
	x.boot()
	x.synchronise(0)
	must(x.t, x.members.Start(ctx))
	x.loaded(0)
	for _, p := range x.primaries {
		must(x.t, p.Mark(ctx, 1))
	}
	must(x.t, x.members.Checkpoint(ctx, 1))
	x.goOn(0x22)
	must(x.t, x.members.Stop(ctx, false))
	x.boot()
	x.synchronise(0)
	for i, d := range x.local {
		starts[i] = bytes.Clone(d.data)
	}

	for i, first := range []int{3, 2} { // the superblock after that of the start of the first disk, and that of the second
		x.disks[i][2].failWrite = func(int64, int) error {
			if first--; first <= 0 {
				return syscall.ENOSPC
			}
			return nil
		}
	}
	wantErr(x.t, "a start without room for the second disk", x.members.Start(ctx), syscall.ENOSPC)
	if st := x.secondary(0).State(); st != Running {
		x.t.Fatalf("the first disk is %v, want running", st)
	}
	x.disks[0][2].failWrite, x.disks[1][2].failWrite = nil, nil
	return starts
}

// A start that one disk made and another could not is made up for when a primary comes back to that one, before
// anything is written to it: a crash in the middle of what follows brings both to that start.
func TestAStartThatOneDiskCouldNotMakeIsMadeBeforeTheDiskIsFilledAgain(t *testing.T) {
	x := newForwardRig(t)
	starts := x.startsApart()
	p := x.primaries[1]
	write(t, p, 0x44, 0, 2*BlockSize)
	write(t, p, 0x44, 6*BlockSize, BlockSize)
	_, err := x.secondary(1).Export().WriteAt(make([]byte, BlockSize), 0)
	wantErr(t, "a write before that", err, ErrGated)
	must(t, joinOver(p, x.secondary(1)))
	write(t, x.secondary(1).Export(), 0x44, 0, 2*BlockSize) // a part of what the disk lacks
	x.cut(rand.New(rand.NewPCG(1, 2)))
	x.bootAt(starts)
}

// The same of a disk that is stopped, or started again with the others; while there is no room for the start, neither is done.
func TestAStartThatOneDiskCouldNotMakeIsMadeBeforeAStopAndTheNextStart(t *testing.T) {
	ctx := context.Background()
	for _, next := range []string{"stop", "start", "stop of all", "nothing"} {
		x := newForwardRig(t)
		starts := x.startsApart()
		do := map[string]func() error{
			"stop": func() error { return x.secondary(1).Stop(ctx, false) },
			"start": func() error {
				must(t, x.secondary(0).Stop(ctx, false))
				return x.members.Start(ctx)
			},
			"stop of all": func() error { return x.members.Stop(ctx, false) },
			"nothing":     func() error { return syscall.ENOSPC },
		}[next]
		hidden := x.disks[1][2]
		hidden.failWrite = func(int64, int) error { return syscall.ENOSPC }
		wantErr(t, "without room: "+next, do(), syscall.ENOSPC)
		hidden.failWrite = nil
		if next != "nothing" {
			must(t, do())
		}
		x.cut(rand.New(rand.NewPCG(1, 3)))
		x.bootAt(starts)
	}
}

// Disks each at the same epoch of another start were never at one checkpoint, and a recovery says so.
func TestTheSameEpochOfTwoStartsIsNotOneCheckpoint(t *testing.T) {
	ctx := context.Background()
	x := newForwardRig(t)
	x.boot()
	x.synchronise(0)
	must(t, x.members.Start(ctx))
	other := newForwardRig(t)
	other.boot()
	other.synchronise(0)
	must(t, other.members.Start(ctx))
	x.disks[1] = other.disks[1]
	for _, stopped := range []bool{false, true} {
		if stopped {
			must(t, x.secondary(0).Stop(ctx, false))
		}
		var list []Recovery
		for _, d := range x.disks {
			j, err := OpenJournal(d[2], d[3])
			must(t, err)
			list = append(list, Recovery{Journal: j, Disk: reopened(t, d[0], d[1])})
		}
		_, _, err := RecoverGroup(ctx, list)
		wantErr(t, fmt.Sprintf("two starts, one stopped %v", stopped), err, ErrEpoch)
	}
}

// A disk to which nothing was copied is started with one to which something was, and the power fails when one of
// them is. Later both go back to the same checkpoint.
func TestADiskThatLackedNothingGoesBackWithTheOthers(t *testing.T) {
	ctx := context.Background()
	for at := range 30 {
		x := newForwardRig(t)
		x.boot()
		x.synchronise(0)
		must(t, x.members.Start(ctx))
		x.loaded(0)
		for epoch := range uint64(3) {
			for _, p := range x.primaries {
				must(t, p.Mark(ctx, epoch+1))
			}
			must(t, x.members.Checkpoint(ctx, epoch+1))
			for _, p := range x.primaries {
				must(t, p.Loaded(ctx, epoch+1))
			}
		}
		for _, p := range x.primaries {
			must(t, p.Stop(ctx, true))
		}
		must(t, x.members.Stop(ctx, false))
		x.boot()
		write(t, x.primaries[0], 0x33, 0, BlockSize) // the other disk is as it was
		x.synchronise(0)
		x.powered(&power{left: at})
		err := x.members.Start(ctx)
		if err != nil && !errors.Is(err, errPower) {
			t.Fatal(err)
		}
		x.cut(rand.New(rand.NewPCG(uint64(at), 5)))
		x.boot()
		want := [2][]byte{bytes.Clone(x.disks[0][0].data), bytes.Clone(x.disks[1][0].data)}
		for i, p := range x.primaries {
			p.Detach() // which has something to say about the power
			write(t, p, 0x44, 0, 4*BlockSize)
			must(t, joinOver(p, x.secondary(i)))
			must(t, p.Synchronise(ctx, SyncConfig{}))
		}
		x.cut(rand.New(rand.NewPCG(uint64(at), 6)))
		x.boot()
		for i, d := range x.disks {
			wantBytes(t, fmt.Sprintf("power fails after %d operations: disk %d", at, i), d[0].data, want[i], 0)
		}
	}
}

// The power fails at any moment of the start after one that only one disk could make: both are at the one or the other.
func TestAStartAfterOneThatOneDiskCouldNotMakeIsMadeOrNot(t *testing.T) {
	ctx := context.Background()
	for at := range 20 {
		x := newForwardRig(t)
		starts := x.startsApart()
		must(t, x.secondary(0).Stop(ctx, false))
		x.powered(&power{left: at})
		if err := x.members.Start(ctx); err != nil && !errors.Is(err, errPower) {
			t.Fatal(err)
		}
		x.cut(rand.New(rand.NewPCG(uint64(at), 7)))
		x.bootAt(starts)
	}
}
