package replication

import (
	"bytes"
	"context"
	"math/rand/v2"
	"testing"
)

// plainRig is a secondary on a disk that has no place for metadata, with a
// journal on two devices, of which a crash leaves what is stable.
type plainRig struct {
	t                    *testing.T
	disk, hidden, active *fakeDisk
}

func newPlainRig(t *testing.T, content []byte) *plainRig {
	return &plainRig{t, newPoweredFake(bytes.Clone(content)), newPoweredFake(make([]byte, 2*testSize)), newPoweredFake(make([]byte, 2*testSize))}
}

func noise(seed uint64, n int) []byte {
	p := make([]byte, n)
	rng := rand.NewChaCha8([32]byte{byte(seed)})
	rng.Read(p)
	return p
}

func (x *plainRig) open() *Journal {
	x.t.Helper()
	j, err := OpenJournal(x.hidden, x.active)
	must(x.t, err)
	return j
}

// run begins replication, with a checkpoint of what is written to the export
// before it, and more written after.
func (x *plainRig) run() *Secondary {
	x.t.Helper()
	ctx := context.Background()
	s, err := NewSecondary(x.disk, SecondaryConfig{Journal: x.open(), DeferCommit: true})
	must(x.t, err)
	must(x.t, s.Start(ctx))
	write(x.t, s.Export(), 0x22, 0, BlockSize)
	must(x.t, WriteZeroes(s.Export(), 5*BlockSize, BlockSize))
	must(x.t, s.Checkpoint(ctx, 1))
	write(x.t, s.Export(), 0x33, 0, half/2)
	return s
}

// refused wants a disk to be refused by the journal, and left as it is.
func (x *plainRig) refused(why string, content []byte) {
	x.t.Helper()
	other := newFake(len(content), 0)
	copy(other.data, content)
	j := x.open()
	_, _, err := j.Recover(context.Background(), other)
	wantErr(x.t, why, err, ErrIdentity)
	_, _, err = RecoverGroup(context.Background(), []Recovery{{Journal: j, Disk: other}})
	wantErr(x.t, why, err, ErrIdentity)
	wantBytes(x.t, why, other.data, content, 0)
	if j.Clean() {
		x.t.Errorf("%s: the journal has been voided", why)
	}
}

func TestJournalRefusesADiskThatIsNotItsOwnThoughNothingButItsContentTells(t *testing.T) {
	content := noise(1, testSize)
	for _, c := range []struct {
		what string
		does func(*Secondary) error
	}{
		{"a checkpoint", func(*Secondary) error { return nil }},
		{"a checkpoint that is prepared", func(s *Secondary) error { return s.Prepare(context.Background(), 2) }},
		{"a failover that is ordered", func(s *Secondary) error { return s.Stop(context.Background(), true) }},
	} {
		t.Run(c.what, func(t *testing.T) {
			x := newPlainRig(t, content)
			must(t, c.does(x.run()))
			x.refused("another disk", noise(2, testSize))
			x.refused("a blank disk", make([]byte, testSize))
			_, _, err := x.open().Recover(context.Background(), x.disk)
			must(t, err)
			want(t, "its own", x.disk, 0x22, 0, BlockSize)
			wantBytes(t, "its own", x.disk.data[BlockSize:5*BlockSize], content[BlockSize:5*BlockSize], BlockSize)
		})
	}
}

func TestJournalRefusesItsDiskOnceSomebodyElseHasWrittenToIt(t *testing.T) {
	x := newPlainRig(t, noise(1, testSize))
	x.run()
	changed := bytes.Clone(x.disk.data)
	changed[testSize-1]++ // in a block of which the journal has no pre-image
	x.refused("after a crash", changed)
}

