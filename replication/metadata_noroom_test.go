package replication

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/internal/require"
)

// fullFor lets n writes of d find no room, after some that do. It returns what counts those that did not.
func fullFor(d *fakeDisk, after, n int64) *atomic.Int64 {
	var written, refused atomic.Int64
	d.failWrite = func(int64, int) error {
		if at := written.Add(1); at > after && at <= after+n {
			refused.Add(1)
			return syscall.ENOSPC
		}
		return nil
	}
	return &refused
}

// wantTry checks the error of something for which there was no room, on a copy that can still be used.
func wantTry(t *testing.T, why string, err error, c interface{ LocalErr() error }) {
	t.Helper()
	wantErr(t, why, err, syscall.ENOSPC)
	var final *MetadataError
	if errors.As(err, &final) || c.LocalErr() != nil {
		t.Fatalf("%s is final: %v, %v", why, err, c.LocalErr())
	}
}

func TestAGuestWritesOnceThereIsRoomForTheMarkOfARegion(t *testing.T) {
	const size = 8 * intentRegion
	local, ldev := newPoweredFake(bytes.Repeat([]byte{0x11}, size)), newMetaDevice(size)
	bus, failed := heard[event.DiskFailed]()
	p, err := NewPrimary(reopened(t, local, ldev), PrimaryConfig{Overwrite: true, Events: bus})
	must(t, err)
	disk := newFake(size, 0)
	s, err := NewSecondary(disk, SecondaryConfig{})
	must(t, err)
	protectFirst(t, p, s)
	write(t, p, 0x22, 0, SectorSize) // its region is marked from now on
	refused := fullFor(ldev, 0, 2)
	for _, do := range []func() error{
		func() error { _, err := p.WriteAt(make([]byte, SectorSize), intentRegion); return err },
		func() error { return p.WriteZeroes(2*intentRegion, SectorSize) },
	} {
		wantTry(t, "a write without room for its mark", do(), p)
		write(t, p, 0x33, SectorSize, SectorSize) // where there is a mark, none is needed
	}
	if n := refused.Load(); n != 2 {
		t.Fatalf("%d writes found no room", n)
	}
	want(t, "what was refused", p, 0x11, intentRegion, 2*intentRegion)
	checkpointBoth(t, p, s, 1)
	write(t, p, 0x44, intentRegion, SectorSize) // there is room again
	checkpointBoth(t, p, s, 2)
	wantBytes(t, "the copy", disk.data, local.data, 0)
	if len(*failed) > 0 {
		t.Errorf("said to have failed: %+v", *failed)
	}
	p = primaryOn(t, local.cutPower(rand.New(rand.NewPCG(1, 0))), ldev.cutPower(rand.New(rand.NewPCG(1, 0))))
	if !p.peer.dirty.Any(intentRegion, SectorSize) {
		t.Error("after a restart nothing says that the region was written")
	}
}

// keptBeside is a disk with its metadata.
type keptBeside struct {
	Disk
	m *Metadata
}

func (d keptBeside) Metadata() (*Metadata, error) { return d.m, nil }

// Marks that are not cleared cost time after a restart, and nothing else.
func TestACheckpointStandsThoughThereIsNoRoomToClearMarks(t *testing.T) {
	const size = (intentActive + 8) * intentRegion
	for refuse := range int64(3) {
		ldev := newMetaDevice(size)
		begun := func() *Primary {
			m, err := OpenMetadata(ldev)
			must(t, err)
			p, err := NewPrimary(keptBeside{nullDisk(size), m}, PrimaryConfig{})
			must(t, err)
			return p
		}
		p := begun()
		s, err := NewSecondary(nullDisk(size), SecondaryConfig{Blank: true})
		must(t, err)
		must(t, joinOver(p, s))
		p.peer.dirty.clearAll() // both are zero
		must(t, p.Mark(t.Context(), 0))
		must(t, s.Start(t.Context()))
		must(t, p.Loaded(t.Context(), 0))
		must(t, p.Start(t.Context()))
		for off := int64(0); off < size; off += intentRegion {
			must(t, p.peer.intent.ensure(off, 1))
		}
		refused := fullFor(ldev, refuse, 1) // the metadata is written first, and then a sector of the bitmap
		checkpointBoth(t, p, s, 1)
		if n := refused.Load(); (n == 1) != (refuse < 2) {
			t.Fatalf("after %d writes, %d found no room", refuse, n)
		}
		must(t, p.LocalErr())
		checkpointBoth(t, p, s, 2)
		if got := begun().Dirty(); got != 0 {
			t.Errorf("with room again, %d bytes are marked", got)
		}
	}
}

