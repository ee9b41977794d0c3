package replication

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// lineage returns the identities of a copy through generations: those of begin.
func lineage(n int) (all []Identity) {
	i := Identity{Disk: newID(), Copy: newID()}
	for range n {
		i.begin()
		all = append(all, i)
	}
	return all
}

// Somebody who looks for a second guest that has run would look in vain.
func TestACopyThatIsTooOldIsNotSaidToHaveGoneOn(t *testing.T) {
	l := lineage(12)
	alone := l[10]
	alone.Generation = alone.Generation.next()
	copy(alone.History[:], append([]Generation{l[10].Generation}, l[10].History[:]...))
	for _, c := range []struct {
		name string
		a, b Identity
		want string
	}{
		{"both went on", l[11], alone, "both sides have gone on alone"},
		{"too old", l[11], l[11-historyLength-1], "one is older than the 6 generations that the other remembers"},
	} {
		for range 2 {
			_, err := Newest(c.a, c.b)
			wantErr(t, c.name, err, ErrDiverged)
			_, primary := new(peer).lacks(c.a, c.b, true, false, false)
			wantErr(t, c.name, primary, ErrDiverged)
			for _, err := range []error{err, primary} {
				if !strings.Contains(err.Error(), ": "+c.want) {
					t.Errorf("%s: %v", c.name, err)
				}
			}
			c.a, c.b = c.b, c.a
		}
	}
}

func TestNewestIsTheCopyWhoseGuestWentOn(t *testing.T) {
	l := lineage(10)
	with := func(i Identity, change func(*Identity)) Identity { change(&i); return i }
	writes := func(i *Identity) { i.Writes = true }
	a, b := l[1], l[1]
	a.begin()
	b.begin()
	for _, c := range []struct {
		name string
		a, b Identity
		want int
		err  error
	}{
		{"a primary and its secondary's checkpoint", with(l[2], writes), with(l[2], func(i *Identity) { i.Epoch = 7 }), -1, nil},
		{"a primary that was lost and a secondary that took over", with(l[2], writes), with(l[3], writes), 1, nil},
		{"one that went on alone, and its secondary", with(l[3], writes), l[2], -1, nil},
		{"both took over from the same", a, b, 0, ErrDiverged},
		{"too long ago to remember", l[0], l[9], 0, ErrDiverged},
		{"two checkpoints", with(l[2], func(i *Identity) { i.Epoch = 7 }), with(l[2], func(i *Identity) { i.Epoch = 8 }), 1, nil},
		{"the same", l[2], l[2], 0, nil},
		{"one is inconsistent", with(l[4], func(i *Identity) { i.State = CopyInconsistent }), l[2], 1, nil},
		{"one is known to be outdated", l[2], with(l[2], func(i *Identity) { i.State = CopyOutdated; i.Writes = true }), -1, nil},
		{"both are inconsistent", with(l[2], func(i *Identity) { i.State = CopyInconsistent }), with(l[2], func(i *Identity) { i.State = CopyInconsistent }), 0, ErrInconsistent},
		{"two disks", l[2], lineage(3)[2], 0, ErrIdentity},
		{"a blank one", l[2], Identity{Copy: newID()}, 0, ErrIdentity},
	} {
		got, err := Newest(c.a, c.b)
		if got != c.want || !errors.Is(err, c.err) {
			t.Errorf("%s: %d, %v, want %d, %v", c.name, got, err, c.want, c.err)
		}
		if back, _ := Newest(c.b, c.a); back != -got {
			t.Errorf("%s: %d the other way round, want %d", c.name, back, -got)
		}
	}
}

