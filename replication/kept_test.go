package replication

import (
	"bytes"
	"context"
	"math/rand/v2"
	"testing"

	"github.com/gocolo/lockstep/internal/require"
)

// keptRig is a secondary with a journal that has had a checkpoint, and whose
// process has ended; nothing of what its primary has now is there.
type keptRig struct {
	t                    *testing.T
	disk, hidden, active *fakeDisk
	p                    *Primary
	local                *fakeDisk
	checkpoint           []byte
}

func newKeptRig(t *testing.T, journal int) *keptRig {
	ctx := context.Background()
	x := &keptRig{t: t, disk: newPoweredFake(make([]byte, testSize)),
		hidden: newPoweredFake(make([]byte, journal)), active: newPoweredFake(make([]byte, minJournal))}
	x.local = newFake(testSize, 0x11)
	var err error
	x.p, err = NewPrimary(x.local, PrimaryConfig{Overwrite: true})
	must(t, err)
	s, _ := x.boot(SecondaryConfig{})
	protectFirst(t, x.p, s)
	write(t, x.p, 0x22, 0, 4*BlockSize)
	checkpointBoth(t, x.p, s, 1)
	x.checkpoint = bytes.Clone(x.local.data)
	must(t, x.p.Stop(ctx, true))
	write(t, x.p, 0x33, 0, testSize)
	return x
}

// boot starts the next process of the secondary. It returns the epoch of what was
// recovered.
func (x *keptRig) boot(cfg SecondaryConfig) (*Secondary, uint64) {
	x.t.Helper()
	j, err := OpenJournal(x.hidden, x.active)
	must(x.t, err)
	epoch, _, err := j.Recover(context.Background(), x.disk)
	must(x.t, err)
	cfg.Journal = j
	s, err := NewSecondary(x.disk, cfg)
	must(x.t, err)
	return s, epoch
}

func (x *keptRig) powerCut(rng *rand.Rand) {
	x.disk, x.hidden, x.active = x.disk.cutPower(rng), x.hidden.cutPower(rng), x.active.cutPower(rng)
}

func TestLastCheckpointIsKeptUntilThereIsAnother(t *testing.T) {
	ctx := context.Background()
	for at := range 60 { // operations on the secondary's host until its power fails
		if at%require.Many(13, 3, 1) != 0 {
			continue
		}
		x := newKeptRig(t, 4*testSize)
		s, _ := x.boot(SecondaryConfig{})
		must(t, joinOver(x.p, s))
		host := &power{left: at}
		for _, d := range []*fakeDisk{x.disk, x.hidden, x.active} {
			d.power = host
		}
		err := x.p.Synchronise(ctx, SyncConfig{})
		if err == nil {
			err = x.p.Mark(ctx, 0)
		}
		if err == nil {
			err = s.Start(ctx)
		}
		x.powerCut(rand.New(rand.NewPCG(uint64(at), 1)))
		again, epoch := x.boot(SecondaryConfig{})
		want, wantEpoch := x.checkpoint, uint64(1)
		if err == nil || bytes.Equal(x.disk.data, x.local.data) {
			want, wantEpoch = x.local.data, 0 // of the new run
		}
		wantBytes(t, "the disk after the power cut", x.disk.data, want, 0)
		if epoch != wantEpoch {
			t.Errorf("power fails after %d operations: recovered epoch %d, want %d", at, epoch, wantEpoch)
		}
		if i := again.Identity(); i.State != CopyClean || i.Epoch != epoch {
			t.Errorf("power fails after %d operations: the copy is %v", at, i)
		}
		// The primary takes it as a secondary.
		must(t, joinOver(x.p, again))
		must(t, x.p.Synchronise(ctx, SyncConfig{}))
		must(t, x.p.Mark(ctx, 0))
		must(t, again.Start(ctx))
		wantBytes(t, "the copy", x.disk.data, x.local.data, 0)
	}
}

func TestStopBringsBackTheCheckpointBeforeASynchronisation(t *testing.T) {
	ctx := context.Background()
	x := newKeptRig(t, 4*testSize)
	s, _ := x.boot(SecondaryConfig{})
	wantErr(t, "nothing has begun", s.Stop(ctx, false), ErrNotRunning)
	must(t, joinOver(x.p, s))
	must(t, x.p.Synchronise(ctx, SyncConfig{}))
	wantBytes(t, "what was copied", x.disk.data, x.local.data, 0)
	wantErr(t, "to go on with half of it", s.Stop(ctx, true), ErrNotRunning)
	must(t, s.Stop(ctx, false))
	wantBytes(t, "the checkpoint", x.disk.data, x.checkpoint, 0)
	if i := s.Identity(); s.State() != Done || i.State != CopyClean || i.Epoch != 1 {
		t.Errorf("state %v, the copy is %v", s.State(), i)
	}
	_, err := s.Export().WriteAt(make([]byte, SectorSize), 0)
	wantErr(t, "the primary", err, ErrGated)

	// And the primary may come back without another process.
	protectFirst(t, x.p, s)
	wantBytes(t, "the copy", x.disk.data, x.local.data, 0)
	checkpointBoth(t, x.p, s, 1)
	must(t, s.Err())
}

