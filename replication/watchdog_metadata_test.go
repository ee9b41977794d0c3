package replication

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/event"
)

// besideDisk is a disk with its metadata on a device of its own.
type besideDisk struct {
	*fakeDisk
	m *Metadata
}

func (d besideDisk) Metadata() (*Metadata, error) { return d.m, nil }

func TestMetadataThatHangsHoldsUpNobodyForGood(t *testing.T) {
	for _, what := range []string{"write", "sync"} {
		synctest.Test(t, func(t *testing.T) {
			bus, failed := heard[event.DiskFailed]()
			dev := newHangingDevice(t)
			m, err := OpenMetadata(dev)
			must(t, err)
			p, err := NewPrimary(besideDisk{newFake(testSize, 0x11), m}, PrimaryConfig{Name: "disk0", InSync: true, Events: bus, Overwrite: true})
			must(t, err)
			s, err := NewSecondary(newFake(testSize, 0x11), SecondaryConfig{})
			must(t, err)
			must(t, joinOver(p, s))
			must(t, p.Synchronise(t.Context(), SyncConfig{}))
			must(t, p.Mark(t.Context(), 0))
			must(t, s.Start(t.Context()))
			must(t, p.Loaded(t.Context(), 0))
			dev.hangs.Store(what)
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			err = p.Start(ctx)
			wantHung(t, "Start", err, event.ModePrimary, "metadata", opUpdate)
			wantErr(t, "Err", p.Err(), ErrNotRunning)
			wantErr(t, "LocalErr", p.LocalErr(), ErrHung)
			wantErr(t, "Start again", p.Start(t.Context()), ErrHung)
			if len(*failed) != 1 || (*failed)[0].Operation != "metadata" {
				t.Errorf("told %+v", *failed)
			}
			dev.letGo()
			must(t, p.WaitHung(t.Context()))
			if p.State() != None {
				t.Errorf("a start that was given up has had an effect: %v", p.State())
			}
			wantErr(t, "a later change of the metadata", m.Hold(3), ErrHung)
			p.Detach()
		})
	}
}

func TestAMarkOfTheBitmapThatHangsLetsNoWriteBeMade(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dev := newHangingDevice(t)
		m, err := OpenMetadata(dev)
		must(t, err)
		disk := newFake(testSize, 0x11)
		p, err := NewPrimary(besideDisk{disk, m}, PrimaryConfig{Name: "disk0", InSync: true, Overwrite: true, HungAfter: hungSoon})
		must(t, err)
		s, err := NewSecondary(newFake(testSize, 0x11), SecondaryConfig{})
		must(t, err)
		protectFirst(t, p, s)
		must(t, p.Stop(t.Context(), true))
		clear(p.peer.intent.disk) // no region is marked
		dev.hangs.Store("sync")
		_, err = p.WriteAt(make([]byte, BlockSize), 0) // nobody else waits
		wantHung(t, "the write", err, event.ModePrimary, "metadata", opUpdate)
		wantErr(t, "LocalErr", p.LocalErr(), ErrHung)
		must(t, p.Detach()) // it waits for no write any more
		dev.letGo()
		must(t, p.WaitHung(t.Context()))
		want(t, "the disk", disk, 0x11, 0, testSize)
		_, err = p.WriteAt(make([]byte, BlockSize), 0)
		wantErr(t, "a later write", err, ErrHung)
	})
}

// newHangingDevice returns a blank device for metadata, or for a journal.
func newHangingDevice(t *testing.T) *hangingDisk {
	d := &hangingDisk{fakeDisk: newFake(1<<20, 0), release: make(chan struct{})}
	t.Cleanup(d.letGo)
	return d
}

// metadataRig is a primary, which does not run, and a secondary, whose metadata can hang.
type metadataRig struct {
	near, far *hangingDisk // the devices of the metadata
	p         *Primary
	s         *Secondary
}

