package replication

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/internal/require"
)

// lostHost is a primary in step whose disk then fails as a whole: neither what its guest
// writes nor the metadata beside it becomes stable any more.
type lostHost struct {
	p          *Primary
	local, dev *fakeDisk
	failed     *[]event.DiskFailed
}

const evacuated = 4 * intentRegion

// newLostHost returns it alone, beside the copy that was its secondary. If landed, each
// write of the metadata gets to the platter, and its error is a lie.
func newLostHost(t *testing.T, landed bool) (h lostHost, disk, dev *fakeDisk) {
	t.Helper()
	ctx := context.Background()
	h.local, h.dev = newPoweredFake(bytes.Repeat([]byte{0x11}, evacuated)), newMetaDevice(evacuated)
	disk, dev = newPoweredFake(make([]byte, evacuated)), newMetaDevice(evacuated)
	bus, failed := heard[event.DiskFailed]()
	h.failed = failed
	p, err := NewPrimary(reopened(t, h.local, h.dev), PrimaryConfig{Name: "vda", Overwrite: true, Evacuate: true, Events: bus})
	must(t, err)
	s, err := NewSecondary(reopened(t, disk, dev), SecondaryConfig{})
	must(t, err)
	protectFirst(t, p, s)
	write(t, p, 0x22, 0, SectorSize)
	checkpointBoth(t, p, s, 1)
	write(t, p, 0x33, intentRegion, SectorSize)
	h.local.failSync = func() error { return errInjected }
	h.dev.failSync = func() error {
		if landed {
			h.dev.settle()
		}
		return errInjected
	}
	wantErr(t, "flush", p.Sync(), errInjected)
	must(t, p.Stop(ctx, true)) // the guest goes on here
	must(t, s.Stop(ctx, false))
	h.p = p
	return h, disk, dev
}

