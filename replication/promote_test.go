package replication

import (
	"bytes"
	"context"
	"math/rand/v2"
	"testing"
)

// promoted is a secondary's disk with its metadata and its journal, of one host.
type promoted struct {
	s                          *Secondary
	disk, meta, hidden, active *fakeDisk
}

// atCheckpoint returns a secondary at its second checkpoint, since when nobody has written.
func atCheckpoint(t *testing.T) *promoted {
	t.Helper()
	x := &promoted{
		disk: newPoweredFake(make([]byte, testSize)), meta: newMetaDevice(testSize),
		hidden: newPoweredFake(make([]byte, minJournal)), active: newPoweredFake(make([]byte, minJournal)),
	}
	p, err := NewPrimary(newFake(testSize, 0x11), PrimaryConfig{Overwrite: true})
	must(t, err)
	j, err := OpenJournal(x.hidden, x.active)
	must(t, err)
	x.s, err = NewSecondary(reopened(t, x.disk, x.meta), SecondaryConfig{Journal: j})
	must(t, err)
	protectFirst(t, p, x.s)
	write(t, p, 0x22, 0, BlockSize)
	checkpointBoth(t, p, x.s, 1)
	must(t, p.Stop(t.Context(), true))
	return x
}

// all returns the devices.
func (x *promoted) all() []*fakeDisk { return []*fakeDisk{x.disk, x.meta, x.hidden, x.active} }

// A guest stands still while its failover is recorded. Where it has nothing to be copied, as after a switchover, that
// takes one flush of the metadata and one of the journal.
func TestAFailoverWithNothingToCopyIsRecordedOnce(t *testing.T) {
	for _, wrote := range []bool{false, true} {
		x := atCheckpoint(t)
		if wrote {
			write(t, x.s, 0x44, 2*BlockSize, BlockSize)
		}
		for _, d := range x.all() {
			d.syncs = 0
		}
		must(t, x.s.Stop(t.Context(), true))
		if st := x.s.State(); st != Done {
			t.Errorf("it is %v", st)
		}
		if id := x.s.Identity(); id.State != CopyClean || !id.Writes {
			t.Errorf("the copy is %v", id)
		}
		meta, journal := 1, 1
		if wrote {
			meta, journal = 2, 3 // that it is going to be so comes first, and what it has written
		}
		if x.meta.syncs != meta || x.hidden.syncs+x.active.syncs != journal {
			t.Errorf("wrote %v: %d flushes of the metadata and %d+%d of the journal", wrote, x.meta.syncs, x.hidden.syncs, x.active.syncs)
		}
		write(t, x.s, 0x55, 0, BlockSize)
		want(t, "the guest's write, on the disk", x.disk, 0x55, 0, BlockSize)
	}
}

// The power fails at each operation of such a failover. The disk is that of the checkpoint afterwards, and
// known to be whole: the guest's own from when the failover had been answered, and before that one or the other.
func TestAFailoverWithNothingToCopyIsCutOffAnywhere(t *testing.T) {
	ctx := context.Background()
	rng := rand.New(rand.NewPCG(7, 9))
	for left, answered := 0, false; !answered; left++ {
		for range 8 {
			x := atCheckpoint(t)
			checkpoint := bytes.Clone(x.disk.data)
			supply := &power{left: left}
			for _, d := range x.all() {
				d.power = supply
			}
			answered = x.s.Stop(ctx, true) == nil
			if answered == supply.out {
				t.Fatalf("after %d operations: answered %v, the power has failed %v", left, answered, supply.out)
			}
			disk, meta := x.disk.cutPower(rng), x.meta.cutPower(rng)
			j, err := OpenJournal(x.hidden.cutPower(rng), x.active.cutPower(rng))
			must(t, err)
			again := reopened(t, disk, meta)
			_, _, err = RecoverGroup(ctx, []Recovery{{Journal: j, Disk: again}})
			must(t, err)
			id := again.meta.Identity()
			if !j.Clean() || id.State != CopyClean || answered && !id.Writes {
				t.Errorf("after %d operations, answered %v: the journal is clean: %v; the copy is %v", left, answered, j.Clean(), id)
			}
			wantBytes(t, "the disk", disk.data, checkpoint, 0)
			s, err := NewSecondary(again, SecondaryConfig{Journal: j, Overwrite: true, GiveUpCheckpoint: true})
			must(t, err)
			p, err := NewPrimary(newFake(testSize, 0x66), PrimaryConfig{Overwrite: true})
			must(t, err)
			protectFirst(t, p, s)
			want(t, "what a primary that comes has", s, 0x66, 0, testSize)
		}
	}
}

// A failover of which the journal has no record goes on over the overlays, and is no failover after a crash.
func TestAFailoverWithNothingToCopyThatCannotBeRecordedLeavesTheDiskAsItIs(t *testing.T) {
	for _, device := range []string{"metadata", "journal"} {
		x := atCheckpoint(t)
		d := x.meta
		if device == "journal" {
			d = x.hidden
		}
		d.failSync = func() error { return errInjected }
		wantErr(t, device, x.s.Stop(t.Context(), true), errInjected)
		if st := x.s.State(); st != FailoverFailed {
			t.Errorf("%s: it is %v", device, st)
		}
		checkpoint := bytes.Clone(x.disk.data)
		write(t, x.s, 0x44, 0, BlockSize)
		want(t, "what the guest sees", x.s, 0x44, 0, BlockSize)
		wantBytes(t, "the disk", x.disk.data, checkpoint, 0)
		if err := x.s.Sync(); err == nil {
			t.Errorf("%s: a flush is answered, of what is on no disk", device)
		}
	}
}