// What there was no room for may be on stable storage all the same. What comes next says which of the two counts,
// also if that is the content that memory has anyway.
func TestMetadataWithoutRoomIsWrittenByWhateverComesNext(t *testing.T) {
	for _, next := range []func(m *Metadata) error{
		func(m *Metadata) error { return m.Hold(3) }, // as it was
		func(m *Metadata) error { return m.update(func(*Identity, *peerBase) {}) },
	} {
		dev := newMetaDevice(intentRegion)
		m, err := OpenMetadata(dev)
		must(t, err)
		must(t, m.Hold(3))
		landed := false
		dev.failWrite = func(off int64, n int) error {
			if landed {
				return nil
			}
			landed = true
			f := m.facts
			f.held = 7
			copy(dev.data[off:], f.encode(m.seq+1))
			dev.settle()
			return syscall.ENOSPC
		}
		wantErr(t, "without room", m.Hold(7), syscall.ENOSPC)
		must(t, m.failure())
		if n := m.Held(); n != 3 {
			t.Errorf("%d is held", n)
		}
		must(t, next(m))
		again, err := OpenMetadata(dev)
		must(t, err)
		if n := again.Held(); n != 3 {
			t.Errorf("the next process finds %d held, which could not be recorded", n)
		}
	}
}

// A sync says no more of what was written before, whatever its reason.
func TestASyncOfMetadataWithoutRoomIsFinal(t *testing.T) {
	dev := newMetaDevice(intentRegion)
	m, err := OpenMetadata(dev)
	must(t, err)
	dev.failSync = func() error { return syscall.ENOSPC }
	wantErr(t, "a sync without room", m.Hold(1), syscall.ENOSPC)
	dev.failSync = nil
	var final *MetadataError
	if err := m.Hold(2); !errors.As(err, &final) || m.failure() == nil {
		t.Errorf("after it: %v, %v", err, m.failure())
	}
}

// Write k of the metadata of one side finds no room, and has it later: the pair comes into step, a failover included.
func TestReplicationGoesOnOnceThereIsRoomForMetadata(t *testing.T) {
	ctx := context.Background()
	for _, side := range []string{"primary", "secondary"} {
		for _, journal := range []bool{false, true} {
			for k := int64(0); ; k += require.Many(int64(3), 1, 1) {
				where := fmt.Sprintf("%s, journal %v, write %d", side, journal, k)
				local, ldev := newPoweredFake(bytes.Repeat([]byte{0x11}, testSize)), newMetaDevice(testSize)
				disk, dev := newPoweredFake(make([]byte, testSize)), newMetaDevice(testSize)
				p := primaryOn(t, local, ldev)
				var cfg SecondaryConfig
				if journal {
					j, err := OpenJournal(newPoweredFake(make([]byte, 4*testSize+2*minJournal)), newPoweredFake(make([]byte, 4*testSize+2*minJournal)))
					must(t, err)
					cfg.Journal = j
				}
				s, err := NewSecondary(reopened(t, disk, dev), cfg)
				must(t, err)
				refused := fullFor(map[string]*fakeDisk{"primary": ldev, "secondary": dev}[side], k, 1)
				try := func(why string, do func() error) {
					err := do()
					if err == nil {
						return
					}
					wantErr(t, where+": "+why, err, syscall.ENOSPC)
					must(t, errors.Join(p.LocalErr(), s.LocalErr()))
					must(t, do())
				}
				inStep := func() error {
					if err := reenters(p, s); err != nil {
						p.Stop(ctx, true)
						p.Detach()
						if st := s.State(); st == Running {
							s.Stop(ctx, false)
						}
						return err
					}
					return nil
				}
				for round := range byte(2) {
					try("in step", inStep)
					wantBytes(t, where+": the copy", disk.data, local.data, 0)
					try("a write", func() error { _, err := p.WriteAt(bytes.Repeat([]byte{0x22 + round}, SectorSize), 0); return err })
					try("stop of the primary", func() error {
						if err := p.Stop(ctx, true); err != nil {
							return err
						}
						_, err := p.WriteAt(bytes.Repeat([]byte{0x32 + round}, SectorSize), 0)
						return err
					})
					try("stop of the secondary", func() error { return s.Stop(ctx, false) })
				}
				try("in step", inStep)
				write(t, s, 0x44, BlockSize, BlockSize)
				try("the last stop of the primary", func() error { return p.Stop(ctx, true) })
				if err := s.Stop(ctx, true); err != nil {
					wantTry(t, where+": failover", err, s)
					must(t, s.Commit(ctx))
				}
				want(t, where+": the checkpoint", disk, 0x33, 0, SectorSize)
				want(t, where+": the guest's write", disk, 0x44, BlockSize, BlockSize)
				if id := s.Identity(); id.State != CopyClean || !id.Writes {
					t.Errorf("%s: after the failover: %v", where, id)
				}
				if refused.Load() == 0 {
					if k < 3 {
						t.Errorf("%s: only %d writes", where, k)
					}
					break
				}
			}
		}
	}
}

