package protect

import (
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/failover"
	"github.com/gocolo/lockstep/replication"
)

// wear wears out the disk of a host, with the metadata beside the image: from then on no write
// is stable.
type wear struct {
	out  atomic.Bool // nothing becomes stable any more
	meta memory      // survives the host

	before atomic.Pointer[func()] // called before the next write of the metadata
}

func (w *wear) err() error {
	if w.out.Load() {
		return errWorn
	}
	return nil
}

// image returns the disk as the next process finds it.
func (w *wear) image(t *testing.T, f replication.Disk) replication.Disk {
	m, err := replication.OpenMetadata(wornMetadata{&w.meta, w})
	if err != nil {
		t.Fatal(err)
	}
	return kept{wornImage{f, w}, m}
}

type wornImage struct {
	replication.Disk
	w *wear
}

func (d wornImage) Sync() error { return errors.Join(d.w.err(), d.Disk.Sync()) }

type wornMetadata struct {
	*memory
	w *wear
}

func (d wornMetadata) WriteAt(p []byte, off int64) (int, error) {
	if before := d.w.before.Load(); before != nil {
		(*before)()
	}
	if err := d.w.err(); err != nil {
		return 0, err
	}
	return d.memory.WriteAt(p, off)
}

// onAFullDisk returns a site, and a host whose secondary is dead and whose disk has then
// failed, with the metadata beside it.
func onAFullDisk(t *testing.T) (*site, *host) {
	s := newSite(t, false)
	s.wear = map[string]*wear{}
	b := s.start("b", false, nil)
	a := s.start("a", true, nil)
	a.is(Protected)
	b.is(Following)
	s.write("a", "of a")
	b.kill(false)
	a.is(Alone)
	b.bury()
	s.close("b")
	s.wear["a"].out.Store(true)
	if _, err := s.disk["a"].WriteAt(block("late"), 0); err != nil {
		t.Fatal(err)
	}
	if err := s.disk["a"].Sync(); !errors.Is(err, errWorn) {
		t.Fatalf("a flush: %v", err)
	}
	return s, a
}

// A guest is brought away from a disk that has failed as a whole. What the failed disk
// cannot record is known all the same: its copy is of an older generation than the
// arbiter's, and starts no guest again, whatever it says of itself.
func TestAGuestIsBroughtAwayFromADiskThatCannotRecordIt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, a := onAFullDisk(t)
		b := s.start("b", false, nil)
		b.is(Alone)
		a.is(Waiting)
		if got := s.read("b"); got != "late" {
			t.Errorf("the guest reads %q", got)
		}
		s.write("b", "of b")
		told := make(map[string]int)
		a.mu.Lock()
		for _, e := range a.events {
			if e, ok := e.(event.DiskFailed); ok {
				told[e.Operation]++
			}
		}
		a.mu.Unlock()
		if told["flush"] != 1 || told["metadata"] != 1 {
			t.Errorf("DISK_FAILED: %v, want one of each", told)
		}

		s.powerCut(a, b)
		s.wear["a"].out.Store(false) // after a restart it writes again
		a = s.start("a", true, nil)
		a.is(Waiting)
		if err := a.job.Query().LastError; !errors.Is(err, failover.ErrRefused) {
			t.Errorf("the old copy's start: %v", err)
		}
		b = s.start("b", false, nil)
		b.is(Protected)
		a.is(Following)
		if got := s.read("b"); got != "of b" {
			t.Errorf("the guest reads %q", got)
		}
		a.halt()
		b.halt()
	})
}

// When both hosts lose their power meanwhile, at most one starts the guest, and the old
// one never after the other has been granted it.
func TestAPowerCutWhileAGuestLeavesADiskThatCannotRecordIt(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		host string
		when State
	}{{"a", Synchronising}, {"a", Protected}, {"a", SwitchingOver}, {"b", TakingOver}} {
		t.Run(fmt.Sprintf("%s %v", c.host, c.when), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s, a := onAFullDisk(t)
				s.f.part("a", "b", false)
				b := s.start("b", false, nil)
				h := map[string]*host{"a": a, "b": b}[c.host]
				cut := make(chan struct{})
				h.on(c.when, func() {
					for _, h := range []*host{a, b} {
						h.killed.Store(true)
						h.gone.Store(true)
					}
					s.f.part("a", "b", false)
					close(cut)
				})
				s.f.join("a", "b")
				select {
				case <-cut:
				case <-time.After(time.Minute):
					t.Fatalf("a is %v, b %v: %v", a.job.State(), b.job.State(), a.job.Query().LastError)
				}
				s.powerCut(a, b)
				s.f.join("a", "b")
				r, err := s.store.Load(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				s.wear["a"].out.Store(false)
				a, b = s.start("a", false, nil), s.start("b", false, nil)
				time.Sleep(20 * s.term)
				sa, sb := a.job.State(), b.job.State()
				switch {
				case sa.runs() && sb.runs():
					t.Error("the guest runs twice")
				case sa.runs() && r.Holder == "b":
					t.Errorf("the old copy was started, after generation %d of b's", r.Generation)
				case r.Holder == "a" && !sa.runs():
					t.Errorf("a is %v, b %v", sa, sb) // the guest never left it
				}
				for name, st := range map[string]State{"a": sa, "b": sb} {
					if got := s.read(name); st.runs() && got != "late" {
						t.Errorf("on %s the guest reads %q", name, got)
					}
				}
				a.halt()
				b.halt()
			})
		})
	}
}