func TestWhatASecondaryLacks(t *testing.T) {
	l := lineage(5)
	ours := l[3]
	ours.Writes = true
	mine, process := newID(), newID()
	theirs := func(i Identity, epoch uint64, st CopyState) Identity {
		i.Copy, i.Epoch, i.State, i.instance = mine, epoch, st, process
		return i
	}
	at := func(i Identity, epoch uint64) peerBase { return peerBase{mine, i.Generation, epoch} }
	forked := l[2]
	forked.begin()
	for _, c := range []struct {
		name      string
		base, run peerBase
		theirs    Identity
		promised  bool
		want      int
		err       error
	}{
		{name: "a blank copy", theirs: Identity{Copy: mine}, err: ErrIdentity},
		{name: "a blank copy that is promised to be the same", theirs: Identity{Copy: mine}, promised: true, want: lacksNothing},
		{name: "another guest's, promised or not", theirs: lineage(1)[0], promised: true, err: ErrIdentity},
		{name: "the connection was lost", base: at(l[3], 0), run: at(l[3], 0), theirs: theirs(l[3], 4, CopyInconsistent), want: lacksDirty},
		{name: "the process was lost, and the journal rolled back", base: at(l[2], 4), run: at(l[3], 0), theirs: theirs(l[2], 5, CopyClean), want: lacksLost},
		{name: "an older checkpoint than it had", base: at(l[2], 4), theirs: theirs(l[2], 3, CopyClean), want: lacksAll},
		{name: "a generation before", base: at(l[2], 4), theirs: theirs(l[1], 9, CopyClean), want: lacksAll},
		{name: "a synchronisation that was interrupted", base: at(l[1], 4), theirs: theirs(l[3], 0, CopyInconsistent), want: lacksLost},
		{name: "another copy", base: peerBase{newID(), l[2].Generation, 4}, theirs: theirs(l[2], 4, CopyClean), want: lacksAll},
		{name: "one that a guest wrote", base: at(l[2], 4), theirs: func() Identity { i := theirs(l[2], 4, CopyClean); i.Writes = true; return i }(), want: lacksAll},
		{name: "a newer one", base: at(l[2], 4), theirs: theirs(l[4], 0, CopyClean), err: ErrOutdated},
		{name: "one that went on by itself", base: at(l[2], 4), theirs: theirs(forked, 0, CopyClean), err: ErrDiverged},
	} {
		r := newPeer(testSize)
		r.base, r.run, r.instance = c.base, c.run, process
		if c.name == "the process was lost, and the journal rolled back" {
			r.instance = newID()
		}
		got, err := r.lacks(ours, c.theirs, true, c.promised, false)
		if !errors.Is(err, c.err) || err == nil && got != c.want {
			t.Errorf("%s: %d, %v, want %d, %v", c.name, got, err, c.want, c.err)
		}
		if c.err == nil {
			continue
		}
		if got, err := r.lacks(ours, c.theirs, true, c.promised, true); err != nil || got != lacksAll {
			t.Errorf("%s, and it may be overwritten: %d, %v", c.name, got, err)
		}
		c.theirs.Overwrite = true // says the other side
		if got, err := r.lacks(ours, c.theirs, true, c.promised, false); err != nil || got != lacksAll {
			t.Errorf("%s, and the secondary says that it may be overwritten: %d, %v", c.name, got, err)
		}
	}
}

func TestIdentityIsCarriedInASector(t *testing.T) {
	i := lineage(9)[8]
	i.Epoch, i.State, i.Writes, i.instance = 1<<40, CopyOutdated, true, newID()
	i.room, i.zeroes = 1<<30, 512
	got, err := decodeIdentity(encodeIdentity(i))
	must(t, err)
	if d := cmp.Diff(i, got, cmp.AllowUnexported(Identity{})); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	p := encodeIdentity(i)
	for bit := range len(p) * 8 {
		q := bytes.Clone(p)
		q[bit/8] ^= 1 << (bit % 8)
		if _, err := decodeIdentity(q); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("bit %d is wrong, and nobody says so: %v", bit, err)
		}
	}
	if i, err := decodeIdentity(make([]byte, SectorSize)); err != nil || i != (Identity{}) {
		t.Errorf("a blank sector: %v, %v", i, err)
	}
}

// joinOver attaches p to s by way of the sector that carries identities.
func joinOver(p *Primary, s *Secondary) error {
	return p.Attach(WithIdentity(DiskRemote(plainDisk{s.Export()}), NewIdentityDisk(s)))
}

// plainDisk hides what a disk can do besides.
type plainDisk struct{ Disk }

