package protect

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/colo/colotest"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// synchronised returns the synchronisations that a host has made as a primary.
func (h *host) synchronised() (all []event.CheckpointCommit) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, e := range h.events {
		if c, ok := e.(event.CheckpointCommit); ok && c.Mode == event.ModePrimary && c.Epoch == 0 {
			all = append(all, c)
		}
	}
	return all
}

// eachMemory runs a test with hosts that keep a copy of the memory, and with such that
// do not.
func eachMemory(t *testing.T, f func(t *testing.T, w *world)) {
	bubble(t, "a copy", f)
	bubble(t, "no copy", func(t *testing.T, w *world) {
		w.leanly(t)
		f(t, w)
	})
}

// A short loss of the link costs what the guest has written meanwhile, and not its
// memory: of 64 MiB some 20 pages.
func TestABlipCostsWhatHasChanged(t *testing.T) {
	eachMemory(t, func(t *testing.T, w *world) {
		w.guest.Memory, w.guest.Pages, w.guest.Touch = 64<<20, 20, 20
		w.oracle = newOracle(t, w.guest)
		a, b := w.protected()
		for range 3 {
			time.Sleep(500 * time.Millisecond)
			w.f.part("a", "b", false)
			a.is(Alone)
			b.is(Waiting)
			w.f.join("a", "b")
			a.is(Protected)
			b.is(Following)
		}
		b.halt()
		a.halt()
		all := a.synchronised()
		whole, written := uint64(w.guest.Memory/ram.PageSize), uint64(w.guest.Pages)+16 // its frames and vCPU
		if len(all) != 4 || all[0].Pages < whole {
			t.Fatalf("synchronisations: %+v", all)
		}
		for _, c := range all[1:] {
			// Each page at most twice: while the guest runs, and when it stands.
			if c.Pages == 0 || c.Pages > 2*written || c.Bytes > 2*written*(ram.PageSize+16)+64<<10 {
				t.Errorf("%d pages and %d bytes after a blip, of a guest that writes %d of its %d pages", c.Pages, c.Bytes, written, whole)
			}
			t.Logf("%d pages, %d bytes; all of it was %d pages, %d bytes", c.Pages, c.Bytes, all[0].Pages, all[0].Bytes)
		}
	})
}

