package protect

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gocolo/lockstep/failover"
	"github.com/gocolo/lockstep/failover/failovertest"
)

// Two hosts that ask an arbiter each, as with a directory on a share that one of them has not
// mounted, would both be granted the guest. The one that follows says so, once.
func TestAHostThatFollowsTellsOfAnArbiterThatDoesNotKnowOfThePrimary(t *testing.T) {
	for what, before := range map[string]uint64{"that has never been asked": 0, "in which another host had the guest": 1} {
		bubble(t, what, func(t *testing.T, w *world) {
			own := new(failovertest.Store)
			if before > 0 {
				_, err := failover.NewStoreArbiter(own).Acquire(t.Context(), failover.Claim{Holder: "c", Token: "t", Term: time.Minute})
				if err != nil {
					t.Fatal(err)
				}
			}
			var log lines
			b := w.boot("b", false, func(c *Config) {
				c.Arbiter = failover.NewStoreArbiter(own)
				c.Logger = slog.New(slog.NewTextHandler(&log, nil))
			})
			a := w.boot("a", true, nil)
			a.is(Protected)
			b.is(Following)
			time.Sleep(4 * w.term)
			if err := b.job.Query().LastError; err == nil || !strings.Contains(err.Error(), "both go on when they are parted") {
				t.Errorf("%v", err)
			}
			if n := log.with("level=WARN", "does not know of the other host's grant"); n != 1 {
				t.Errorf("it is told %d times: %q", n, log.all())
			}
			if err := a.job.Query().LastError; err != nil {
				t.Errorf("the primary: %v", err)
			}
			a.is(Protected)
			b.halt()
			a.halt()
		})
	}
}

// An arbiter that was only slow, or away, or that has granted the guest to the primary in any
// generation, is none to be told of.
func TestAnArbiterThatIsSlowIsTheSame(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		var log lines
		store := &reachedAtTimes{Store: w.store}
		b := w.boot("b", false, func(c *Config) {
			c.Arbiter = failover.NewStoreArbiter(store)
			c.Logger = slog.New(slog.NewTextHandler(&log, nil))
		})
		store.away.Store(true)
		a := w.boot("a", true, nil)
		a.is(Protected)
		time.Sleep(4 * w.term)
		store.away.Store(false)
		time.Sleep(4 * w.term)
		if n := log.with("does not know of the other host's grant"); n != 0 {
			t.Errorf("%q", log.all())
		}
		b.halt()
		a.halt()
	})
}

// reachedAtTimes is a store that a host does not reach when it is away.
type reachedAtTimes struct {
	failover.Store
	away atomic.Bool
}

func (s *reachedAtTimes) Load(ctx context.Context) (failover.Record, error) {
	if s.away.Load() {
		return failover.Record{}, errors.New("no route to the arbiter")
	}
	return s.Store.Load(ctx)
}

func (s *reachedAtTimes) Changed(ctx context.Context, seen failover.Record) (failover.Record, error) {
	if s.away.Load() {
		return failover.Record{}, errors.New("no route to the arbiter")
	}
	return s.Store.Changed(ctx, seen)
}