// reenters brings p's guest into step with s, and returns the first error.
func reenters(p *Primary, s *Secondary) error {
	ctx := context.Background()
	for _, step := range []func() error{
		func() error { return joinOver(p, s) },
		func() error { return p.Synchronise(ctx, SyncConfig{}) },
		func() error { return p.Mark(ctx, 0) },
		func() error { return s.Start(ctx) },
		func() error { return p.Loaded(ctx, 0) },
		func() error { return p.Start(ctx) },
		func() error { return p.Mark(ctx, 1) },
		func() error { return s.Checkpoint(ctx, 1) },
		func() error { return p.Loaded(ctx, 1) },
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

func TestAGuestIsBroughtAwayFromADiskWhoseMetadataCannotBeWritten(t *testing.T) {
	ctx := context.Background()
	for _, landed := range []bool{false, true} {
		t.Run(fmt.Sprintf("landed %v", landed), func(t *testing.T) {
			h, disk, dev := newLostHost(t, landed)
			p, before := h.p, h.p.Identity()
			write(t, p, 0x44, intentRegion+SectorSize, SectorSize) // a place that is marked
			_, err := p.WriteAt(make([]byte, SectorSize), 3*intentRegion)
			var lost *MetadataError
			if !errors.As(err, &lost) || !errors.Is(err, errInjected) {
				t.Errorf("a write that no stable mark can precede: %v", err)
			}
			want(t, "it has changed nothing", p, 0x11, 3*intentRegion, SectorSize)
			s, err := NewSecondary(reopened(t, disk, dev), SecondaryConfig{})
			must(t, err)
			must(t, joinOver(p, s))
			if got := p.Dirty(); got != evacuated {
				t.Errorf("%d bytes are to be copied, want all of %d", got, evacuated)
			}
			must(t, p.Detach())
			must(t, reenters(p, s))
			wantBytes(t, "the copy", disk.data, h.local.data, 0)
			if f := *h.failed; len(f) != 2 || f[0].Disk != "vda" || f[0].Operation == f[1].Operation { // the disk and its metadata have
				t.Errorf("told of: %+v", *h.failed)
			}

			// Of the two copies the secondary's has the later history.
			must(t, s.Stop(ctx, true))
			rng := rand.New(rand.NewPCG(1, 0))
			old, gone := h.local.cutPower(rng), h.dev.cutPower(rng)
			here, there := reopened(t, old, gone).meta.Identity(), reopened(t, disk, dev).meta.Identity()
			if n, err := Newest(here, there); n != 1 || err != nil {
				t.Errorf("the newest of %v and %v is %d, %v", here, there, n, err)
			}
			says := before.History[1] // of the run
			if landed {
				says = before.History[0] // of what Stop could not record
			}
			if here.Generation != says {
				t.Errorf("the failed disk says generation %v, want %v", here.Generation, says)
			}
			if there.Disk != here.Disk || !slices.Contains(there.History[:], here.Generation) {
				t.Errorf("the copy, %v, does not descend from %v", there, here)
			}

			// The old copy is refused as a primary. As a secondary it is sent all of the disk.
			q, err := NewPrimary(reopened(t, old, gone), PrimaryConfig{})
			must(t, err)
			s, err = NewSecondary(reopened(t, disk, dev), SecondaryConfig{})
			must(t, err)
			wantErr(t, "the failed disk's guest", joinOver(q, s), ErrOutdated)
			_, err = NewPrimary(reopened(t, old, gone), PrimaryConfig{})
			wantErr(t, "it again", err, ErrOutdated)
			q = primaryOn(t, disk, dev)
			s, err = NewSecondary(reopened(t, old, gone), SecondaryConfig{})
			must(t, err)
			must(t, joinOver(q, s))
			if got := q.Dirty(); got != evacuated {
				t.Errorf("the old copy gets %d bytes, want all", got)
			}
		})
	}
}

// Whenever the power of both hosts fails: a copy that calls itself clean is one, the old
// one is not preferred to one that has taken over, and either can be brought into step
// with the other.
func TestAPowerCutWhileAGuestIsBroughtAwayForgesNoCopy(t *testing.T) {
	ctx := context.Background()
	ended, promoted, clean := false, 0, 0
	step := require.Many(61, 5, 1)
	for at := 0; !ended; at += step {
		for seed := range uint64(2) {
			if testing.Short() && seed != uint64(at/step)%2 {
				continue
			}
			h, disk, dev := newLostHost(t, seed%2 == 0)
			s, err := NewSecondary(reopened(t, disk, dev), SecondaryConfig{Overwrite: true})
			must(t, err)
			supply := &power{left: at}
			for _, d := range []*fakeDisk{h.local, h.dev, disk, dev} {
				d.power = supply
			}
			var took Identity
			if err = reenters(h.p, s); err == nil {
				if err = s.Stop(ctx, true); err == nil {
					took = s.Identity()
				}
			}
			ended = err == nil
			if err != nil && !errors.Is(err, errPower) {
				t.Fatalf("after %d operations: %v", at, err)
			}
			guest := bytes.Clone(h.local.data)
			rng := rand.New(rand.NewPCG(seed, uint64(at)))
			image, idev := h.local.cutPower(rng), h.dev.cutPower(rng)
			other, odev := disk.cutPower(rng), dev.cutPower(rng)
			here, there := reopened(t, image, idev).meta.Identity(), reopened(t, other, odev).meta.Identity()
			newest, _ := Newest(here, there)
			switch {
			case took != (Identity{}) && (newest != 1 || there.Generation != took.Generation):
				t.Fatalf("it took over as %v; then %v and %v", took, here, there)
			case there.Writes && newest == -1 && there.State != CopyInconsistent:
				t.Fatalf("a copy that took over is older: %v, %v", here, there)
			}
			if there.Writes {
				promoted++
			}
			if there.State == CopyClean && there.Generation != here.Generation && there.descends(here) {
				clean++
				wantBytes(t, "a copy that is clean, of a later generation", other.data, guest, 0)
			}
			for _, of := range [][4]*fakeDisk{{image, idev, other, odev}, {other, odev, image, idev}} {
				a, b, c, d := of[0].again(), of[1].again(), of[2].again(), of[3].again()
				p, err := NewPrimary(reopened(t, a, b), PrimaryConfig{Overwrite: true, PermitOutdated: true})
				must(t, err)
				s, err := NewSecondary(reopened(t, c, d), SecondaryConfig{Overwrite: true})
				must(t, err)
				must(t, reenters(p, s))
				wantBytes(t, fmt.Sprintf("after %d operations, seed %d", at, seed), c.data, a.data, 0)
			}
		}
	}
	if !testing.Short() && (promoted == 0 || clean == 0) {
		t.Errorf("%d promoted, %d clean", promoted, clean)
	}
}

// A disk that is well is of no use without its metadata: nobody could tell afterwards
// whose copy it is. The run ends, and the guest is brought away.
func TestMetadataThatCannotBeWrittenFailsTheDisk(t *testing.T) {
	ctx := context.Background()
	local, ldev := newPoweredFake(bytes.Repeat([]byte{0x11}, evacuated)), newMetaDevice(evacuated)
	bus, failed := heard[event.DiskFailed]()
	p, err := NewPrimary(reopened(t, local, ldev), PrimaryConfig{Overwrite: true, Evacuate: true, Events: bus})
	must(t, err)
	s, err := NewSecondary(newFake(evacuated, 0), SecondaryConfig{})
	must(t, err)
	protectFirst(t, p, s)
	ldev.failWrite = func(int64, int) error { return errInjected }
	_, err = p.WriteAt(make([]byte, SectorSize), 3*intentRegion)
	wantErr(t, "a write", err, errInjected)
	wantErr(t, "the disk", p.LocalErr(), errInjected)
	wantErr(t, "the run", p.Err(), ErrBroken)
	wantErr(t, "its next mark", p.Mark(ctx, 1), ErrBroken)
	if len(*failed) != 1 || (*failed)[0].Operation != "metadata" {
		t.Errorf("told of: %+v", *failed)
	}
	must(t, p.Sync()) // the image is stable
	must(t, p.Stop(ctx, true))
	s, err = NewSecondary(newFake(evacuated, 0), SecondaryConfig{})
	must(t, err)
	must(t, reenters(p, s))
	want(t, "the copy", s, 0x11, 0, evacuated)
}

// Without the permission to bring a guest away from it nothing is remembered in memory
// alone.
func TestWhatCannotBeRecordedIsAnErrorWithoutEvacuate(t *testing.T) {
	ctx := context.Background()
	local, ldev := newPoweredFake(bytes.Repeat([]byte{0x11}, evacuated)), newMetaDevice(evacuated)
	p := primaryOn(t, local, ldev)
	s, err := NewSecondary(newFake(evacuated, 0), SecondaryConfig{})
	must(t, err)
	protectFirst(t, p, s)
	ldev.failSync = func() error { return errInjected }
	wantErr(t, "to go on alone", p.Stop(ctx, true), errInjected)
	s, err = NewSecondary(newFake(evacuated, 0), SecondaryConfig{})
	must(t, err)
	wantErr(t, "another secondary", joinOver(p, s), errInjected)
}

// A secondary whose metadata cannot be written says so, and is no secondary any more.
func TestMetadataThatCannotBeWrittenFailsASecondary(t *testing.T) {
	local := newFake(evacuated, 0x11)
	p, err := NewPrimary(local, PrimaryConfig{Overwrite: true})
	must(t, err)
	dev := newMetaDevice(evacuated)
	bus, failed := heard[event.DiskFailed]()
	s, err := NewSecondary(reopened(t, newFake(evacuated, 0), dev), SecondaryConfig{Events: bus})
	must(t, err)
	protectFirst(t, p, s)
	dev.failWrite = func(int64, int) error { return errInjected }
	if err := s.Stop(context.Background(), true); !errors.Is(err, errInjected) {
		t.Errorf("failover: %v", err)
	}
	wantErr(t, "the copy", s.LocalErr(), errInjected)
	if len(*failed) != 1 || (*failed)[0].Operation != "metadata" {
		t.Errorf("told of: %+v", *failed)
	}
}

// A failover of it could not be recorded, and a primary must not take its guest to be protected by it.
func TestASecondaryWhoseMetadataCannotBeWrittenMakesNoCheckpoint(t *testing.T) {
	for _, what := range []string{"Prepare", "Checkpoint", "Start"} {
		p, err := NewPrimary(newFake(evacuated, 0x11), PrimaryConfig{Overwrite: true})
		must(t, err)
		dev := newMetaDevice(evacuated)
		s, err := NewSecondary(reopened(t, newFake(evacuated, 0), dev), SecondaryConfig{})
		must(t, err)
		if what == "Start" {
			must(t, joinOver(p, s))
			must(t, p.Synchronise(t.Context(), SyncConfig{}))
			must(t, p.Mark(t.Context(), 0))
		} else {
			protectFirst(t, p, s)
		}
		dev.failWrite = func(int64, int) error { return errInjected }
		wantErr(t, "a record", s.meta.Hold(2), errInjected)
		last := s.Epoch()
		do := func() error { return s.Start(t.Context()) }
		switch what {
		case "Prepare":
			do = func() error { return s.Prepare(t.Context(), last+1) }
		case "Checkpoint":
			do = func() error { return s.Checkpoint(t.Context(), last+1) }
		}
		wantErr(t, what, do(), errInjected)
		if what == "Start" {
			if st := s.State(); st != None {
				t.Errorf("it is %v", st)
			}
			continue
		}
		wantErr(t, "the run", s.Err(), ErrBroken)
		wantErr(t, "the next checkpoint", s.Checkpoint(t.Context(), last+1), errInjected)
		if epoch := s.Epoch(); epoch != last {
			t.Errorf("it is at %d, and was at %d", epoch, last)
		}
		want(t, "what its guest sees", s, 0x11, 0, evacuated)
	}
}

// Whatever fails first, each failure of a copy is told of, once: for an operator a full
// file system beside the image, and an image that has lost data, are two things.
func TestBothFailuresOfADiskAreToldOnce(t *testing.T) {
	for _, first := range []string{"metadata", "flush"} {
		t.Run(first+" first", func(t *testing.T) {
			local, ldev := newPoweredFake(bytes.Repeat([]byte{0x11}, evacuated)), newMetaDevice(evacuated)
			bus, failed := heard[event.DiskFailed]()
			p, err := NewPrimary(reopened(t, local, ldev), PrimaryConfig{Overwrite: true, Evacuate: true, Events: bus})
			must(t, err)
			s, err := NewSecondary(newFake(evacuated, 0), SecondaryConfig{})
			must(t, err)
			protectFirst(t, p, s)
			write(t, p, 0x22, 0, SectorSize)
			ldev.failWrite = func(int64, int) error { return errInjected }
			fail := map[string]func(){
				"metadata": func() { p.WriteAt(make([]byte, SectorSize), 3*intentRegion) },
				"flush": func() {
					local.failSync = func() error { return errInjected }
					write(t, p, 0x33, 0, SectorSize) // a place that is recorded already
					p.Sync()
				},
			}
			second := "flush"
			if first == second {
				second = "metadata"
			}
			for range 2 {
				fail[first]()
			}
			for range 2 {
				fail[second]()
			}
			var ops []string
			for _, e := range *failed {
				ops = append(ops, e.Operation)
			}
			if !slices.Equal(ops, []string{first, second}) {
				t.Errorf("told of %v, want %s and then %s", ops, first, second)
			}
		})
	}
}
