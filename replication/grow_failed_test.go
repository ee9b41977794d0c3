package replication

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
)

// fault is one operation that fails, of all on the disks that share it.
type fault struct {
	mu   sync.Mutex
	left int // operations before it; negative: it is over, or none is planned
}

func (f *fault) use() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.left--
	if f.left == -1 {
		return errInjected
	}
	return nil
}

func (f *fault) plan(after int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.left = after
}

func (f *fault) met() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.left < 0
}

func (f *fault) of(d *fakeDisk) {
	f.left = -1
	d.failWrite = func(int64, int) error { return f.use() }
	d.failSync = f.use
}

// growingKept is a disk with metadata that can become longer, where that does not fail.
type growingKept struct {
	*keptDisk
	fault *fault
}

func (d growingKept) Grow(size int64) error {
	if err := d.fault.use(); err != nil {
		return err
	}
	return growingFake{d.fakeDisk}.Grow(size)
}

// Each operation of a growth fails, on one side or the other. Both go on with disks of the
// size that they had, or say that they cannot; nothing of the last checkpoint is lost; and
// after both have come up anew, disks of different sizes say so, and what to do, and
// that helps.
func TestAGrowthThatFailsOnEitherSideIsMadeUpFor(t *testing.T) {
	ctx := context.Background()
	const from, to = testSize, testSize + 3*BlockSize
	seen := map[string]int{}
	step := 1
	if testing.Short() {
		step = 3
	}
	for at, more := 0, true; more; at += step {
		why := fmt.Sprintf("operation %d fails", at)
		local, ldev := newPoweredFake(noise(1, from)), newMetaDevice(to)
		disk, dev := newPoweredFake(make([]byte, from)), newMetaDevice(to)
		hidden, active := newPoweredFake(make([]byte, 2*to)), newPoweredFake(make([]byte, 2*to))
		f := new(fault)
		for _, d := range []*fakeDisk{local, ldev, disk, dev, hidden, active} {
			f.of(d)
		}
		j, err := OpenJournal(hidden, active)
		must(t, err)
		p, err := NewPrimary(growingKept{reopened(t, local, ldev), f}, PrimaryConfig{})
		must(t, err)
		s, err := NewSecondary(growingKept{reopened(t, disk, dev), f}, SecondaryConfig{Journal: j, Blank: true})
		must(t, err)
		protectFirst(t, p, s)
		write(t, p, 0x22, 0, BlockSize)
		checkpointBoth(t, p, s, 1)
		checkpoint := bytes.Clone(local.data)

		f.plan(at)
		err = s.Grow(ctx, to)
		if err == nil {
			err = p.Grow(ctx, to, WithIdentity(DiskRemote(plainDisk{s.Export()}), NewIdentityDisk(s)))
		}
		more = f.met()
		f.plan(-1)
		if more != (err != nil) {
			t.Fatalf("%s: %v, want an error: %v", why, err, more)
		}
		if size := p.Size(); size != from && err != nil {
			t.Fatalf("%s: the guest's disk has %d bytes all the same", why, size)
		}

		// They go on, or say that they cannot.
		write(t, p, 0x33, BlockSize, BlockSize)
		err = p.Mark(ctx, 2)
		if err == nil {
			if err = s.Checkpoint(ctx, 2); err == nil {
				must(t, p.Loaded(ctx, 2))
				checkpoint = bytes.Clone(local.data)
			}
		}
		if err == nil {
			seen["goes on"]++
		} else {
			wantErr(t, why, err, errInjected)
			seen["says that it cannot"]++
		}

		// Both hosts come up anew.
		rng := rand.New(rand.NewPCG(uint64(at), 4))
		must(t, ldev.Sync()) // the guest's disk was flushed
		must(t, local.Sync())
		local, ldev, disk, dev = local.cutPower(rng), ldev.cutPower(rng), disk.cutPower(rng), dev.cutPower(rng)
		hidden, active = hidden.cutPower(rng), active.cutPower(rng)
		for _, d := range []*fakeDisk{local, ldev, disk, dev, hidden, active} {
			f.of(d)
		}
		j, err = OpenJournal(hidden, active)
		must(t, err)
		kept := growingKept{reopened(t, disk, dev), f}
		if _, _, err = j.Recover(ctx, kept); err != nil {
			t.Fatalf("%s: %v", why, err)
		}
		wantBytes(t, why+": the last checkpoint", disk.data[:from], checkpoint[:from], 0)
		s, err = NewSecondary(kept, SecondaryConfig{Journal: j})
		must(t, err)
		p, err = NewPrimary(growingKept{reopened(t, local, ldev), f}, PrimaryConfig{})
		must(t, err)
		if ours, theirs := local.Size(), disk.Size(); ours != theirs {
			err = joinOver(p, s)
			wantErr(t, why, err, ErrSize)
			grows := "Secondary.Grow"
			if ours < theirs {
				grows = "Primary.Grow"
				must(t, p.Grow(ctx, theirs, nil))
			} else {
				must(t, s.Grow(ctx, ours))
			}
			for _, says := range []string{fmt.Sprint(ours), fmt.Sprint(theirs), grows} {
				if !strings.Contains(err.Error(), says) {
					t.Errorf("%s: %v, want that it says %s", why, err, says)
				}
			}
			seen[grows]++
		}
		protectFirst(t, p, s)
		write(t, p, 0x44, p.Size()-BlockSize, BlockSize)
		checkpointBoth(t, p, s, 1)
		wantBytes(t, why+": the copy", disk.data, local.data, 0)
	}
	if seen["goes on"] == 0 || seen["says that it cannot"] == 0 || seen["Primary.Grow"] == 0 {
		t.Errorf("it came to this: %v", seen)
	}
}