func newMetadataRig(t *testing.T) *metadataRig {
	t.Helper()
	r := &metadataRig{near: newHangingDevice(t), far: newHangingDevice(t)}
	m, err := OpenMetadata(r.near)
	must(t, err)
	r.p, err = NewPrimary(besideDisk{newFake(testSize, 0x11), m}, PrimaryConfig{Name: "disk0", Overwrite: true, Evacuate: true, HungAfter: hungSoon})
	must(t, err)
	m, err = OpenMetadata(r.far)
	must(t, err)
	r.s, err = NewSecondary(besideDisk{newFake(testSize, 0x11), m}, SecondaryConfig{Name: "disk0", HungAfter: hungSoon})
	must(t, err)
	return r
}

func TestACallWithoutAContextEndsThoughTheMetadataHangs(t *testing.T) {
	ours := Identity{Disk: newID(), Generation: Generation{1, 1}, Overwrite: true}
	for _, c := range []struct {
		what string
		mode event.Mode
		do   func(*metadataRig) error
	}{
		{"Hold", event.ModePrimary, func(r *metadataRig) error { return r.p.meta.Hold(3) }},
		{"Outdate", event.ModePrimary, func(r *metadataRig) error { return r.p.meta.Outdate() }},
		{"Adopt", event.ModeSecondary, func(r *metadataRig) error { return r.s.Adopt(ours) }},
	} {
		for _, op := range []string{"write", "sync"} {
			synctest.Test(t, func(t *testing.T) {
				r := newMetadataRig(t)
				r.near.hangs.Store(op)
				r.far.hangs.Store(op)
				begin := time.Now()
				wantHung(t, c.what, c.do(r), c.mode, "metadata", opUpdate)
				if took := time.Since(begin); took != 3*hungSoon {
					t.Errorf("%s has taken %v", c.what, took)
				}
				wantErr(t, c.what+" again", c.do(r), ErrHung)
				wait := r.p.WaitHung
				if c.mode == event.ModeSecondary {
					wait = r.s.WaitHung
				}
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				wantErr(t, "WaitHung before the device has answered", wait(ctx), context.DeadlineExceeded)
				r.near.letGo()
				r.far.letGo()
				must(t, r.p.WaitHung(t.Context()))
				must(t, r.s.WaitHung(t.Context()))
				wantErr(t, c.what+" when the device has answered", c.do(r), ErrHung)
			})
		}
	}
}

func TestANewPrimaryDoesNotWaitForGoodForABitmapThatCannotBeRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dev := newHangingDevice(t)
		m, err := OpenMetadata(dev)
		must(t, err)
		dev.hangs.Store("read")
		_, err = NewPrimary(besideDisk{newFake(testSize, 0x11), m}, PrimaryConfig{Name: "disk0", HungAfter: hungSoon})
		wantHung(t, "NewPrimary", err, event.ModePrimary, "metadata", "read")
		dev.letGo()
		must(t, m.access.running.await(t.Context()))
	})
}

func TestANewSecondaryDoesNotWaitForGoodForTheDiskOfItsJournal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := newHanging(t, 0x11)
		hidden, active := newFake(minJournal, 0), newFake(minJournal, 0)
		j, err := OpenJournal(hidden, active)
		must(t, err)
		s, err := NewSecondary(disk, SecondaryConfig{Journal: j})
		must(t, err)
		must(t, s.Adopt(Identity{Disk: newID(), Generation: Generation{1, 1}, Overwrite: true}))
		must(t, s.Start(t.Context()))
		must(t, s.Stop(t.Context(), false))
		j, err = OpenJournal(hidden, active)
		must(t, err)
		disk.hangs.Store("read") // its content tells whether it is the one of the journal
		_, err = NewSecondary(disk, SecondaryConfig{Name: "disk0", Journal: j, HungAfter: hungSoon})
		wantHung(t, "NewSecondary", err, event.ModeSecondary, "disk", "read")
		disk.letGo()
		synctest.Wait()
	})
}

