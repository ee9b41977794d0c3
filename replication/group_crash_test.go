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

// crashGroup is the disks of one guest on a secondary host whose power fails.
type crashGroup struct {
	t    *testing.T
	seed uint64
	rng  *rand.Rand

	disks    [3][3]*fakeDisk // secondary disk, hidden and active device
	journals [3]*Journal
	members  [3]*Secondary
	group    Group

	images   map[uint64][3][]byte // the disks at an epoch
	epoch    uint64               // that every disk has
	promoted [3][]byte            // what the guest saw when a failover was ordered
	stopped  bool                 // and it has been answered
}

func (c *crashGroup) fail(format string, args ...any) {
	c.t.Fatalf("seed %d: %s", c.seed, fmt.Sprintf(format, args...))
}

func (c *crashGroup) powered(host *power) {
	for _, d := range c.disks {
		for _, f := range d {
			f.power = host
		}
	}
}

func (c *crashGroup) boot() error {
	c.group = nil
	for i, d := range c.disks {
		var err error
		if c.journals[i], err = OpenJournal(d[1], d[2]); err != nil {
			return err
		}
		if c.members[i], err = NewSecondary(d[0], SecondaryConfig{Journal: c.journals[i]}); err != nil {
			return err
		}
		c.group = append(c.group, c.members[i])
	}
	return nil
}

// work is a life of the group, until an error ends it.
func (c *crashGroup) work() error {
	ctx := context.Background()
	c.images, c.epoch = map[uint64][3][]byte{0: c.contents()}, 0
	if err := c.group.Start(ctx); err != nil {
		return err
	}
	primary := c.contents()
	for next := uint64(1); ; next++ {
		for range c.rng.IntN(6) {
			i, off, p := c.rng.IntN(3), c.rng.Int64N(15)*BlockSize/2, bytes.Repeat([]byte{byte(c.rng.Uint32())}, BlockSize)
			if c.rng.IntN(3) == 0 {
				if _, err := c.members[i].WriteAt(p, off); err != nil {
					return err
				}
				continue
			}
			if _, err := c.members[i].Export().WriteAt(p, off); err != nil {
				return err
			}
			copy(primary[i][off:], p)
		}
		if c.rng.IntN(8) == 0 {
			return c.end(c.rng.IntN(2) == 0)
		}
		var image [3][]byte
		for i := range primary {
			image[i] = bytes.Clone(primary[i])
		}
		c.images[next] = image
		if c.rng.IntN(2) == 0 { // as a session does, before it is too late
			if err := c.group.Prepare(ctx, next); err != nil {
				return err
			}
		}
		if err := c.group.Checkpoint(ctx, next); err != nil {
			return err
		}
		c.epoch = next
	}
}

func (c *crashGroup) end(failover bool) error {
	if failover {
		for i, m := range c.members {
			c.promoted[i] = make([]byte, m.Size())
			if _, err := m.ReadAt(c.promoted[i], 0); err != nil {
				return err
			}
		}
	}
	err := c.group.Stop(context.Background(), failover)
	c.stopped = failover && err == nil
	return err
}

func (c *crashGroup) contents() (all [3][]byte) {
	for i, d := range c.disks {
		all[i] = bytes.Clone(d[0].data)
	}
	return all
}

// recover restarts the host as often as its power fails.
func (c *crashGroup) recover() (epoch uint64, failedOver bool) {
	for {
		for i, d := range c.disks {
			for k, f := range d {
				c.disks[i][k] = f.cutPower(c.rng)
			}
		}
		host := &power{left: -1}
		if c.rng.IntN(2) == 0 {
			host.left = c.rng.IntN(30)
		}
		c.powered(host)
		var list []Recovery
		var err error
		for _, d := range c.disks {
			var j *Journal
			if j, err = OpenJournal(d[1], d[2]); err != nil {
				break
			}
			list = append(list, Recovery{Journal: j, Disk: d[0]})
		}
		if err == nil {
			var over bool
			epoch, over, err = RecoverGroup(context.Background(), list)
			failedOver = failedOver || over // a later attempt may find it finished
		}
		if err == nil {
			return epoch, failedOver
		}
		if !errors.Is(err, errPower) {
			c.fail("recovery: %v", err)
		}
	}
}