func newOracle(t *testing.T, g colotest.VMConfig) *colotest.Oracle {
	t.Helper()
	o, err := colotest.NewOracle(g)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// A breaking connection breaks at its nth write after it was armed; of that, half gets
// through.
type breaking struct {
	net.Conn
	left *atomic.Int64 // until it breaks; negative: it does not
}

func (c breaking) Write(p []byte) (int, error) {
	if c.left.Load() < 0 || c.left.Add(-1) >= 0 {
		return c.Conn.Write(p)
	}
	n, _ := c.Conn.Write(p[:len(p)/2])
	c.Conn.Close()
	return n, io.ErrClosedPipe
}

// The session's connection is lost at each write of a checkpoint, of the primary's or of
// the secondary's. Both go on from what the secondary has, whatever that is, and the two
// memories are the same, byte for byte, before the secondary's guest runs.
func TestAConnectionLostAtAnyWriteIsResumed(t *testing.T) {
	step := require.Many(8, 3, 1)
	for _, lean := range []bool{false, true} {
		for _, breaks := range []event.Mode{event.ModePrimary, event.ModeSecondary} {
			if testing.Short() && lean != (breaks == event.ModePrimary) {
				continue
			}
			for n := 0; n < 8; n += step {
				synctest.Test(t, func(t *testing.T) {
					resumeAfterBreak(t, lean, breaks, int64(n))
				})
				if t.Failed() {
					t.Fatalf("write %d of the %v, lean %v", n, breaks, lean)
				}
			}
		}
	}
}

func resumeAfterBreak(t *testing.T, lean bool, breaks event.Mode, n int64) {
	w := newWorld(t)
	if lean {
		w.leanly(t)
	}
	// Most of what was under way is not written again before the two meet again.
	w.guest.Pages, w.guest.Touch, w.guest.Interval = 1024, 3, 20*time.Millisecond
	w.oracle = newOracle(t, w.guest)
	var left atomic.Int64
	var a, b *host
	var compared atomic.Int64
	var captured atomic.Value // []byte: the memory that the primary captured last to synchronise
	left.Store(-1)
	hooks := func(c *Config) {
		c.Session.Conn = func(side event.Mode, conn net.Conn) net.Conn {
			if side != breaks {
				return nil
			}
			return breaking{conn, &left}
		}
		c.Session.Step = func(side event.Mode, op string, epoch uint64) {
			switch {
			case side == breaks && epoch == 3 && compared.Load() == 1 && left.Load() < 0 && strings.Contains(op, "checkpoint-re"):
				left.Store(n)
			case side == event.ModePrimary && epoch == 0 && op == "early resume":
				captured.Store(bytes.Clone(a.guest.Memory())) // the guest writes on from here
			case side == event.ModeSecondary && epoch == 0 && op == "resume":
				if compared.Add(1); !bytes.Equal(captured.Load().([]byte), b.guest.Memory()) {
					t.Errorf("synchronisation %d: the memories differ", compared.Load())
				}
			}
		}
	}
	b = w.boot("b", false, hooks)
	armed := make(chan struct{})
	a = w.boot("a", true, func(c *Config) {
		hooks(c)
		next := c.Session.Step
		c.Session.Step = func(side event.Mode, op string, epoch uint64) {
			<-armed // a is known
			next(side, op, epoch)
		}
	})
	close(armed)
	began := time.Now()
	for len(a.synchronised()) < 2 {
		time.Sleep(50 * time.Millisecond)
		if time.Since(began) > time.Minute {
			t.Fatalf("no second session: %+v", a.job.Query())
		}
	}
	a.is(Protected)
	b.is(Following)
	time.Sleep(500 * time.Millisecond)
	b.halt()
	a.halt()
	w.clean()
	all := a.synchronised()
	if whole := w.guest.MinMemory() / ram.PageSize; len(all) != 2 || all[1].Pages >= whole {
		t.Errorf("synchronisations: %+v of %d pages", all, whole)
	}
}

// Wherever one of the two is not who it was, all is sent.
func TestAHostThatIsNotWhoItWasGetsAll(t *testing.T) {
	for name, f := range map[string]func(w *world, a, b *host) (primary, secondary *host){
		"a secondary that has begun anew": func(w *world, a, b *host) (*host, *host) {
			b.kill(false)
			a.is(Alone)
			b.bury()
			return a, w.boot("b", false, nil)
		},
		"a primary that has begun anew": func(w *world, a, b *host) (*host, *host) {
			a.kill(false)
			b.is(Alone)
			a.bury()
			return b, w.boot("a", false, nil)
		},
		"sides that have changed": func(w *world, a, b *host) (*host, *host) {
			if err := a.job.Switchover(w.t.Context()); err != nil {
				w.t.Error(err)
			}
			return b, a
		},
		"a protection that was paused": func(w *world, a, b *host) (*host, *host) {
			if err := a.job.Pause(w.t.Context(), "backup"); err != nil {
				w.t.Error(err)
			}
			b.is(Waiting)
			if err := a.job.Resume(); err != nil {
				w.t.Error(err)
			}
			return a, b
		},
	} {
		bubble(t, name, func(t *testing.T, w *world) {
			w.guest.Memory = 4 << 20
			a, b := w.protected()
			time.Sleep(500 * time.Millisecond)
			before := len(a.synchronised()) // b has followed
			primary, secondary := f(w, a, b)
			primary.is(Protected)
			secondary.is(Following)
			time.Sleep(500 * time.Millisecond)
			secondary.halt()
			primary.halt()
			all := primary.synchronised()
			if len(all) == 0 || primary == a && len(all) == before || all[len(all)-1].Pages < w.guest.Memory/ram.PageSize {
				t.Errorf("synchronisations: %+v", all)
			}
		})
	}
}

func TestWhatASecondaryHoldsFitsOnlyItsPrimary(t *testing.T) {
	g, err := colotest.NewVM(colotest.VMConfig{Pages: 4})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	b := newBase(t, g)
	b.at, b.last = position{Session: "one", Epoch: 7}, "two"
	for p, want := range map[position]bool{
		{Session: "one", Epoch: 7}: true, {Session: "one", Epoch: 8}: true, {Session: "two"}: true,
		{Session: "one", Epoch: 6}: false, {Session: "three", Epoch: 7}: false, {}: false,
	} {
		if got := b.fits(&p, g.Blocks()); got != want {
			t.Errorf("%+v: %v", p, got)
		}
	}
	held := &position{Session: "one", Epoch: 7}
	for why, change := range map[string]func([]ram.Block){
		"length": func(blocks []ram.Block) { blocks[0].Host = blocks[0].Host[:ram.PageSize] },
		"used":   func(blocks []ram.Block) { blocks[0].Used = ram.PageSize },
		"name":   func(blocks []ram.Block) { blocks[0].Name = "other" },
		"place":  func(blocks []ram.Block) { blocks[0].Host = bytes.Clone(blocks[0].Host) },
	} {
		blocks := g.Blocks()
		if change(blocks); b.fits(held, blocks) {
			t.Errorf("memory of another %s", why)
		}
	}
	if b.fits(nil, g.Blocks()) || (*base)(nil).fits(held, g.Blocks()) {
		t.Error("nothing fits")
	}
	b.saver.Forget()
	if b.fits(held, g.Blocks()) {
		t.Error("a saver that has forgotten")
	}
}

// newBase returns what a primary knows after a synchronisation.
func newBase(t *testing.T, g *colotest.VM) *base {
	t.Helper()
	b := &base{saver: ram.NewSaver(g.Blocks(), g, ram.SaverConfig{Resumable: true}), blocks: g.Blocks()}
	w := qemufile.NewWriter(io.Discard)
	if err := errors.Join(b.saver.SaveSetup(w), b.saver.SaveComplete(w), w.Flush()); err != nil {
		t.Fatal(err)
	}
	b.confirm("one", 0)
	b.saver.SaveCleanup()
	return b
}

func TestAListOfWrittenPagesIsNotTrusted(t *testing.T) {
	g, err := colotest.NewVM(colotest.VMConfig{Pages: 4})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	one := append([]byte{byte(len(colotest.Block))}, colotest.Block...)
	one = append(one, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0)
	list := func(n int64, p []byte) []byte { return append(binary.BigEndian.AppendUint32(nil, uint32(n)), p...) }
	for want, p := range map[string][]byte{
		"at most":        list(1<<31, one),
		"1 bytes too":    list(int64(len(one))+1, append(bytes.Clone(one), 0)),
		"unexpected EOF": list(int64(len(one)), one[:len(one)-3]),
		"unknown":        list(3, []byte{1, 'x', 0}),
		"EOF":            nil,
	} {
		b := newBase(t, g)
		if err := b.readWritten(bytes.NewReader(p)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, not %q", err, want)
		}
	}
	b := newBase(t, g)
	if err := b.readWritten(bytes.NewReader(list(int64(len(one)), one))); err != nil {
		t.Error(err)
	}
	if !b.saver.Resume() {
		t.Fatal("nothing to resume")
	}
	w := qemufile.NewWriter(io.Discard)
	if err := errors.Join(b.saver.SaveSetup(w), b.saver.SaveComplete(w)); err != nil {
		t.Error(err)
	}
	if n := b.saver.Pages(); n != 1 {
		t.Errorf("%d pages were sent, not the one that is listed", n)
	}
}

// A primary that would go on from what is not here is refused.
func TestACheckpointThatIsNotHeldIsNotResumed(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		b := w.boot("b", false, nil)
		b.is(Waiting)
		g, err := colotest.NewVM(w.guest)
		if err != nil {
			t.Fatal(err)
		}
		defer g.Close()
		offer := (&Job{cfg: Config{Guest: g}}).offer()
		offer.Devices = b.job.offer().Devices
		cfg := Config{Peer: Peer{Dialer: func(ctx context.Context) (net.Conn, error) { return w.f.dial(ctx, "a", "b") }}}
		h := hello{Channel: chControl, Guest: "guest", Host: "a", Generation: 1, Offer: offer}
		conn, answer, err := dial(t.Context(), &cfg, h)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if answer.Holds != nil {
			t.Errorf("it holds %+v", answer.Holds)
		}
		h.Channel, h.Token, h.Resumes = chSession, answer.Token, &position{Session: "one", Epoch: 7}
		_, _, err = dial(t.Context(), &cfg, h)
		var refused *RefusedError
		if !errors.As(err, &refused) || !strings.Contains(refused.Reason, "does not hold that checkpoint") {
			t.Error(err)
		}
		h.Resumes.Session = strings.Repeat("x", 300)
		if err := h.check(); !errors.Is(err, ErrHello) {
			t.Error(err)
		}
		b.halt()
	})
}