func TestCheckpointThatDoesNotFitIsGivenUpOnlyIfThatIsPermitted(t *testing.T) {
	ctx := context.Background()
	x := newKeptRig(t, minJournal)
	s, _ := x.boot(SecondaryConfig{})
	must(t, joinOver(x.p, s))
	wantErr(t, "synchronise", x.p.Synchronise(ctx, SyncConfig{}), ErrFull)
	_, epoch := x.boot(SecondaryConfig{})
	wantBytes(t, "the checkpoint", x.disk.data, x.checkpoint, 0)
	if epoch != 1 {
		t.Errorf("recovered epoch %d", epoch)
	}

	s, _ = x.boot(SecondaryConfig{GiveUpCheckpoint: true})
	must(t, joinOver(x.p, s))
	must(t, x.p.Synchronise(ctx, SyncConfig{}))
	again, _ := x.boot(SecondaryConfig{})
	if i := again.Identity(); i.State != CopyInconsistent {
		t.Errorf("the copy is %v, want inconsistent", i)
	}
	must(t, x.p.Mark(ctx, 0))
	must(t, s.Start(ctx))
	wantBytes(t, "the copy", x.disk.data, x.local.data, 0)
}

// Wherever the power fails while several disks that have been synchronised again
// are started together, they are all at the checkpoint of before or all at the
// start.
func TestDisksThatAreStartedAgainHaveOneEpochAfterAPowerCut(t *testing.T) {
	ctx := context.Background()
	before, after := 0, 0
	for at := range 40 {
		if at%require.Many(36, 3, 1) != 0 {
			continue
		}
		var rigs [3]*keptRig
		var g Group
		for i := range rigs {
			rigs[i] = newKeptRig(t, 4*testSize)
			s, _ := rigs[i].boot(SecondaryConfig{})
			must(t, joinOver(rigs[i].p, s))
			must(t, rigs[i].p.Synchronise(ctx, SyncConfig{}))
			must(t, rigs[i].p.Mark(ctx, 0))
			g = append(g, s)
		}
		host := &power{left: at}
		for _, x := range rigs {
			for _, d := range []*fakeDisk{x.disk, x.hidden, x.active} {
				d.power = host
			}
		}
		err := g.Start(ctx)
		rng := rand.New(rand.NewPCG(uint64(at), 2))
		var epoch uint64
		for again := &(power{left: rng.IntN(30)}); ; again = &(power{left: -1}) { // and perhaps once more
			var list []Recovery
			for _, x := range rigs {
				x.powerCut(rng)
				j, err := OpenJournal(x.hidden, x.active)
				must(t, err)
				list = append(list, Recovery{Journal: j, Disk: x.disk})
				for _, d := range []*fakeDisk{x.disk, x.hidden, x.active} {
					d.power = again
				}
			}
			var errRecover error
			if epoch, _, errRecover = RecoverGroup(ctx, list); errRecover == nil {
				break
			}
			wantErr(t, "recovery", errRecover, errPower)
		}
		started := bytes.Equal(rigs[0].disk.data, rigs[0].local.data)
		if started {
			after++
		} else {
			before++
		}
		if err == nil && !started {
			t.Fatalf("power fails after %d operations: a start that was answered is gone", at)
		}
		for i, x := range rigs {
			want, wantEpoch := x.checkpoint, uint64(1)
			if started {
				want, wantEpoch = x.local.data, 0
			}
			if !bytes.Equal(x.disk.data, want) || epoch != wantEpoch {
				t.Fatalf("power fails after %d operations: disk %d is not where the first is, started %v, epoch %d", at, i, started, epoch)
			}
		}
	}
	if before == 0 || after == 0 {
		t.Errorf("%d before and %d after the start: not every case was reached", before, after)
	}
}

// A secondary that has been asked to become a copy, and has not been written yet,
// is still what it was, and so is kept by the next process.
func TestDiskThatWasOnlyAskedIsStillKept(t *testing.T) {
	ctx := context.Background()
	disk, dev := newPoweredFake(make([]byte, testSize)), newMetaDevice(testSize)
	hidden, active := newPoweredFake(make([]byte, 4*testSize)), newPoweredFake(make([]byte, minJournal))
	boot := func() *Secondary {
		t.Helper()
		j, err := OpenJournal(hidden, active)
		must(t, err)
		d := reopened(t, disk, dev)
		_, _, err = j.Recover(ctx, d)
		must(t, err)
		s, err := NewSecondary(d, SecondaryConfig{Journal: j})
		must(t, err)
		return s
	}
	p, err := NewPrimary(newFake(testSize, 0x11), PrimaryConfig{Overwrite: true})
	must(t, err)
	s := boot()
	protectFirst(t, p, s)
	checkpointBoth(t, p, s, 1)
	must(t, p.Stop(ctx, true))
	write(t, p, 0x22, 0, testSize)
	must(t, joinOver(p, boot())) // it is asked, and its process ends
	s = boot()
	if i := s.Identity(); i.State != CopyClean || i.Epoch != 1 {
		t.Errorf("the copy is %v", i)
	}
	must(t, joinOver(p, s))
	must(t, p.Synchronise(ctx, SyncConfig{})) // and ends again, before there is a checkpoint
	if i := reopened(t, disk, dev).meta.Identity(); i.State != CopyInconsistent {
		t.Errorf("while it is written the copy is %v", i)
	}
	boot()
	want(t, "the last checkpoint", disk, 0x11, 0, testSize)
}
