package protect

import (
	"context"
	"errors"
	"net"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo/colotest"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// lean has the hosts of a world keep no copy of the memory, if this machine can.
func (w *world) leanly(t *testing.T) {
	t.Helper()
	c := Config{NoMemoryCopy: true}
	require.Granted(t, require.SmallPages, c.checkMemory())
	w.lean = true
}

func TestNoMemoryCopyIsRefusedWhereTheSystemCannot(t *testing.T) {
	c := Config{NoMemoryCopy: true}
	err := c.checkMemory()
	if can := runtime.GOOS == "linux" && os.Getpagesize() == ram.PageSize; can != (err == nil) || err != nil && !errors.Is(err, errors.ErrUnsupported) {
		t.Error(err)
	}
}

// Hosts that keep no copy of the memory fail over, come back and change their sides
// as others do, and hold little.
func TestHostsWithoutACopyOfTheMemoryGoOn(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		w.leanly(t)
		w.guest.Memory = 8 << 20
		var held, copies int
		watch := func(c *Config) {
			c.Session.Step = watchCaches(w, c.Host, func(cache *ram.Cache) {
				held = max(held, int(cache.Memory()))
				if cache.KeepsCopy() {
					copies++
				}
			})
		}
		secondary, primary := w.boot("b", false, watch), w.boot("a", true, watch)
		for range 4 {
			primary.is(Protected)
			secondary.is(Following)
			time.Sleep(700 * time.Millisecond)
			primary.kill(false)
			secondary.is(Alone)
			primary.bury()
			time.Sleep(100 * time.Millisecond)
			primary, secondary = secondary, w.boot(primary.name, false, watch)
		}
		primary.is(Protected)
		if err := primary.job.Switchover(t.Context()); err != nil {
			t.Fatal(err)
		}
		primary, secondary = secondary, primary
		primary.is(Protected)
		time.Sleep(time.Second)
		secondary.halt()
		primary.halt()
		// A checkpoint has the working set, and what belongs to each round.
		if most := 2 * 32 * ram.PageSize; held == 0 || held > most {
			t.Errorf("a secondary has held %d bytes besides its guest's, of at most %d", held, most)
		}
		if copies > 0 {
			t.Error("a secondary has kept a copy")
		}
	})
}

// watchCaches returns a hook that calls f with the cache of a host that follows, each
// time that a checkpoint is about to be committed there.
func watchCaches(w *world, name string, f func(*ram.Cache)) func(event.Mode, string, uint64) {
	step := watchCommits(w, name, f)
	return func(side event.Mode, op string, epoch uint64) {
		if epoch > 0 {
			step(side, op, epoch)
		}
	}
}

// watchCommits is like watchCaches, and its hook also calls f before each synchronisation is
// committed.
func watchCommits(w *world, name string, f func(*ram.Cache)) func(event.Mode, string, uint64) {
	return func(side event.Mode, op string, epoch uint64) {
		if side != event.ModeSecondary || op != "commit" {
			return
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		for _, h := range w.hosts {
			if h.name == name && !h.killed.Load() {
				f(h.job.session().cache)
			}
		}
	}
}

// The bound is kept: the primary's guest runs on, and is told why it is not protected.
func TestACheckpointBeyondMaxStagedEndsTheSessionInWords(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		w.leanly(t)
		b := w.boot("b", false, func(c *Config) { c.MaxStaged = 2 * ram.PageSize })
		a := w.boot("a", true, nil)
		tried := a.passes(Protected)
		<-tried
		<-a.passes(Alone) // b lives, and is tried again at once
		before := w.heard()
		time.Sleep(time.Second)
		if w.heard() == before {
			t.Error("the guest stands still")
		}
		if err := b.job.Query().LastError; !errors.Is(err, ram.ErrStagedFull) {
			t.Errorf("b: %v", err)
		}
		b.halt()
		a.halt()
	})
}

// A primary of an older version knows nothing of pages that are sent again.
func TestAPrimaryThatDoesNotSendAgainIsRefusedInWords(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		w.leanly(t)
		b := w.boot("b", false, nil)
		b.is(Waiting)
		g, err := colotest.NewVM(w.guest)
		if err != nil {
			t.Fatal(err)
		}
		defer g.Close()
		old := &Job{cfg: Config{Guest: g}}
		offer := old.offer()
		offer.Devices = b.job.offer().Devices
		offer.Resends = false
		cfg := Config{Peer: Peer{Dialer: func(ctx context.Context) (net.Conn, error) { return w.f.dial(ctx, "a", "b") }}}
		_, _, err = dial(t.Context(), &cfg, hello{Channel: chControl, Guest: "guest", Host: "a", Generation: 1, Offer: offer})
		var refused *RefusedError
		if !errors.As(err, &refused) || !strings.Contains(refused.Reason, "b keeps no copy of the memory") {
			t.Error(err)
		}
		b.halt()
	})
}
