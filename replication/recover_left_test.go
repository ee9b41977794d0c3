package replication

import (
	"bytes"
	"context"
	"math/rand/v2"
	"testing"
)

// A disk that a guest has changed since without its journal, or that is being overwritten, is at no checkpoint. The
// start that its journal names is an old one, and the disks that were started since are recovered beside it.
func TestAJournalThatSaysNothingOfItsDiskAnyMoreKeepsNoOtherDiskFromItsCheckpoint(t *testing.T) {
	ctx := context.Background()
	for _, overwritten := range []bool{false, true} {
		x := newForwardRig(t)
		x.boot()
		x.synchronise(0)
		must(t, x.members.Start(ctx))
		x.loaded(0)
		must(t, x.members.Stop(ctx, false))
		left := x.disks[1]
		if overwritten {
			must(t, reopened(t, left[0], left[1]).meta.update(func(i *Identity, _ *peerBase) { i.State = CopyInconsistent }))
		} else {
			guest, err := NewPrimary(reopened(t, left[0], left[1]), PrimaryConfig{})
			must(t, err)
			write(t, guest, 0x55, 0, BlockSize)
		}

		other := newForwardRig(t)
		must(t, x.primaries[0].Stop(ctx, true))
		x.disks[1], x.primaries[1] = other.disks[1], other.primaries[1]
		x.boot()
		x.synchronise(0)
		must(t, x.members.Start(ctx))
		must(t, x.members.Checkpoint(ctx, 1))
		checkpoint := bytes.Clone(x.disks[0][0].data)
		write(t, x.secondary(0).Export(), 0x44, 0, BlockSize)
		x.cut(rand.New(rand.NewPCG(1, 4)))

		var list []Recovery
		for _, d := range [][4]*fakeDisk{left, x.disks[0], x.disks[1]} {
			j, err := OpenJournal(d[2], d[3])
			must(t, err)
			list = append(list, Recovery{Journal: j, Disk: reopened(t, d[0], d[1])})
		}
		epoch, failedOver, err := RecoverGroup(ctx, list)
		must(t, err)
		if epoch != 1 || failedOver {
			t.Errorf("overwritten %v: recovered to %d, failed over %v, want 1", overwritten, epoch, failedOver)
		}
		wantBytes(t, "the disk of the later start", x.disks[0][0].data, checkpoint, 0)
	}
}