// Wherever the power fails, in a start, a checkpoint, a failover, a stop, or in
// the recovery from one of them, the disks of a guest end at one epoch.
func TestGroupRecoversToOneEpochWhereverThePowerFails(t *testing.T) {
	seeds := uint64(800)
	switch {
	case raceEnabled:
		seeds /= 6
	default:
		seeds /= require.Many[uint64](20, 4, 1)
	}
	var forward, back, finished int
	for seed := range seeds {
		c := &crashGroup{t: t, seed: seed, rng: rand.New(rand.NewPCG(seed, 7))}
		for i := range c.disks {
			content := make([]byte, 8*BlockSize+int64(i)*SectorSize)
			for k := range content {
				content[k] = byte(c.rng.Uint32())
			}
			c.disks[i] = [3]*fakeDisk{newPoweredFake(content), newPoweredFake(make([]byte, minJournal)), newPoweredFake(make([]byte, minJournal))}
		}
		before := uint64(0)
		if seed%3 == 0 { // the journals have had a life before
			before = 1 + seed%5
			if err := c.boot(); err != nil {
				c.fail("boot: %v", err)
			}
			if err := errors.Join(c.group.Start(t.Context()), c.group.Checkpoint(t.Context(), before), c.group.Stop(t.Context(), seed%2 == 0)); err != nil {
				c.fail("the life before: %v", err)
			}
		}
		if err := c.boot(); err != nil {
			c.fail("boot: %v", err)
		}
		host := &power{left: c.rng.IntN(250)}
		c.powered(host)
		if err := c.work(); err != nil && !errors.Is(err, errPower) && !errors.Is(err, ErrFull) {
			c.fail("%v", err)
		}
		ordered := c.promoted[0] != nil
		host.mu.Lock()
		host.out = true
		host.mu.Unlock()
		epoch, failedOver := c.recover()
		got := c.contents()
		same := func(want [3][]byte) bool {
			return bytes.Equal(got[0], want[0]) && bytes.Equal(got[1], want[1]) && bytes.Equal(got[2], want[2])
		}
		switch {
		case c.stopped:
			if !same(c.promoted) {
				c.fail("a failover that was answered is not whole")
			}
		case failedOver:
			finished++
			if !ordered || !same(c.promoted) {
				c.fail("the disks are not what the guest saw at the failover")
			}
		case ordered && same(c.promoted): // all of it was done already
		case epoch == before && c.epoch == 0 && same(c.images[0]): // no disk has begun
		case !same(c.images[epoch]):
			c.fail("the disks are not those of epoch %d, which recovery speaks of; all had %d", epoch, c.epoch)
		case epoch != c.epoch && epoch != c.epoch+1:
			c.fail("recovered to %d, all had %d", epoch, c.epoch)
		case epoch > c.epoch:
			forward++
		default:
			back++
		}
	}
	t.Logf("%d rolled back, %d forward, %d failovers finished", back, forward, finished)
	if forward == 0 || back == 0 || finished == 0 {
		t.Error("the seeds do not reach every case")
	}
}

func TestDisksThatHaveNoEpochInCommonAreLeftAlone(t *testing.T) {
	ctx := context.Background()
	var list []Recovery
	var disks []*fakeDisk
	for i := range 3 {
		hidden, active, disk := newFake(minJournal, 0), newFake(minJournal, 0), newFake(testSize, 0x11)
		j, err := OpenJournal(hidden, active)
		must(t, err)
		s, err := NewSecondary(disk, SecondaryConfig{Journal: j})
		must(t, err)
		must(t, s.Start(ctx))
		must(t, s.Checkpoint(ctx, uint64(4+i%2))) // alone, without the others
		write(t, s.Export(), 0x22, 0, BlockSize)
		j, err = OpenJournal(hidden, active)
		must(t, err)
		list, disks = append(list, Recovery{Journal: j, Disk: disk}), append(disks, disk)
	}
	_, _, err := RecoverGroup(ctx, list)
	wantErr(t, "disks at 4, 5 and 4", err, ErrEpoch)
	var first *MemberError
	if !errors.As(err, &first) || first.Index != 0 || first.Op != "recover" {
		t.Errorf("error %v does not say which disk", err)
	}
	for i, d := range disks {
		want(t, "nothing has been changed", d, 0x22, 0, BlockSize)
		if list[i].Journal.Clean() {
			t.Errorf("disk %d is called clean", i)
		}
	}
	epoch, _, err := RecoverGroup(ctx, list[1:2])
	must(t, err)
	if epoch != 5 {
		t.Errorf("alone, the second disk is at epoch %d, want 5", epoch)
	}
	want(t, "its last checkpoint", disks[1], 0x11, 0, BlockSize)
}