func TestSecondaryThatComesBackGetsOnlyWhatItMissed(t *testing.T) {
	ctx := context.Background()
	local := newFake(testSize, 0x11)
	p, err := NewPrimary(local, PrimaryConfig{})
	must(t, err)
	disk, dev := newPoweredFake(make([]byte, testSize)), newMetaDevice(testSize)
	s, err := NewSecondary(reopened(t, disk, dev), SecondaryConfig{})
	must(t, err)
	wantErr(t, "a blank copy", joinOver(p, s), ErrIdentity)
	p.cfg.Overwrite = true
	must(t, joinOver(p, s))
	p.cfg.Overwrite = false
	run := func() {
		t.Helper()
		must(t, p.Synchronise(ctx, SyncConfig{}))
		must(t, p.Mark(ctx, 0))
		must(t, s.Start(ctx))
		must(t, p.Loaded(ctx, 0))
		must(t, p.Start(ctx))
	}
	run()
	write(t, p, 0x22, 0, SectorSize)
	must(t, p.Stop(ctx, true))
	write(t, p, 0x33, 2*ChunkSize, SectorSize)

	// The secondary's process ends, and another has its disk.
	s, err = NewSecondary(reopened(t, disk, dev), SecondaryConfig{})
	must(t, err)
	if i := s.Identity(); i.State != CopyInconsistent || i.Disk != p.Identity().Disk {
		t.Errorf("without a journal the copy is %v", i)
	}
	must(t, joinOver(p, s))
	if got := p.Dirty(); got != 2*ChunkSize {
		t.Errorf("%d bytes are to be copied, want two chunks", got)
	}
	run()
	wantBytes(t, "the copy", disk.data, local.data, 0)
	must(t, p.Stop(ctx, true))
	must(t, s.Stop(ctx, false))
	if i := s.Identity(); i.State != CopyClean || i.Generation != p.Identity().History[0] {
		t.Errorf("after a stop the copy is %v, the primary's %v", i, p.Identity())
	}

	// It was the secondary of another guest meanwhile.
	other, err := NewPrimary(newFake(testSize, 0x99), PrimaryConfig{})
	must(t, err)
	wantErr(t, "another guest's primary", joinOver(other, s), ErrIdentity)
	other.cfg.Overwrite = true
	must(t, joinOver(other, s))
	wantErr(t, "the first, which does not permit it", joinOver(p, s), ErrIdentity)
}

// What a synchronisation has copied, and nobody has flushed, is lost with the secondary's
// host: the next synchronisation copies it again.
func TestWhatWasCopiedToAHostThatWasLostIsCopiedAgain(t *testing.T) {
	ctx := context.Background()
	local := newFake(testSize, 0x11)
	p, err := NewPrimary(local, PrimaryConfig{Overwrite: true})
	must(t, err)
	disk, dev := newPoweredFake(make([]byte, testSize)), newMetaDevice(testSize)
	s, err := NewSecondary(reopened(t, disk, dev), SecondaryConfig{})
	must(t, err)
	must(t, joinOver(p, s))
	must(t, p.Synchronise(ctx, SyncConfig{}))
	must(t, p.Mark(ctx, 0))
	must(t, s.Start(ctx))
	must(t, p.Loaded(ctx, 0))
	must(t, p.Start(ctx))
	must(t, p.Stop(ctx, true))
	write(t, p, 0x33, 2*ChunkSize, SectorSize)

	write(t, p, 0x44, 5*ChunkSize, SectorSize)

	join := func() error {
		t.Helper()
		s, err = NewSecondary(reopened(t, disk, dev), SecondaryConfig{})
		must(t, err)
		must(t, joinOver(p, s))
		return p.Synchronise(ctx, SyncConfig{})
	}
	disk.failWrite = func(off int64, _ int) error {
		if off == 5*ChunkSize {
			return errInjected // the host is lost
		}
		return nil
	}
	wantErr(t, "a synchronisation whose secondary is lost", join(), ErrBroken)
	want(t, "what it has copied", disk, 0x33, 2*ChunkSize, SectorSize)
	disk = disk.stableCopy()
	want(t, "what is left of it", disk, 0x11, 2*ChunkSize, SectorSize)
	must(t, join())
	wantBytes(t, "the copy", disk.data, local.data, 0)
}

// A secondary that refuses costs a primary nothing that it has.
func TestAnAttachThatIsRefusedLeavesTheRemoteOfBefore(t *testing.T) {
	ctx := context.Background()
	p, err := NewPrimary(reopened(t, newFake(testSize, 0x11), newMetaDevice(testSize)), PrimaryConfig{Overwrite: true})
	must(t, err)
	before, err := NewSecondary(reopened(t, newFake(testSize, 0), newMetaDevice(testSize)), SecondaryConfig{})
	must(t, err)
	must(t, joinOver(p, before))
	must(t, p.Synchronise(ctx, SyncConfig{}))
	foreign := reopened(t, newFake(testSize, 0x77), newMetaDevice(testSize))
	must(t, foreign.meta.update(func(i *Identity, _ *peerBase) { i.Disk = newID() }))
	other, err := NewSecondary(foreign, SecondaryConfig{})
	must(t, err)
	p.cfg.Overwrite = false
	wantErr(t, "another guest's disk", joinOver(p, other), ErrIdentity)
	write(t, p, 0x22, 0, SectorSize)
	must(t, before.Start(ctx))
	must(t, p.Start(ctx))
	must(t, p.Mark(ctx, 1))
	want(t, "the secondary of before", before.Export(), 0x22, 0, SectorSize)
	want(t, "the disk that refused", other.Export(), 0x77, 0, SectorSize)
}