// What is asked for by those who only look is answered at once, with what was known before.
func TestNobodyWhoOnlyLooksWaitsForMetadataOrAJournal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newMetadataRig(t)
		hidden := newHangingDevice(t)
		j, err := OpenJournal(hidden, newFake(minJournal, 0))
		must(t, err)
		journaled, err := NewSecondary(newFake(testSize, 0x11), SecondaryConfig{Name: "disk0", Journal: j, HungAfter: hungSoon})
		must(t, err)
		for _, d := range []*hangingDisk{r.near, r.far, hidden} {
			d.hangs.Store("sync")
		}
		before, recorded := r.p.Identity(), j.Identity()
		var busy sync.WaitGroup
		busy.Go(func() { r.p.meta.Hold(3) })
		busy.Go(func() { r.s.meta.Hold(3) })
		busy.Go(func() { journaled.Start(context.Background()) })
		synctest.Wait()
		begin := time.Now()
		if now := r.p.Info().Identity; now != before || r.p.Identity() != before {
			t.Errorf("the primary's is %v, before it was %v", now, before)
		}
		if n := r.p.meta.Held(); n != 0 {
			t.Errorf("generation %d is held, which is not stable", n)
		}
		for _, s := range []*Secondary{r.s, journaled} {
			s.Info()
			s.DiskInfo()
			s.Identity()
			must(t, s.LocalErr())
		}
		r.p.DiskInfo()
		must(t, r.p.LocalErr())
		if st, epoch := j.State(); st != None || epoch != 0 || !j.Clean() || j.String() != "journal: none, epoch 0" || j.Identity() != recorded {
			t.Errorf("%v of %v, of a record that is not stable", j, j.Identity())
		}
		if took := time.Since(begin); took != 0 {
			t.Errorf("looking took %v", took)
		}
		busy.Wait()
		for what, err := range map[string]error{"primary": r.p.LocalErr(), "secondary": r.s.LocalErr(), "journal": journaled.LocalErr()} {
			wantErr(t, what, err, ErrHung)
		}
		for _, d := range []*hangingDisk{r.near, r.far, hidden} {
			d.letGo()
		}
		must(t, r.p.WaitHung(t.Context()))
		must(t, r.s.WaitHung(t.Context()))
		must(t, journaled.WaitHung(t.Context()))
	})
}

func TestAGuestIsBroughtAwayFromADiskWhoseMetadataHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newMetadataRig(t)
		protectFirst(t, r.p, r.s)
		r.near.hangs.Store("sync")
		must(t, r.p.Stop(t.Context(), true))
		wantErr(t, "LocalErr", r.p.LocalErr(), ErrHung)
		must(t, r.s.Stop(t.Context(), false))
		must(t, reenters(r.p, r.s))
		if at := r.s.Identity(); !at.descends(r.p.Identity()) || r.s.Epoch() != 1 {
			t.Errorf("the copy is %v at %d, the guest's is %v", at, r.s.Epoch(), r.p.Identity())
		}
		r.near.letGo()
		must(t, r.p.WaitHung(t.Context()))
	})
}

// A guest's write hangs in the local disk, and holds its place.
func TestADiskThatHangsHoldsUpNoAttachNorDetach(t *testing.T) {
	for _, what := range []string{"Attach", "Detach"} {
		synctest.Test(t, func(t *testing.T) {
			local := newHanging(t, 0x11)
			p, err := NewPrimary(local, PrimaryConfig{Name: "disk0", InSync: true, Overwrite: true, HungAfter: hungSoon})
			must(t, err)
			remote := func() *closedRemote { return &closedRemote{fakeRemote: newFakeRemote(newFake(testSize, 0x11), 1)} }
			first, second := remote(), remote()
			must(t, p.Attach(first))
			local.hangs.Store("write")
			var guest sync.WaitGroup
			guest.Go(func() { p.WriteAt(make([]byte, BlockSize), 0) })
			synctest.Wait()
			if what == "Attach" {
				err = p.Attach(second)
			} else {
				err = p.Detach()
			}
			wantHung(t, what, err, event.ModePrimary, "disk", "write")
			if what == "Detach" && !first.closed.Load() {
				t.Error("the connection is open")
			}
			attached := p.link.Load()
			local.letGo()
			guest.Wait()
			must(t, p.WaitHung(t.Context()))
			if what == "Attach" && p.link.Load() != attached {
				t.Error("an Attach that was given up has had an effect")
			}
			p.Cut()
		})
	}
}

