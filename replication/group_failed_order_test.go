package replication

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/gocolo/lockstep/internal/require"
)

// A journal fails while a failover is ordered: the guest goes on, on this disk with what
// is in memory. If the host is lost then, no moment is common to its disks any more, and a
// recovery must say so in place of making up one. It may take them to the last checkpoint,
// or finish the failover, only if that is what all of them have become.
func TestDisksOfAFailoverThatOneJournalRefusedAreNotMixed(t *testing.T) {
	ctx := context.Background()
	refused, agreed := 0, 0
	seeds := require.Many[uint64](30, 100, 300)
	for seed := range seeds {
		rng := rand.New(rand.NewPCG(seed, 11))
		var disks [2][3]*fakeDisk // secondary disk, hidden and active device
		var members [2]*Secondary
		var group Group
		for i := range disks {
			disks[i] = [3]*fakeDisk{newPoweredFake(make([]byte, testSize)), newPoweredFake(make([]byte, 4*minJournal)), newPoweredFake(make([]byte, 4*minJournal))}
			j, err := OpenJournal(disks[i][1], disks[i][2])
			must(t, err)
			members[i], err = NewSecondary(disks[i][0], SecondaryConfig{Journal: j})
			must(t, err)
			group = append(group, members[i])
		}
		must(t, group.Start(ctx))
		var checkpoint, promoted [2][]byte
		for i, m := range members {
			write(t, m.Export(), 0x11, 0, BlockSize)
			write(t, m.Export(), 0x11, 3*BlockSize, BlockSize)
			checkpoint[i] = bytes.Clone(disks[i][0].data)
		}
		must(t, group.Checkpoint(ctx, 1))
		for i, m := range members {
			write(t, m, byte(0x30+i), 0, BlockSize)
			write(t, m, byte(0x40+i), 5*BlockSize, BlockSize) // of which there is no pre-image
			write(t, m.Export(), 0x22, 3*BlockSize, BlockSize)
			promoted[i] = make([]byte, testSize)
			must(t, readFull(m, promoted[i], 0))
		}
		bad := rng.IntN(2)
		device := disks[bad][1+rng.IntN(2)]
		device.failWrite = func(int64, int) error { return errInjected }
		host := &power{left: rng.IntN(60)}
		for _, d := range disks {
			for _, f := range d {
				f.power = host
			}
		}
		err := group.Stop(ctx, true)
		if err == nil {
			t.Fatalf("seed %d: a failover with a journal that cannot be written has succeeded", seed)
		}
		if rng.IntN(2) == 0 && !errors.Is(err, errPower) { // the guest goes on
			i := rng.IntN(2)
			members[i].WriteAt(bytes.Repeat([]byte{0x77}, BlockSize), 7*BlockSize)
			members[1-i].Sync()
		}
		var all []Recovery
		var got [2]*fakeDisk
		for i, d := range disks {
			for k, f := range d {
				d[k] = f.cutPower(rng)
			}
			j, err := OpenJournal(d[1], d[2])
			must(t, err)
			all = append(all, Recovery{Journal: j, Disk: d[0]})
			got[i] = d[0]
		}
		before := [2][]byte{bytes.Clone(got[0].data), bytes.Clone(got[1].data)}
		_, failedOver, err := RecoverGroup(ctx, all)
		want, what := checkpoint, "the last checkpoint"
		switch {
		case errors.Is(err, ErrEpoch):
			want, what = before, "what they were before it was refused"
			refused++
		case err != nil:
			t.Fatalf("seed %d: %v", seed, err)
		case failedOver:
			want, what = promoted, "those of the guest that went on"
			agreed++
		default:
			agreed++
		}
		for i := range got {
			if !bytes.Equal(got[i].data, want[i]) {
				t.Fatalf("seed %d: journal of disk %d failed: disk %d is not %s (%v)", seed, bad, i, what, err)
			}
		}
	}
	if refused == 0 || agreed == 0 {
		t.Errorf("%d were refused, %d not: want some of each", refused, agreed)
	}
}