// A journal recognises its disk by the blocks as they were before the writes that its log
// undoes, so it does not matter how many of those writes, or of a recovery, are on the disk.
func TestJournalKnowsItsDiskHoweverMuchOfItIsStable(t *testing.T) {
	ctx := context.Background()
	content := noise(1, testSize)
	seeds := uint64(20)
	if testing.Short() {
		seeds = 2
	}
	for seed := range seeds {
		rng := rand.New(rand.NewPCG(seed, 1))
		x := newPlainRig(t, content)
		s := x.run()
		checkpoint := bytes.Clone(content)
		copy(checkpoint, bytes.Repeat([]byte{0x22}, BlockSize))
		clear(checkpoint[5*BlockSize : 6*BlockSize])
		write(t, s.Export(), 0x44, half, half/2)
		for out := true; out; {
			x.disk, x.hidden, x.active = x.disk.cutPower(rng), x.hidden.cutPower(rng), x.active.cutPower(rng)
			x.disk.power = &power{left: rng.IntN(400)}
			_, _, err := x.open().Recover(ctx, x.disk)
			if out = x.disk.power.out; !out {
				must(t, err)
			}
		}
		wantBytes(t, "the checkpoint", x.disk.data, checkpoint, 0)
	}
}

func TestJournalIsNotTakenToSayWhatAnotherDiskIs(t *testing.T) {
	ctx := context.Background()
	x := newPlainRig(t, noise(1, testSize))
	of := Identity{Disk: newID(), Copy: newID(), Generation: Generation{}.next()}
	s, err := NewSecondary(x.disk, SecondaryConfig{Journal: x.open(), Overwrite: true})
	must(t, err)
	must(t, s.Adopt(of))
	must(t, s.Start(ctx))
	must(t, s.Stop(ctx, false))

	again, err := NewSecondary(x.disk, SecondaryConfig{Journal: x.open()})
	must(t, err)
	if id := again.Identity(); id.Disk != of.Disk {
		t.Errorf("its own disk is %v", id)
	}
	other, err := NewSecondary(newFake(testSize, 0x77), SecondaryConfig{Journal: x.open()})
	must(t, err)
	if id := other.Identity(); id.Disk != (ID{}) {
		t.Errorf("another disk is %v", id)
	}
}

func TestRecoverGroupChangesNoDiskIfOneIsAnother(t *testing.T) {
	a, b := newPlainRig(t, noise(1, testSize)), newPlainRig(t, noise(2, testSize))
	a.run()
	b.run()
	before := bytes.Clone(a.disk.data)
	_, _, err := RecoverGroup(context.Background(), []Recovery{{Journal: a.open(), Disk: a.disk}, {Journal: b.open(), Disk: newFake(testSize, 0)}})
	wantErr(t, "the second", err, ErrIdentity)
	wantBytes(t, "the first", a.disk.data, before, 0)
}

// A guest soon rewrites all of a small disk, behind a failover that a crash interrupts: it
// is the journal's disk all the same, and without it the failover would be lost.
func TestASmallDiskThatItsGuestHasRewrittenIsStillTheJournals(t *testing.T) {
	ctx := context.Background()
	for _, size := range []int{16 * BlockSize, smallDisk - BlockSize} {
		devices := [3]*fakeDisk{newPoweredFake(bytes.Repeat([]byte{0xee}, size)), newPoweredFake(make([]byte, minJournal)), newPoweredFake(make([]byte, minJournal))}
		j, err := OpenJournal(devices[1], devices[2])
		must(t, err)
		s, err := NewSecondary(devices[0], SecondaryConfig{Journal: j, DeferCommit: true})
		must(t, err)
		must(t, s.Start(ctx))
		write(t, s, 1, 0, BlockSize) // or there would be nothing to be copied
		must(t, s.Stop(ctx, true))
		for b := int64(0); b < int64(size); b += BlockSize {
			write(t, s, byte(1+b/BlockSize), b, BlockSize)
		}
		must(t, devices[0].Sync())
		rng := rand.New(rand.NewPCG(1, 1))
		for i, d := range devices {
			devices[i] = d.cutPower(rng)
		}
		j, err = OpenJournal(devices[1], devices[2])
		must(t, err)
		_, failedOver, err := j.Recover(ctx, devices[0])
		must(t, err)
		if !failedOver {
			t.Error("the failover is lost")
		}
	}
}