// The power of both hosts fails after each operation of a growth. Both copies are those of the
// last checkpoint then, of one size or the other, and say which of them has to grow.
func TestWhereverThePowerFailsAGrowthIsMadeUpFor(t *testing.T) {
	ctx := context.Background()
	const from, to = testSize, testSize + 3*BlockSize
	seen := map[string]int{}
	for at, more := 0, true; more; at++ {
		why := fmt.Sprintf("the power fails after %d operations", at)
		local, ldev := newPoweredFake(noise(1, from)), newMetaDevice(to)
		disk, dev := newPoweredFake(make([]byte, from)), newMetaDevice(to)
		hidden, active := newPoweredFake(make([]byte, 2*to)), newPoweredFake(make([]byte, 2*to))
		j, err := OpenJournal(hidden, active)
		must(t, err)
		p, err := NewPrimary(growingKept{reopened(t, local, ldev), new(fault)}, PrimaryConfig{})
		must(t, err)
		s, err := NewSecondary(growingKept{reopened(t, disk, dev), new(fault)}, SecondaryConfig{Journal: j, Blank: true})
		must(t, err)
		p.local.Disk.(growingKept).fault.plan(-1)
		s.disk.Disk.(growingKept).fault.plan(-1)
		protectFirst(t, p, s)
		write(t, p, 0x22, 0, BlockSize)
		checkpointBoth(t, p, s, 1)
		checkpoint := bytes.Clone(local.data)
		write(t, p, 0x33, BlockSize, BlockSize) // the next checkpoint would have it
		must(t, p.Sync())
		lead := bytes.Clone(local.data)

		site := &power{left: at}
		for _, d := range []*fakeDisk{local, ldev, disk, dev, hidden, active} {
			d.power = site
		}
		err = s.Grow(ctx, to)
		if err == nil {
			err = p.Grow(ctx, to, WithIdentity(DiskRemote(plainDisk{s.Export()}), NewIdentityDisk(s)))
		}
		more = err != nil
		rng := rand.New(rand.NewPCG(uint64(at), 4))
		local, ldev, disk, dev = local.cutPower(rng), ldev.cutPower(rng), disk.cutPower(rng), dev.cutPower(rng)
		hidden, active = hidden.cutPower(rng), active.cutPower(rng)

		j, err = OpenJournal(hidden, active)
		must(t, err)
		kept := growingKept{reopened(t, disk, dev), new(fault)}
		if epoch, _, err := j.Recover(ctx, kept); err != nil || epoch != 1 {
			t.Fatalf("%s: recovered %d, %v", why, epoch, err)
		}
		wantBytes(t, why+": the last checkpoint", disk.data, append(checkpoint, make([]byte, to-from)...)[:disk.Size()], 0)
		wantBytes(t, why+": the guest's disk", local.data, append(lead, make([]byte, to-from)...)[:local.Size()], 0)
		s, err = NewSecondary(kept, SecondaryConfig{Journal: j})
		must(t, err)
		p, err = NewPrimary(growingKept{reopened(t, local, ldev), new(fault)}, PrimaryConfig{})
		must(t, err)
		p.local.Disk.(growingKept).fault.plan(-1)
		kept.fault.plan(-1)
		if ours, theirs := local.Size(), disk.Size(); ours != theirs {
			wantErr(t, why, joinOver(p, s), ErrSize)
			if ours > theirs {
				t.Fatalf("%s: the primary has grown before the secondary", why)
			}
			must(t, p.Grow(ctx, theirs, nil))
			seen["only the secondary's had grown"]++
		} else {
			seen[fmt.Sprint("both have ", ours)]++
		}
		must(t, joinOver(p, s))
		if p.Dirty() == 0 {
			t.Errorf("%s: nothing is to be copied, though the guest has written since the checkpoint", why)
		}
		protectFirst(t, p, s)
		wantBytes(t, why+": the copy", disk.data, local.data, 0)
	}
	if len(seen) != 3 {
		t.Errorf("it came to this: %v", seen)
	}
}

func TestDisksOfDifferentSizesSayWhichHasToGrow(t *testing.T) {
	p, err := NewPrimary(newFake(2*testSize, 0), PrimaryConfig{})
	must(t, err)
	for size, grows := range map[int]string{testSize: "Secondary.Grow", 3 * testSize: "Primary.Grow"} {
		err := p.Attach(DiskRemote(newFake(size, 0)))
		wantErr(t, "attach", err, ErrSize)
		for _, says := range []string{fmt.Sprint(2 * testSize), fmt.Sprint(size), grows} {
			if !strings.Contains(err.Error(), says) {
				t.Errorf("%v, want that it says %s", err, says)
			}
		}
	}
}