// A secondary without a copy stages what it lacks, so after a loss of the link in which the
// guest has written much of its memory it is sent all of it, which needs no room besides.
func TestALongLossOfTheLinkCostsASecondaryWithoutACopyNoMemory(t *testing.T) {
	for _, c := range []struct {
		name    string
		staged  uint64
		lost    time.Duration
		resumed bool
	}{
		{"little is lacking", 0, 0, true},
		{"much is lacking", 0, 10 * time.Second, false},
		{"more than may be staged", 128 * ram.PageSize, 3 * time.Second, false},
		{"as much may be staged", 1024 * ram.PageSize, 3 * time.Second, true},
	} {
		if testing.Short() && (c.staged == 0 || !c.resumed) {
			continue
		}
		bubble(t, c.name, func(t *testing.T, w *world) {
			w.leanly(t)
			w.guest.Memory, w.guest.Pages, w.guest.Touch, w.guest.Interval = 32<<20, 4000, 4, 20*time.Millisecond
			w.oracle = newOracle(t, w.guest)
			held := 0
			b := w.boot("b", false, func(cfg *Config) {
				cfg.MaxStaged = c.staged
				cfg.Session.Step = watchCommits(w, cfg.Host, func(cache *ram.Cache) { held = max(held, int(cache.Memory())) })
			})
			a := w.boot("a", true, nil)
			a.is(Protected)
			b.is(Following)
			time.Sleep(500 * time.Millisecond)
			w.f.part("a", "b", false)
			a.is(Alone)
			b.is(Waiting)
			time.Sleep(c.lost)
			w.f.join("a", "b")
			a.is(Protected)
			b.is(Following)
			time.Sleep(500 * time.Millisecond)
			b.halt()
			a.halt()
			all, whole := a.synchronised(), w.guest.Memory/ram.PageSize
			if len(all) != 2 || (all[1].Pages < whole) != c.resumed {
				t.Errorf("synchronisations: %+v of %d pages", all, whole)
			}
			if most := int(w.guest.Memory / resumedShare); held == 0 || held > most {
				t.Errorf("a secondary has held %d bytes besides its guest's, of at most %d", held, most)
			}
		})
	}
}