// The journal says first that a run has begun. Where the metadata has no room to say so too, what the primary then
// sends must not change the disk of that start, to which a recovery would take it.
func TestAStartThatTheMetadataHadNoRoomForIsMadeBeforeAnythingElse(t *testing.T) {
	ctx := context.Background()
	for k := int64(0); ; k++ {
		local, ldev := newPoweredFake(bytes.Repeat([]byte{0x11}, testSize)), newMetaDevice(testSize)
		disk, dev := newPoweredFake(make([]byte, testSize)), newMetaDevice(testSize)
		hidden, active := newPoweredFake(make([]byte, 4*testSize+2*minJournal)), newPoweredFake(make([]byte, 4*testSize+2*minJournal))
		p := primaryOn(t, local, ldev)
		j, err := OpenJournal(hidden, active)
		must(t, err)
		s, err := NewSecondary(reopened(t, disk, dev), SecondaryConfig{Journal: j})
		must(t, err)
		protectFirst(t, p, s)
		checkpoint := bytes.Clone(disk.data)
		must(t, p.Stop(ctx, true))
		must(t, s.Stop(ctx, false))
		write(t, p, 0x22, 0, SectorSize)
		must(t, joinOver(p, s))
		must(t, p.Synchronise(ctx, SyncConfig{}))
		must(t, p.Mark(ctx, 0))
		next := bytes.Clone(disk.data)
		refused := fullFor(dev, k, 1)
		err = s.Start(ctx)
		if refused.Load() == 0 {
			if must(t, err); k == 0 {
				t.Fatal("a start writes no metadata")
			}
			return
		}
		wantTry(t, "a start without room", err, s)
		must(t, p.Detach())
		write(t, p, 0x33, 0, 2*SectorSize)
		must(t, joinOver(p, s))
		must(t, p.Synchronise(ctx, SyncConfig{}))

		rng := rand.New(rand.NewPCG(uint64(k), 0)) // the power fails
		disk, dev, hidden, active = disk.cutPower(rng), dev.cutPower(rng), hidden.cutPower(rng), active.cutPower(rng)
		j, err = OpenJournal(hidden, active)
		must(t, err)
		_, _, err = j.Recover(ctx, reopened(t, disk, dev))
		must(t, err)
		if !bytes.Equal(disk.data, checkpoint) && !bytes.Equal(disk.data, next) {
			t.Errorf("write %d: after a recovery the disk is that of neither checkpoint", k)
		}
	}
}

// A start of several disks has a name in their journals, by which a recovery takes all of them to it. It keeps that
// name, however often the metadata of one has no room for it.
func TestAStartOfTwoDisksKeepsItsNameWhereMetadataHasNoRoom(t *testing.T) {
	ctx := context.Background()
	for full := range 2 {
		var primaries [2]*Primary
		var devices [2][4]*fakeDisk
		var members Group
		for i := range devices {
			d := [4]*fakeDisk{newPoweredFake(make([]byte, testSize)), newMetaDevice(testSize),
				newPoweredFake(make([]byte, 4*testSize+2*minJournal)), newPoweredFake(make([]byte, 4*testSize+2*minJournal))}
			j, err := OpenJournal(d[2], d[3])
			must(t, err)
			s, err := NewSecondary(reopened(t, d[0], d[1]), SecondaryConfig{Journal: j, Blank: true})
			must(t, err)
			devices[i], members = d, append(members, s)
			p := primaryOn(t, newPoweredFake(bytes.Repeat([]byte{0x11}, testSize)), newMetaDevice(testSize))
			primaries[i] = p
			protectFirst(t, p, s)
			checkpointBoth(t, p, s, 1)
			must(t, p.Stop(ctx, true))
			must(t, s.Stop(ctx, false))
			write(t, p, 0x22, 0, SectorSize)
			must(t, joinOver(p, s))
			must(t, p.Synchronise(ctx, SyncConfig{}))
			must(t, p.Mark(ctx, 0))
		}
		must(t, each(members, "start", func(p starter) error { return p.prepareStart(ctx, ID{1}) }))
		written := 0 // the second says that the first is not there
		devices[full][1].failWrite = func(int64, int) error {
			if written++; written == 1 || written == 3 {
				return syscall.ENOSPC
			}
			return nil
		}
		for i, m := range members {
			if err := m.Start(ctx); i == full {
				wantErr(t, "a start without room", err, syscall.ENOSPC)
				break
			}
		}
		must(t, primaries[full].Detach())
		wantErr(t, "another attempt", joinOver(primaries[full], members[full].(*Secondary)), syscall.ENOSPC)
		if written != 3 {
			t.Fatalf("the metadata was written %d times", written)
		}
		rng := rand.New(rand.NewPCG(1, 0)) // the power fails
		var list []Recovery
		for _, d := range devices {
			for k := range d {
				d[k] = d[k].cutPower(rng)
			}
			j, err := OpenJournal(d[2], d[3])
			must(t, err)
			list = append(list, Recovery{Journal: j, Disk: reopened(t, d[0], d[1])})
		}
		_, _, err := RecoverGroup(ctx, list)
		must(t, err)
		for i := range list {
			want(t, fmt.Sprintf("disk %d", i), list[i].Disk, 0x22, 0, SectorSize)
		}
	}
}
