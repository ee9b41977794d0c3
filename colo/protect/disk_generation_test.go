package protect

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/failover"
	"github.com/gocolo/lockstep/replication"
)

func TestDisksThatHoldDifferentGenerationsStartNoGuest(t *testing.T) {
	for _, c := range []struct {
		holds []uint64
		role  string // 'g' for each that is the guest's own, 'c' for a secondary's; "": nobody has ever had a copy
		want  uint64 // 0: errCopy
		own   bool
	}{
		{holds: []uint64{3}, want: 3, own: true},
		{holds: []uint64{3, 5}},
		{holds: []uint64{5, 4, 3}},
		{holds: []uint64{1, 0}}, // the second one may have been replaced
		// The power failed between the disks of a guest that was about to begin
		// another generation: it lacks nothing.
		{holds: []uint64{4, 3}, want: 4, own: true},
		{holds: []uint64{3, 4, 3}, want: 4, own: true},
		{holds: []uint64{4, 3}, role: "gg", want: 4, own: true},
		// But a copy of a checkpoint was about to become another one.
		{holds: []uint64{4, 3}, role: "cc"},
		{holds: []uint64{4, 3}, role: "gc"},
		{holds: []uint64{4, 4}, role: "gc", want: 4},
	} {
		var disks []*Disk
		for i, h := range c.holds {
			at := &memory{b: make([]byte, metadataBytes)}
			m, err := replication.OpenMetadata(at)
			if err == nil {
				err = m.Hold(h)
			}
			if err == nil && c.role != "" {
				m, err = replicated(at, c.role[i] == 'g')
			}
			if err != nil {
				t.Fatal(err)
			}
			d, err := NewDisk(DiskConfig{Name: fmt.Sprint(i), Image: kept{&image{b: make([]byte, 4096)}, m}})
			if err != nil {
				t.Fatal(err)
			}
			disks = append(disks, d)
		}
		g, own, err := held(disks)
		if g != c.want || own != c.own || (c.want == 0) != errors.Is(err, errCopy) {
			t.Errorf("%v %q: generation %d, its own %v, %v", c.holds, c.role, g, own, err)
		}
	}
}

// begun has the arbiter know a generation that somebody has had and given up.
func (w *world) begun(ctx context.Context, generation uint64) error {
	arbiter := failover.NewStoreArbiter(w.store)
	for after := range generation {
		c := failover.Claim{Holder: "x", Token: "x", After: after, Term: time.Minute}
		g, err := arbiter.Acquire(ctx, c)
		if err == nil {
			err = arbiter.Release(ctx, g, "")
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Two persons who did not hear of each other have given one guest to both hosts, each
// of which counts generations by itself. What both have written since is kept, until a
// person says which of it goes.
func TestAHostKeepsDisksOfItsOwnThatAreOfThePrimarysGeneration(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, false)
		s.world.guest.Interval = time.Hour
		person := func(c *Config) { c.Arbiter, c.Network = nil, nil } // nobody hears the two guests
		b := s.start("b", false, person)
		a := s.start("a", true, person)
		a.is(Protected)
		b.is(Following)
		s.f.part("a", "b", false)
		a.is(Asking)
		b.is(Asking)
		if err := errors.Join(a.job.Failover(), b.job.Failover()); err != nil {
			t.Fatal(err)
		}
		a.is(Alone)
		b.is(Alone)
		s.write("a", "of a")
		s.write("b", "of b")
		b.killed.Store(true)
		b.stop(errDead)
		b.bury()
		s.close("b")
		b = s.start("b", false, person)
		b.is(Waiting)
		s.f.join("a", "b")
		var r *RefusedError
		s.until(func() bool { return errors.As(a.job.Query().LastError, &r) && r.There })
		time.Sleep(10 * time.Second)
		if !strings.Contains(r.Reason, "generation 2") || a.job.State() != Alone || b.job.State() != Waiting {
			t.Errorf("%v; a is %v, b %v", r, a.job.State(), b.job.State())
		}
		if got := s.read("b"); got != "of b" {
			t.Errorf("b's disk says %q", got)
		}
		a.halt()
		b.halt()
	})
}

// A host that is told of a later generation has its disks overwritten, whatever is on
// them, and one that has followed a primary follows it again.
func TestAHostFollowsALaterGenerationThanThatOfItsOwnDisksAgainAndAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, false)
		a, b := s.outlived()
		for range 3 {
			b.is(Protected)
			a.is(Following)
			if err := b.job.Pause(t.Context(), ""); err != nil {
				t.Fatal(err)
			}
			a.is(Waiting)
			if err := b.job.Resume(); err != nil {
				t.Fatal(err)
			}
		}
		b.is(Protected)
		a.halt()
		b.halt()
	})
}

// Where a person is the arbiter, disks start nothing by themselves.
func TestAHostWithoutAnArbiterStartsOnlyWhatAPersonSays(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, false)
		person := func(c *Config) { c.Arbiter = nil }
		a := s.start("a", true, person)
		a.is(Alone)
		s.write("a", "by hand")
		s.powerCut(a)
		a = s.start("a", false, person)
		a.is(Waiting)
		if after, own, err := held(a.job.cfg.Disks); after == 0 || !own || err != nil || a.job.restart != 0 {
			t.Errorf("generation %d, its own %v, %v; to be started: %d", after, own, err, a.job.restart)
		}
		a.stop(errHalt)
		a.bury()
		s.close("a")
		a = s.start("a", true, person)
		a.is(Alone)
		if got := s.read("a"); got != "by hand" {
			t.Errorf("%q", got)
		}
		a.halt()
	})
}
