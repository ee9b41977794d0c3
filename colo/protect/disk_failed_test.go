package protect

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/event"
)

// reasons returns why the job has changed its state, a line for each change.
func (h *host) reasons() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var s strings.Builder
	for _, e := range h.events {
		if c, ok := e.(event.JobStatusChange); ok {
			fmt.Fprintln(&s, c.State, c.Reason)
		}
	}
	return s.String()
}

// The disk of a primary fails, and its secondary, to which it leaves the guest, has just
// died: the guest goes on over the disk that there is, until the other host is back.
func TestAHostWhoseDiskFailsGoesOnWhereItsSecondaryHasJustDied(t *testing.T) {
	t.Parallel()
	for _, silent := range []bool{false, true} {
		withDisk(t, fmt.Sprintf("silent %v", silent), func(t *testing.T, w *world) {
			a, b := w.protected()
			time.Sleep(300 * time.Millisecond)
			var since time.Time
			a.on(Asking, func() {
				since = time.Now()
				b.kill(silent)
			})
			a.image.breaks(errWorn)
			a.is(Alone)
			b.bury()
			if took, most := time.Since(since), 4*w.term+a.job.cfg.Lost; took > most {
				t.Errorf("it took %v of %v", took, most)
			}
			before := w.heard()
			w.until(func() bool { return w.heard() > before })
			if said := a.reasons(); !strings.Contains(said, "alone") || !strings.Contains(said, errWorn.Error()) {
				t.Errorf("no change of its state names the disk's error:\n%s", said)
			}
			a.halt()
		})
	}
}

// A secondary that leaves on purpose when the disk of its primary fails has said that it
// does not go on: nobody waits for it.
func TestAHostWhoseDiskFailsDoesNotWaitForASecondaryThatLeaves(t *testing.T) {
	t.Parallel()
	withDisk(t, "", func(t *testing.T, w *world) {
		a, b := w.protected()
		time.Sleep(300 * time.Millisecond)
		var since time.Time
		a.on(Asking, func() {
			b.stop(errHalt)
			b.job.Wait(context.Background(), Concluded) // before it could be told to go on
			since = time.Now()
		})
		a.image.breaks(errWorn)
		a.is(Alone)
		b.bury()
		if took := time.Since(since); took > w.term {
			t.Errorf("it took %v", took)
		}
		a.halt()
	})
}

// What a host was granted that then could not run the guest, and says so, is lost to
// nobody: the host that gave the guest away has it back.
func TestAGenerationThatIsNotUsedGoesBack(t *testing.T) {
	t.Parallel()
	give := map[string]func(t *testing.T, a *host){
		"of a switchover": func(t *testing.T, a *host) {
			if err := a.job.Switchover(t.Context()); err == nil {
				t.Error("it has come about")
			}
		},
		"of a disk that failed": func(_ *testing.T, a *host) { a.image.breaks(errWorn) },
	}
	for name, give := range give {
		for _, answered := range []bool{true, false} {
			withDisk(t, fmt.Sprintf("%s answered %v", name, answered), func(t *testing.T, w *world) {
				var leaves atomic.Pointer[host]
				w.store.After = func(_ context.Context, op string) error {
					b, history := leaves.Load(), w.store.History()
					if b == nil || op != "swap" || history[len(history)-1].Token != b.token {
						return nil
					}
					leaves.Store(nil)
					b.stop(errHalt) // between its grant and the guest's first word
					b.job.Wait(context.Background(), Concluded)
					if !answered {
						return errNoRoute
					}
					return nil
				}
				a, b := w.protected()
				time.Sleep(300 * time.Millisecond)
				leaves.Store(b)
				give(t, a)
				a.is(Alone)
				before := w.heard()
				w.until(func() bool { return w.heard() > before })
				if n := a.job.Query().Generation; n != 3 {
					t.Errorf("it runs in generation %d", n)
				}
				b.bury()
				a.halt()
			})
		}
	}
}

