package replication

import (
	"bytes"
	"context"
	"math/rand/v2"
	"testing"
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

// boot is the next process of the secondary. It returns the epoch of what was
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
		// It is worth no less than before.
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
