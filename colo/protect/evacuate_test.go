package protect

import (
	"errors"
	"strings"
	"testing"
	"time"
)

// aloneOnAFailedDisk returns a host whose secondary is dead, and then its disk fails.
func (w *world) aloneOnAFailedDisk(change func(*Config)) *host {
	w.guest.Interval = 10 * time.Millisecond
	w.forget()
	b := w.boot("b", false, change)
	a := w.boot("a", true, change)
	a.is(Protected)
	b.is(Following)
	time.Sleep(300 * time.Millisecond)
	b.kill(false)
	if a.job.manual != nil {
		a.is(Asking)
		if err := a.job.Failover(); err != nil {
			w.t.Fatal(err)
		}
	}
	a.is(Alone)
	b.bury()
	a.image.breaks(errWorn)
	w.until(func() bool { return a.job.diskFailed() != nil })
	return a
}

// The guest does not stay over a disk that has failed when there is a good one again, and
// the host with the bad one follows nobody until it has another.
func TestAGuestAloneOnAFailedDiskGoesToTheHostThatComesBack(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*Config){
		"by an arbiter": nil,
		"by nobody":     func(c *Config) { c.Arbiter = nil },
	} {
		withDisk(t, name, func(t *testing.T, w *world) {
			a := w.aloneOnAFailedDisk(change)
			b := w.boot("b", false, change)
			b.is(Alone)
			a.is(Waiting)
			if n := a.job.Query().Stats.Switchovers; n != 1 {
				t.Errorf("%d switchovers: %s", n, a.reasons())
			}
			if said := a.reasons(); !strings.Contains(said, "protected is about to be handed to b: disk") {
				t.Errorf("it has not said why:\n%s", said)
			}
			generation := b.job.Query().Generation
			time.Sleep(5 * maxRedial)
			if s, now := b.job.State(), b.job.Query(); s != Alone || now.Generation != generation {
				t.Errorf("b is %v, in generation %d after %d", s, now.Generation, generation)
			}
			var r *RefusedError
			if err := b.job.Query().LastError; !errors.As(err, &r) || !strings.Contains(r.Reason, errWorn.Error()) {
				t.Errorf("b says %v", err)
			}
			if err := a.job.Query().LastError; !errors.Is(err, errWorn) {
				t.Errorf("a says %v", err)
			}
			a.halt()
			delete(w.images, "a")
			a = w.boot("a", false, change)
			b.is(Protected)
			b.halt()
			a.halt()
		})
	}
}

// A secondary that dies while the guest is on its way to it leaves it where it is, and
// has it when it is there again.
func TestAGuestThatIsOnItsWayFromAFailedDiskIsNotLostWithItsSecondary(t *testing.T) {
	t.Parallel()
	for _, when := range []State{Synchronising, Protected, SwitchingOver} {
		withDisk(t, when.String(), func(t *testing.T, w *world) {
			a := w.aloneOnAFailedDisk(nil)
			w.f.part("a", "b", false)
			b := w.boot("b", false, nil)
			a.on(when, func() { b.kill(false) })
			w.f.join("a", "b")
			<-b.done
			a.is(Alone)
			b.bury()
			b = w.boot("b", false, nil)
			b.is(Alone)
			b.halt()
			a.halt()
		})
	}
}

// Where the guest cannot be brought away it stays, and neither generations nor
// synchronisations follow each other for ever.
func TestAFailedDiskThatCannotBeReadIsTriedEverMoreRarely(t *testing.T) {
	t.Parallel()
	withDisk(t, "", func(t *testing.T, w *world) {
		a := w.aloneOnAFailedDisk(nil)
		a.image.blinds(errWorn)
		generation := a.job.Query().Generation
		w.images["b"] = nil
		b := w.boot("b", false, nil)
		const long = 20 * maxRedial
		time.Sleep(long)
		// Their times double: 1, 2, 4, 8 and 16 of maxRedial.
		if n := strings.Count(a.states(), Synchronising.String()); n < 3 || n > 6 {
			t.Errorf("%d sessions in %v", n, long)
		}
		if in := a.job.Query(); in.Generation > generation+1 || !in.State.runs() {
			t.Errorf("%v, generation %d after %d", in.State, in.Generation, generation)
		}
		if err := a.job.Query().LastError; !errors.Is(err, errWorn) || !strings.Contains(err.Error(), "protection is tried again in ") {
			t.Errorf("it says %v", err)
		}
		a.image.blinds(nil) // the disk can be read again
		b.is(Alone)
		b.halt()
		a.halt()
	})
}

// A secondary whose disk fails is of no use: its primary goes on alone, in one generation,
// until there is another disk.
func TestASecondaryWhoseDiskHasFailedFollowsNobody(t *testing.T) {
	t.Parallel()
	withDisk(t, "", func(t *testing.T, w *world) {
		a, b := w.protected()
		time.Sleep(300 * time.Millisecond)
		b.image.breaks(errWorn)
		a.is(Alone)
		time.Sleep(time.Second)
		generation := a.job.Query().Generation
		time.Sleep(5 * maxRedial)
		if in := a.job.Query(); in.State != Alone || in.Generation != generation {
			t.Errorf("%v, generation %d after %d", in.State, in.Generation, generation)
		}
		var r *RefusedError
		if err := a.job.Query().LastError; !errors.As(err, &r) || !strings.Contains(r.Reason, "b follows nobody") {
			t.Errorf("a says %v", err)
		}
		b.halt()
		delete(w.images, "b")
		b = w.boot("b", false, nil)
		a.is(Protected)
		a.halt()
		b.halt()
	})
}
