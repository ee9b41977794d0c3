package protect

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/colo/colotest"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/replication"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// A lack is what a host cannot follow with, for a while.
type lack struct {
	there atomic.Bool // it lacks that
	calls atomic.Int64
}

func (l *lack) err() error {
	if l.there.Load() {
		l.calls.Add(1)
		return errBare
	}
	return nil
}

// An unfollowing network cannot be made ready to follow.
type unfollowing struct {
	pacedProxy
	lack *lack
}

func (u unfollowing) Follow(ctx context.Context) error {
	if err := u.lack.err(); err != nil {
		return err
	}
	return u.pacedProxy.Follow(ctx)
}

// A crowded guest is one for whose copy there is no memory: its blocks are none that a cache takes.
type crowded struct {
	*colotest.VM
	lack *lack
}

func (c crowded) Blocks() []ram.Block {
	blocks := c.VM.Blocks()
	if c.lack.err() != nil {
		blocks[0].Used = uint64(len(blocks[0].Host)) + ram.PageSize
	}
	return blocks
}

// An absent image cannot be opened as a secondary's.
type absent struct {
	replication.Disk
	lack *lack
	meta *replication.Metadata
}

func (a absent) Metadata() (*replication.Metadata, error) { return a.meta, a.lack.err() }

// lacking are ways to lack something, by what it is.
var lacking = map[string]func(*testing.T, *Config, *lack){
	"network": func(_ *testing.T, c *Config, l *lack) {
		c.Network = []Network{unfollowing{c.Network[0].(pacedProxy), l}}
	},
	"memory": func(_ *testing.T, c *Config, l *lack) { c.Guest = crowded{c.Guest.(*colotest.VM), l} },
	"disk": func(t *testing.T, c *Config, l *lack) {
		meta, err := replication.OpenMetadata(&memory{b: make([]byte, metadataBytes+512)})
		if err != nil {
			t.Fatal(err)
		}
		c.Disks[0].image = absent{c.Disks[0].image, l, meta}
	},
}

// lacking boots a pair of which host b, which waited for a primary, has come to lack something.
func (w *world) lacking(lacks func(*testing.T, *Config, *lack)) (a, b *host, l *lack) {
	w.guest.Interval, w.compared = 20*time.Millisecond, true
	l = new(lack)
	b = w.boot("b", false, func(c *Config) { lacks(w.t, c, l) })
	b.is(Waiting)
	synctest.Wait() // it has made ready what it makes before anybody comes
	l.there.Store(true)
	a = w.boot("a", true, nil)
	a.is(Alone)
	return a, b, l
}

// A host that cannot follow since it lacks something waits until it has it, and the guest runs on at
// the other. Both hosts' operators are told why, once, and nothing moves meanwhile: a primary that
// comes is refused in words.
func TestAHostThatLacksWhatItFollowsWithWaitsForIt(t *testing.T) {
	t.Parallel()
	for of, lacks := range lacking {
		withDisk(t, of, func(t *testing.T, w *world) {
			a, b, l := w.lacking(lacks)
			time.Sleep(20 * time.Second)
			if s := b.job.State(); s != Waiting || a.job.State() != Alone || a.guest.Paused() {
				t.Fatalf("a is %v, paused: %t; b is %v", a.job.State(), a.guest.Paused(), s)
			}
			why := "b follows nobody: "
			for _, h := range []*host{a, b} {
				q, all := h.job.Query(), said[event.ProtectionRefused](h)
				if h == b && of != "memory" && !errors.Is(q.LastError, errBare) {
					t.Error(q.LastError)
				}
				if n := len(all); q.LastError == nil || n == 0 || n > 2 || h == b && n > 1 || !strings.Contains(q.LastError.Error(), all[n-1].Error) {
					t.Fatalf("%s has told %+v: %v", h.name, all, q.LastError)
				}
				for _, e := range all { // of the session that was tried as well
					if h == a && !strings.Contains(e.Error, why+said[event.ProtectionRefused](b)[0].Error) {
						t.Error(e.Error)
					}
				}
			}
			if n := strings.Count(a.states(), Synchronising.String()); n > 1 {
				t.Errorf("%d sessions began: %s", n, a.states())
			}
			if l.calls.Load() < 10 {
				t.Errorf("it was tried %d times", l.calls.Load())
			}
			l.there.Store(false)
			a.is(Protected)
			b.is(Following)
			w.hearsMore()
			b.halt()
			a.halt()
		})
	}
}

// Who leaves while it waits for what it lacks leaves at once, and nothing of the attempts stays.
func TestAHostThatLacksSomethingCanLeave(t *testing.T) {
	t.Parallel()
	for of, lacks := range lacking {
		withDisk(t, of, func(t *testing.T, w *world) {
			a, b, _ := w.lacking(lacks)
			time.Sleep(5 * time.Second)
			if err := b.halt(); !errors.Is(err, errHalt) {
				t.Error(err)
			}
			a.halt()
		})
	}
}
