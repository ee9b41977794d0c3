package replication

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/gocolo/lockstep/internal/require"
)

const forwardSize = 8 * BlockSize

// forwardRig is two disks of a guest on a secondary host that has a checkpoint, and their primaries, which have
// gone on alone since and come back.
type forwardRig struct {
	t         *testing.T
	disks     [2][4]*fakeDisk // secondary disk, metadata, hidden and active device
	local     [2]*fakeDisk
	primaries [2]*Primary
	members   Group
}

func newForwardRig(t *testing.T) *forwardRig {
	x := &forwardRig{t: t}
	for i := range x.disks {
		x.local[i] = newFake(forwardSize, 0x11)
		x.disks[i] = [4]*fakeDisk{newPoweredFake(make([]byte, forwardSize)), newMetaDevice(forwardSize),
			newPoweredFake(make([]byte, 2*minJournal)), newPoweredFake(make([]byte, minJournal))}
		var err error
		x.primaries[i], err = NewPrimary(x.local[i], PrimaryConfig{Overwrite: true})
		must(t, err)
	}
	return x
}

// boot starts the next process of the secondary.
func (x *forwardRig) boot() (epoch uint64) {
	x.t.Helper()
	var list []Recovery
	for _, d := range x.disks {
		j, err := OpenJournal(d[2], d[3])
		must(x.t, err)
		list = append(list, Recovery{Journal: j, Disk: reopened(x.t, d[0], d[1])})
	}
	epoch, _, err := RecoverGroup(context.Background(), list)
	must(x.t, err)
	x.members = nil
	for _, r := range list {
		s, err := NewSecondary(r.Disk, SecondaryConfig{Journal: r.Journal})
		must(x.t, err)
		x.members = append(x.members, s)
	}
	return epoch
}

func (x *forwardRig) secondary(i int) *Secondary { return x.members[i].(*Secondary) }

// synchronise joins the primaries to the secondary's disks and copies what those lack.
func (x *forwardRig) synchronise(mark uint64) {
	x.t.Helper()
	for i, p := range x.primaries {
		must(x.t, joinOver(p, x.secondary(i)))
		must(x.t, p.Synchronise(context.Background(), SyncConfig{}))
		must(x.t, p.Mark(context.Background(), mark))
	}
}

// loaded tells the primaries that the secondary has made the checkpoint of epoch, the first since they joined.
func (x *forwardRig) loaded(epoch uint64) {
	x.t.Helper()
	for _, p := range x.primaries {
		must(x.t, p.Loaded(context.Background(), epoch))
		must(x.t, p.Start(context.Background()))
	}
}

// goOn ends what replication there is and has both guests' disks go on alone.
func (x *forwardRig) goOn(fill byte) {
	x.t.Helper()
	for _, p := range x.primaries {
		must(x.t, p.Stop(context.Background(), true))
		write(x.t, p, fill, 0, 4*BlockSize)
	}
}

// cut cuts the power of the secondary.
func (x *forwardRig) cut(rng *rand.Rand) {
	for i := range x.disks {
		for k, d := range x.disks[i] {
			x.disks[i][k] = d.cutPower(rng)
		}
	}
}

func (x *forwardRig) powered(host *power) {
	for _, d := range x.disks {
		for _, f := range d {
			f.power = host
		}
	}
}

// The first checkpoint after a primary has come back, which is that of another generation of its guest's disks, is
// recorded as such, wherever the power of the secondary fails, and whether a run begins with it or goes on.
// So it costs the next primary what it lacks, and is never taken for a checkpoint of the generation before.
func TestARecoveryForwardIsOfTheGenerationOfThePrimaryThatCameBack(t *testing.T) {
	ctx := context.Background()
	for kind := range 4 {
		again := kind%2 == 1    // the secondary's process is another one
		stranger := kind/2 == 1 // so is the guest: the copy is overwritten
		var forward, back int
		for at := range 24 {
			for seed := range require.Many[uint64](1, 9, 60) {
				x := newForwardRig(t)
				x.boot()
				x.synchronise(0)
				must(t, x.members.Start(ctx))
				x.loaded(0)
				for _, p := range x.primaries {
					must(t, p.Mark(ctx, 1))
				}
				must(t, x.members.Checkpoint(ctx, 1))
				for _, p := range x.primaries {
					must(t, p.Loaded(ctx, 1))
				}
				old := [2]Identity{x.secondary(0).lastIdentity(), x.secondary(1).lastIdentity()}
				before := bytes.Clone(x.local[0].data)
				x.goOn(0x22)
				next := uint64(2)
				if stranger {
					for i := range x.primaries {
						var err error
						x.primaries[i], err = NewPrimary(x.local[i], PrimaryConfig{Overwrite: true})
						must(t, err)
					}
				}
				if again {
					next = 0
					must(t, x.members.Stop(ctx, false))
					x.boot()
				}
				x.synchronise(next)
				after := bytes.Clone(x.local[0].data)
				host := &power{left: at}
				x.powered(host)
				var err error
				if again {
					err = x.members.Start(ctx)
				} else {
					err = x.members.Checkpoint(ctx, next)
				}
				done := err == nil
				if err != nil && !errors.Is(err, errPower) {
					t.Fatal(err)
				}
				host.mu.Lock()
				host.out = true
				host.mu.Unlock()
				rng := rand.New(rand.NewPCG(uint64(at), seed))
				x.cut(rng)
				if rng.IntN(2) == 0 { // the recovery is interrupted
					x.powered(&power{left: rng.IntN(30)})
					var list []Recovery
					for _, d := range x.disks {
						if j, err := OpenJournal(d[2], d[3]); err == nil {
							if m, err := OpenMetadata(d[1]); err == nil {
								list = append(list, Recovery{Journal: j, Disk: &keptDisk{d[0], m}})
							}
						}
					}
					if len(list) == len(x.disks) {
						_, _, err = RecoverGroup(ctx, list)
					}
					if err != nil && !errors.Is(err, errPower) {
						t.Fatal(err)
					}
					x.cut(rng)
				}
				epoch := x.boot()
				why := fmt.Sprintf("another process %v, another guest %v, power fails after %d operations, seed %d", again, stranger, at, seed)
				isNew := bytes.Equal(x.disks[0][0].data, after)
				if isNew {
					forward++
				} else {
					back++
				}
				if done && !isNew {
					t.Errorf("%s: a checkpoint that was made is gone", why)
				}
				for i, d := range x.disks {
					id := x.secondary(i).Identity()
					want, wantEpoch, content := old[i], uint64(1), before
					if isNew {
						want, wantEpoch, content = x.primaries[i].Identity(), next, after
					}
					wantBytes(t, why, d[0].data, content, 0)
					if id.Disk != want.Disk || id.Generation != want.Generation || id.Epoch != wantEpoch || id.State != CopyClean || epoch != wantEpoch {
						t.Fatalf("%s: recovered to %d, disk %d is %v, want disk %v, generation %v, epoch %d", why, epoch, i, id, want.Disk, want.Generation, wantEpoch)
					}
					_, lacks, err := x.primaries[i].describe(id, true)
					must(t, err)
					if lacks == lacksAll && (isNew || !stranger) {
						t.Fatalf("%s: disk %d is compared as a whole", why, i)
					}
				}
			}
		}
		if forward == 0 || back == 0 {
			t.Errorf("another process %v, another guest %v: %d forward, %d back", again, stranger, forward, back)
		}
	}
}