// The disk was given up before, so that nothing is asked of it any more.
func TestADetachOfADiskThatWasGivenUpClosesTheConnection(t *testing.T) {
	p, err := NewPrimary(newFake(testSize, 0x11), PrimaryConfig{Name: "disk0", InSync: true, Overwrite: true})
	must(t, err)
	remote := &closedRemote{fakeRemote: newFakeRemote(newFake(testSize, 0x11), 1)}
	must(t, p.Attach(remote))
	p.local.abandon(&HungError{Mode: event.ModePrimary, Disk: "disk0", Device: "disk", Op: "read"})
	wantErr(t, "Detach", p.Detach(), ErrHung)
	if !remote.closed.Load() {
		t.Error("the connection is open")
	}
}

// closedRemote is a Remote that notes that it was closed.
type closedRemote struct {
	*fakeRemote
	closed atomic.Bool
}

func (r *closedRemote) Close() error {
	r.closed.Store(true)
	return r.fakeRemote.Close()
}

// The primary adopts a disk on which a request of the guest there hangs.
func TestADiskThatHangsHoldsUpNoAdopt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newHungRig(t, hungSoon)
		r.disk.hangs.Store("read")
		before := r.s.life.adoption()
		var guest sync.WaitGroup
		guest.Go(func() { r.s.ReadAt(make([]byte, BlockSize), 0) })
		synctest.Wait()
		err := r.s.Adopt(Identity{Disk: newID(), Generation: Generation{1, 1}, Overwrite: true})
		wantHung(t, "Adopt", err, event.ModeSecondary, "disk", "read")
		r.disk.letGo()
		guest.Wait()
		must(t, r.s.WaitHung(t.Context()))
		if r.s.life.adoption() != before {
			t.Error("an Adopt that was given up has had an effect")
		}
	})
}

// The same before the first checkpoint, when a write of the primary before hangs.
func TestAnAdoptThatWasGivenUpHasNoEffect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := newHanging(t, 0x11)
		s, err := NewSecondary(disk, SecondaryConfig{Name: "disk0", HungAfter: hungSoon})
		must(t, err)
		disk.hangs.Store("write")
		var primary sync.WaitGroup
		primary.Go(func() { s.Export().WriteAt(make([]byte, BlockSize), 0) })
		synctest.Wait()
		err = s.Adopt(Identity{Disk: newID(), Generation: Generation{1, 1}, Overwrite: true})
		wantHung(t, "Adopt", err, event.ModeSecondary, "disk", "write")
		disk.letGo()
		primary.Wait()
		must(t, s.WaitHung(t.Context()))
		if id := s.Identity(); s.life.adoption() != nil || id.Disk != (ID{}) {
			t.Errorf("it is %v", id)
		}
	})
}

// Two facts are recorded at the same time, beside a device that takes its time.
func TestNoChangeOfMetadataIsLostToAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newMetadataRig(t)
		r.near.hangs.Store("sync")
		var busy sync.WaitGroup
		busy.Go(func() { must(t, r.p.meta.Hold(3)) })
		busy.Go(func() { must(t, r.p.meta.Outdate()) })
		synctest.Wait()
		r.near.letGo()
		busy.Wait()
		m, err := OpenMetadata(r.near)
		must(t, err)
		for what, m := range map[string]*Metadata{"in memory": r.p.meta, "on the device": m} {
			if m.Held() != 3 || m.Identity().State != CopyOutdated {
				t.Errorf("%s: generation %d, %v", what, m.Held(), m.Identity())
			}
		}
	})
}