// A secondary that its primary cannot reach any more, or whose primary cannot reach the
// arbiter, lives all the same, and has the guest in the end, on its good disk.
func TestASecondaryThatIsOutOfReachHasTheGuestOfAHostWhoseDiskFails(t *testing.T) {
	t.Parallel()
	faults := map[string]func(w *world, a *host){
		"the link breaks":                  func(w *world, _ *host) { w.f.part("a", "b", false) },
		"the link falls silent":            func(w *world, _ *host) { w.f.part("a", "b", true) },
		"the primary reaches no arbiter":   func(_ *world, a *host) { a.noArbiter.Store(true) },
		"and its answers come after hours": func(_ *world, a *host) { a.slow.Store(int64(150 * time.Millisecond)) },
	}
	for name, fault := range faults {
		if testing.Short() && name != "the link falls silent" && name != "the primary reaches no arbiter" {
			continue
		}
		withDisk(t, name, func(t *testing.T, w *world) {
			a, b := w.protected()
			time.Sleep(300 * time.Millisecond)
			a.on(Asking, func() { fault(w, a) })
			a.image.breaks(errWorn)
			b.is(Alone)
			a.noArbiter.Store(false)
			a.slow.Store(0)
			w.f.join("a", "b")
			time.Sleep(3 * time.Second)
			if s := a.job.State(); s.runs() {
				t.Errorf("the host with the broken disk is %v", s)
			}
			b.halt()
			a.halt()
		})
	}
}

// Where no arbiter says who has the guest, an operator does, on the host whose disk is
// good: the one whose disk is not stands still and says why, until the other has gone on.
func TestAHostWhoseDiskFailsLeavesTheGuestToAnOperatorsWord(t *testing.T) {
	t.Parallel()
	withDisk(t, "", func(t *testing.T, w *world) {
		nobody := func(c *Config) { c.Arbiter = nil }
		b := w.boot("b", false, nobody)
		a := w.boot("a", true, nobody)
		a.is(Protected)
		b.is(Following)
		time.Sleep(300 * time.Millisecond)
		a.image.breaks(errWorn)
		a.is(Asking)
		time.Sleep(time.Millisecond) // it says so a moment after that
		if err := a.job.Query().LastError; err == nil || !strings.Contains(err.Error(), errWorn.Error()) {
			t.Errorf("it says %v", err)
		}
		b.is(Asking)
		if err := b.job.Failover(); err != nil {
			t.Fatal(err)
		}
		b.is(Alone)
		a.is(Waiting)
		b.halt()
		a.halt()
	})
}

// Where the other host has died as well there is no guest but that of the host whose disk has failed,
// and an operator can have it go on.
func TestAHostWhoseDiskFailsGoesOnByAnOperatorsWordIfTheOtherHasDied(t *testing.T) {
	t.Parallel()
	for _, first := range []string{"the disk fails", "the other host dies"} {
		withDisk(t, "first "+first, func(t *testing.T, w *world) {
			nobody := func(c *Config) { c.Arbiter = nil }
			b := w.boot("b", false, nobody)
			a := w.boot("a", true, nobody)
			a.is(Protected)
			b.is(Following)
			time.Sleep(300 * time.Millisecond)
			if first == "the disk fails" {
				a.image.breaks(errWorn)
				a.is(Asking)
				b.kill(true)
			} else {
				b.kill(true)
				a.image.breaks(errWorn)
				a.is(Asking)
			}
			b.bury()
			time.Sleep(time.Minute)
			if s := a.job.State(); s != Asking {
				t.Fatalf("before the operator's word a is %v", s)
			}
			if err := a.job.Failover(); err != nil {
				t.Fatal(err)
			}
			a.is(Alone)
			w.hearsMore()
			a.halt()
		})
	}
}

// A host that goes on alone over a disk that has failed leaves its guest to the next
// secondary, whose disk is good: also what it could write to no disk.
func TestAHostAloneWhoseDiskHasFailedLeavesItsGuestToTheNextSecondary(t *testing.T) {
	t.Parallel()
	for _, over := range []string{"its image", "what it holds in memory"} {
		withDisk(t, over, func(t *testing.T, w *world) {
			a, b := w.protected()
			time.Sleep(300 * time.Millisecond)
			if over == "its image" {
				a, b = b, a
				a.kill(false)
				b.is(Alone)
				b.image.breaks(errWorn)
			} else {
				a.kill(true)    // b finds out when its disk is broken
				synctest.Wait() // and has committed, or has not, what it was sent
				b.image.breaks(errWorn)
				b.is(Alone)
			}
			a.bury()
			w.until(func() bool { return b.disk.failed() != nil })
			b.image.breaks(nil)
			a = w.boot(a.name, false, nil)
			a.passed(TakingOver)
			if said := b.reasons(); !strings.Contains(said, "is about to be handed to") || !strings.Contains(said, errWorn.Error()) {
				t.Errorf("no change of its state names the disk's error:\n%s", said)
			}
			b.is(Waiting) // and follows nobody, until it has a disk that is good
			b.halt()
			b = w.boot(b.name, false, nil)
			a.is(Protected)
			b.is(Following)
			a.halt()
			b.halt()
		})
	}
}