func TestSideThatTookOverIsNotOverwritten(t *testing.T) {
	ctx := context.Background()
	local, ldev := newFake(testSize, 0x11), newMetaDevice(testSize)
	p, err := NewPrimary(reopened(t, local, ldev), PrimaryConfig{InSync: true})
	must(t, err)
	disk, dev := newPoweredFake(bytes.Repeat([]byte{0x11}, testSize)), newMetaDevice(testSize)
	s, err := NewSecondary(reopened(t, disk, dev), SecondaryConfig{})
	must(t, err)
	must(t, joinOver(p, s))
	must(t, s.Start(ctx))
	must(t, p.Start(ctx))
	must(t, s.Stop(ctx, true)) // the primary's host is lost
	write(t, s, 0x77, 0, SectorSize)
	wantErr(t, "to be a copy again", s.Adopt(p.Identity()), ErrGated)

	// Both hosts come up, and the wrong one is to be the primary.
	p, err = NewPrimary(reopened(t, local, ldev), PrimaryConfig{})
	must(t, err)
	s, err = NewSecondary(reopened(t, disk, dev), SecondaryConfig{})
	must(t, err)
	if n, err := Newest(p.Identity(), s.Identity()); n != 1 || err != nil {
		t.Errorf("the newest is %d, %v, want the side that took over", n, err)
	}
	wantErr(t, "attach", joinOver(p, s), ErrOutdated)
	if st := p.Identity().State; st != CopyOutdated {
		t.Errorf("the old primary's copy is %v, want outdated", st)
	}
	_, err = NewPrimary(reopened(t, local, ldev), PrimaryConfig{})
	wantErr(t, "a guest on an outdated copy", err, ErrOutdated)

	// The right one is.
	p, err = NewPrimary(reopened(t, disk, dev), PrimaryConfig{})
	must(t, err)
	s, err = NewSecondary(reopened(t, local, ldev), SecondaryConfig{})
	must(t, err)
	must(t, joinOver(p, s))
	must(t, p.Synchronise(ctx, SyncConfig{Sums: NewSums(s.Export())}))
	wantBytes(t, "the old primary's disk", local.data, disk.data, 0)
	if _, err := NewPrimary(reopened(t, local, ldev), PrimaryConfig{}); !errors.Is(err, ErrInconsistent) {
		t.Errorf("a guest on a copy that is being written: %v", err)
	}
}

func TestWhatAPeerSaysOfItselfIsChecked(t *testing.T) {
	s, err := NewSecondary(newFake(testSize, 0), SecondaryConfig{})
	must(t, err)
	d := NewIdentityDisk(s)
	for why, p := range map[string][]byte{
		"a part of it": make([]byte, 100), "no identity": make([]byte, SectorSize), "garbage": bytes.Repeat([]byte{7}, BlockSize),
	} {
		if _, err := d.WriteAt(p, 0); err == nil {
			t.Errorf("%s is taken", why)
		}
	}
	_, err = d.WriteAt(encodeIdentity(lineage(1)[0]), SectorSize)
	wantErr(t, "elsewhere", err, ErrRange)
	if i := s.Identity(); i.Disk != (ID{}) {
		t.Errorf("the copy is %v", i)
	}
	p, err := NewPrimary(newFake(testSize, 0), PrimaryConfig{Overwrite: true})
	must(t, err)
	garbage := newFake(BlockSize, 7)
	wantErr(t, "garbage", p.Attach(WithIdentity(DiskRemote(newFake(testSize, 0)), garbage)), ErrCorrupt)
}

func TestABlankDiskIsBlankUntilAPrimaryComes(t *testing.T) {
	ctx := context.Background()
	for name, journal := range map[string]func() *Journal{"in memory": func() *Journal { return nil }, "with a journal": func() *Journal {
		j, err := OpenJournal(newFake(minJournal, 0), newFake(minJournal, 0))
		must(t, err)
		return j
	}} {
		s, err := NewSecondary(newFake(testSize, 0), SecondaryConfig{Blank: true, Journal: journal()})
		must(t, err)
		first, err := NewPrimary(newFake(testSize, 0x11), PrimaryConfig{})
		must(t, err)
		protectFirst(t, first, s)
		must(t, first.Stop(ctx, false))
		other, err := NewPrimary(newFake(testSize, 0x22), PrimaryConfig{})
		must(t, err)
		wantErr(t, name+": another guest's", joinOver(other, s), ErrIdentity)
		must(t, s.Stop(ctx, false))
		wantErr(t, name+": another guest's, after the end", joinOver(other, s), ErrIdentity)
		protectFirst(t, first, s)
	}
}
