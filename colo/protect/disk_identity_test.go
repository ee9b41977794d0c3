package protect

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/colo/colotest"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/failover"
	"github.com/gocolo/lockstep/failover/failovertest"
	"github.com/gocolo/lockstep/replication"
)

// copied returns what the synchronisations that a host has led have sent, in bytes,
// and found to be the same, in their order.
func (h *host) copied() (all []event.DiskSynchronised) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, e := range h.events {
		switch e := e.(type) {
		case event.DiskSynchronised:
			all = append(all, e)
		case event.DiskResynchronised:
			all = append(all, event.DiskSynchronised(e))
		}
	}
	return all
}

// A site is two hosts with image files, which survive them.
type site struct {
	*world
	dir     string
	journal bool
	plain   bool // the images do not know whose they are
	overlay int64
	wear    map[string]*wear       // by host: what can fail of its disk; nil: nothing can
	open    map[string][]io.Closer // by host
	disk    map[string]*Disk       // by host
}

func newSite(t *testing.T, journal bool) *site {
	w := newWorld(t)
	w.term = 300 * time.Millisecond
	w.forget()
	s := &site{world: w, dir: t.TempDir(), journal: journal, open: map[string][]io.Closer{}, disk: map[string]*Disk{}}
	t.Cleanup(func() {
		for name := range s.open {
			s.close(name)
		}
	})
	return s
}

func (s *site) image(name string) string { return filepath.Join(s.dir, name) }

func (s *site) close(name string) {
	for _, c := range s.open[name] {
		if err := c.Close(); err != nil {
			s.t.Error(err)
		}
	}
	delete(s.open, name)
}

// start boots a host with its image file.
func (s *site) start(name string, start bool, change func(*Config)) *host {
	s.t.Helper()
	f, err := replication.CreateFile(s.image(name), diskSize)
	if err != nil {
		s.t.Fatal(err)
	}
	s.open[name] = append(s.open[name], f)
	cfg := DiskConfig{Name: "root", Image: f, OverlayBytes: s.overlay}
	if s.journal {
		if cfg.Journal, err = replication.OpenJournalFiles(s.image(name), 4*diskSize); err != nil {
			s.t.Fatal(err)
		}
		s.open[name] = append(s.open[name], cfg.Journal)
	}
	if s.plain {
		cfg.Image = struct{ replication.Disk }{f}
	}
	if s.wear != nil {
		if s.wear[name] == nil {
			s.wear[name] = &wear{meta: memory{b: make([]byte, metadataBytes+512)}}
		}
		cfg.Image = s.wear[name].image(s.t, f)
	}
	d, err := NewDisk(cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	s.disk[name] = d
	return s.boot(name, start, func(c *Config) {
		c.Lost, c.Beat = 200*time.Millisecond, 50*time.Millisecond
		c.PeerTimeout = 5 * time.Second
		c.Disks = []*Disk{d}
		if change != nil {
			change(c)
		}
	})
}

// outlived returns two hosts of which a has been killed, so that b has the guest, and
// is back.
func (s *site) outlived() (a, b *host) {
	b = s.start("b", false, nil)
	a = s.start("a", true, nil)
	a.is(Protected)
	b.is(Following)
	a.kill(false)
	b.is(Alone)
	a.bury()
	s.close("a")
	return s.start("a", false, nil), b
}

// write writes a block by way of the guest's disk, and makes it stable.
func (s *site) write(name, data string) {
	s.t.Helper()
	if _, err := s.disk[name].WriteAt(block(data), 0); err != nil {
		s.t.Fatal(err)
	}
	if err := s.disk[name].Sync(); err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) read(name string) string {
	s.t.Helper()
	p := make([]byte, 512)
	if _, err := s.disk[name].ReadAt(p, 0); err != nil {
		s.t.Fatal(err)
	}
	return string(bytes.TrimRight(p, "\x00"))
}

func block(data string) []byte { return append([]byte(data), make([]byte, 512-len(data))...) }

// powerCut kills all hosts at one moment; what was on their way is lost.
func (s *site) powerCut(hosts ...*host) {
	for _, h := range hosts {
		h.killed.Store(true)
	}
	for _, h := range hosts {
		h.kill(false)
	}
	for _, h := range hosts {
		h.bury()
		s.close(h.name)
	}
	// The guest begins a new life, of which the client knows.
	s.forget()
	s.ledger = colotest.Ledger{}
}

// Nothing of two equal images is sent, after a short loss only what was written
// since is looked at, and of a copy whose guest was another's, only what differs is
// sent.
func TestOnlyWhatDiffersIsSentToASecondary(t *testing.T) {
	t.Parallel()
	for _, plain := range []bool{false, true} {
		t.Run(fmt.Sprintf("images that know nothing of themselves %v", plain), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := newSite(t, false)
				s.plain = plain
				content := make([]byte, diskSize)
				rand.NewChaCha8([32]byte{1}).Read(content)
				for _, name := range []string{"a", "b"} {
					if err := os.WriteFile(s.image(name), content, 0o600); err != nil {
						t.Fatal(err)
					}
				}
				b := s.start("b", false, nil)
				a := s.start("a", true, nil)
				a.is(Protected)
				s.write("a", "in step")
				s.f.part("a", "b", false)
				a.is(Alone)
				s.write("a", "alone")
				s.f.join("a", "b")
				a.is(Protected)
				b.is(Following)
				a.kill(false)
				b.is(Alone)
				a.bury()
				s.close("a")
				s.write("b", "of b")
				first := a
				a = s.start("a", false, nil)
				b.is(Protected)

				type sum struct{ copied, same int64 }
				var got []sum
				for _, e := range append(first.copied(), b.copied()...) {
					got = append(got, sum{e.Copied, e.Same})
				}
				const chunk = replication.ChunkSize
				want := []sum{{0, diskSize}, {chunk, 0}, {chunk, diskSize - chunk}}
				if !slices.Equal(got, want) {
					t.Errorf("sent, and found to be the same: %v, not %v", got, want)
				}
				a.halt()
				b.halt()
			})
		})
	}
}

func TestHostsThatWereBothDownStartTheGuestFromTheDisksThatAreItsOwn(t *testing.T) {
	t.Parallel()
	for _, took := range []bool{false, true} {
		t.Run(fmt.Sprintf("after a takeover %v", took), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := newSite(t, false)
				b := s.start("b", false, nil)
				a := s.start("a", true, nil)
				a.is(Protected)
				b.is(Following)
				s.write("a", "of a")
				if took {
					a.job.Checkpoint()
					a.kill(false)
					b.is(Alone)
					a.bury()
					s.close("a")
					s.write("b", "of b")
					s.powerCut(b)
				} else {
					s.powerCut(a, b)
				}

				a, b = s.start("a", false, nil), s.start("b", false, nil)
				last, old, want := a, b, "of a"
				if took {
					last, old, want = b, a, "of b"
				}
				last.is(Protected)
				old.is(Following)
				if got := s.read(last.name); got != want {
					t.Errorf("the guest was started with a disk that says %q, not %q", got, want)
				}
				s.write(last.name, "of the new life")
				if got := s.read(last.name); got != "of the new life" {
					t.Errorf("it has written to a disk that says %q", got)
				}
				if n := last.job.Query().Stats.Takeovers; n != 0 {
					t.Errorf("%d takeovers", n)
				}
				old.halt()
				last.halt()
			})
		})
	}
}

// While its guest runs elsewhere a host that comes back claims nothing.
func TestAHostThatComesBackToALivingGuestFollowsIt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, false)
		a, b := s.outlived()
		b.is(Protected)
		a.is(Following)
		if n := b.job.Query().Stats.Takeovers; n != 1 {
			t.Errorf("%d takeovers", n)
		}
		a.halt()
		b.halt()
		s.clean()
	})
}

// The secondary's host loses its power, and so does the primary's, which never comes
// back. With a journal the secondary has the disk of its last checkpoint, and is
// started by a person's word; without one it has the disk of no moment, and no word
// starts it.
func TestADeadPairsSecondaryStartsFromItsLastCheckpointIfItHasAJournal(t *testing.T) {
	t.Parallel()
	for _, journal := range []bool{true, false} {
		t.Run(fmt.Sprintf("journal %v", journal), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := newSite(t, journal)
				slow := func(c *Config) {
					c.CheckpointDelay = time.Hour
					c.Lost, c.PeerTimeout = 20*time.Second, time.Minute // nobody is to go on alone meanwhile
				}
				b := s.start("b", false, slow)
				a := s.start("a", true, slow)
				a.is(Protected)
				b.is(Following)
				s.write("a", "before the checkpoint")
				n := a.job.Query().Stats.Checkpoints
				if err := a.job.Checkpoint(); err != nil {
					t.Fatal(err)
				}
				s.until(func() bool { return b.job.Query().Stats.Checkpoints > n })
				s.write("a", "after it")
				s.until(func() bool {
					p, err := os.ReadFile(s.image("b"))
					return err == nil && strings.HasPrefix(string(p), "after it")
				})
				// What is on b's storage now is what a power cut leaves: nobody writes.
				cut := s.snapshot("b")
				s.powerCut(a, b)
				s.dir = cut

				b = s.start("b", true, nil)
				if !journal {
					b.is(Waiting)
					if err := b.job.Query().LastError; !errors.Is(err, errCopy) {
						t.Errorf("%v", err)
					}
					b.halt()
					return
				}
				b.is(Alone)
				if got := s.read("b"); got != "before the checkpoint" {
					t.Errorf("the disk says %q", got)
				}
				b.halt()
			})
		})
	}
}

// snapshot copies the files of a host to another directory, which it returns.
func (s *site) snapshot(name string) string {
	s.t.Helper()
	dir := s.t.TempDir()
	files, err := filepath.Glob(filepath.Join(s.dir, name+"*"))
	if err != nil {
		s.t.Fatal(err)
	}
	for _, f := range files {
		p, err := os.ReadFile(f)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, filepath.Base(f)), p, 0o600)
		}
		if err != nil {
			s.t.Fatal(err)
		}
	}
	f, err := replication.OpenFile(filepath.Join(dir, name))
	if err == nil {
		err = errors.Join(f.Rebind(), f.Close())
	}
	if err != nil {
		s.t.Fatal(err)
	}
	return dir
}

// until waits for something that nobody tells of.
func (w *world) until(done func() bool) {
	w.t.Helper()
	for end := time.Now().Add(time.Minute); !done(); {
		if time.Now().After(end) {
			w.t.Fatal("it does not come")
		}
		time.Sleep(time.Millisecond)
	}
}

func TestAnImageOfAnotherGuestIsRefused(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		stores := map[string]*failovertest.Store{}
		for _, guest := range []string{"one", "another"} {
			s := newSite(t, false)
			stores[guest] = s.store
			s.dir = filepath.Join(dir, guest)
			if err := os.Mkdir(s.dir, 0o700); err != nil {
				t.Fatal(err)
			}
			b := s.start("b", false, nil)
			a := s.start("a", true, nil)
			a.is(Protected)
			s.write("a", "of "+guest)
			n := b.job.Query().Stats.Checkpoints
			s.until(func() bool { return b.job.Query().Stats.Checkpoints > n+1 })
			b.halt()
			a.halt()
			s.close("a")
			s.close("b")
		}
		s := newSite(t, false)
		s.dir, s.store = filepath.Join(dir, "one"), stores["one"]
		for _, suffix := range []string{"", ".lockstep"} {
			from, to := filepath.Join(dir, "another", "b"+suffix), filepath.Join(dir, "one", "b"+suffix)
			if err := os.Rename(from, to); err != nil {
				t.Fatal(err)
			}
		}
		before, err := os.ReadFile(s.image("b"))
		if err != nil {
			t.Fatal(err)
		}
		b := s.start("b", false, nil)
		a := s.start("a", true, nil)
		var r *RefusedError
		s.until(func() bool { return errors.As(a.job.Query().LastError, &r) })
		if !strings.Contains(r.Reason, "another guest's disk") {
			t.Error(r)
		}
		if p, err := os.ReadFile(s.image("b")); err != nil || !bytes.Equal(p, before) {
			t.Errorf("the image of the other guest was written: %v", err)
		}
		a.halt()
		b.halt()
	})
}

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

// A kept image knows what it was told of itself.
type kept struct {
	replication.Disk
	m *replication.Metadata
}

func (k kept) Metadata() (*replication.Metadata, error) { return k.m, nil }

// replicated returns metadata as it is once a disk has had a copy: it is of a known
// disk, and the guest's or a secondary's.
func replicated(at *memory, guest bool) (*replication.Metadata, error) {
	for p := at.b; len(p) >= 4096; p = p[4096:] {
		p := p[:512]
		if p[0] == 0 {
			continue
		}
		p[24] = 1 // the first byte of the disk's ID
		if guest {
			p[24+32+7*16+8+1] = 1 // after its own ID, its history, its epoch and state
		}
		sum := crc32.Checksum(p[:508], crc32.MakeTable(crc32.Castagnoli))
		binary.LittleEndian.PutUint32(p[508:], sum)
	}
	return replication.OpenMetadata(at)
}

// A secondary has room for what either guest writes until a checkpoint. When half of
// it is used a checkpoint is made, long before its time.
func TestAnOverlayThatFillsAsksForACheckpoint(t *testing.T) {
	t.Parallel()
	for _, writer := range []string{"a", "b"} {
		t.Run("written by "+writer, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := newSite(t, false)
				s.overlay = diskSize / 4
				slow := func(c *Config) { c.CheckpointDelay = time.Hour }
				b := s.start("b", false, slow)
				a := s.start("a", true, slow)
				a.is(Protected)
				b.is(Following)
				n := b.job.Query().Stats.Checkpoints
				content := make([]byte, s.overlay*3/4)
				rand.NewChaCha8([32]byte{2}).Read(content)
				if _, err := s.disk[writer].WriteAt(content, 0); err != nil {
					t.Fatal(err)
				}
				s.until(func() bool { return b.job.Query().Stats.Checkpoints > n })
				b.halt()
				a.halt()
			})
		})
	}
}

// A guest that was saved goes on over its disks of that moment, and no others: neither
// older ones, of before or of a host that followed, nor what another life has made of
// them. Disks that know nothing of themselves are whoever's word they are.
func TestASavedGuestGoesOnOverTheDisksOfThatMomentOnly(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		held, disk uint64
		starts     bool
	}{{3, 3, true}, {3, 2, false}, {3, 4, false}, {3, 0, true}} {
		t.Run(fmt.Sprintf("of generation %d over disks of %d", c.held, c.disk), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				if err := w.begun(t.Context(), c.held); err != nil {
					t.Fatal(err)
				}
				m, err := replication.OpenMetadata(&memory{b: make([]byte, metadataBytes)})
				if err == nil && c.disk > 0 {
					err = m.Hold(c.disk)
				}
				if err != nil {
					t.Fatal(err)
				}
				d, err := NewDisk(DiskConfig{Name: "root", Image: kept{&image{b: make([]byte, diskSize)}, m}})
				if err != nil {
					t.Fatal(err)
				}
				a := w.boot("a", true, func(cfg *Config) { cfg.Held, cfg.Disks = c.held, []*Disk{d} })
				if c.starts {
					a.is(Alone)
					if h := m.Held(); h != c.held+1 {
						t.Errorf("the disk is of generation %d", h)
					}
				} else {
					a.is(Waiting)
					if err := a.job.Query().LastError; !errors.Is(err, errCopy) {
						t.Error(err)
					}
				}
				a.halt()
			})
		})
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

// A host was granted the guest and died, and what it has said nobody knows. Whichever
// of the two a person starts then, its disks must say that they are of the generation
// that was granted. Those of the host that was granted the guest do; on the one that
// gave it away the person writes that on them.
func TestAGuestThatDiedWithTheHostItWasGivenToIsStartedFromEitherHostsDisks(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"a", "b"} {
		t.Run("on "+name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := newSite(t, false)
				b := s.start("b", false, nil)
				a := s.start("a", true, nil)
				a.is(Protected)
				b.is(Following)
				s.write("a", "of a")
				b.on(TakingOver, func() {
					b.killed.Store(true)
					b.gone.Store(true)
					s.f.part("a", "b", false)
				})
				if err := a.job.Switchover(t.Context()); !errors.Is(err, failover.ErrRefused) {
					t.Fatal(err)
				}
				a.is(Waiting)
				s.powerCut(b, a)
				r, err := s.store.Load(t.Context())
				if err != nil || r.Generation != 2 || r.Holder != "b" {
					t.Fatalf("%+v, %v", r, err)
				}
				if name == "a" {
					for held, want := range map[uint64]error{0: failover.ErrRefused, 2: errCopy} {
						a = s.start("a", true, func(c *Config) { c.Held = held })
						a.is(Waiting)
						if err := a.job.Query().LastError; !errors.Is(err, want) {
							t.Errorf("with Held %d: %v", held, err)
						}
						a.halt()
						s.close("a")
					}
					f, err := replication.OpenFile(s.image("a"))
					if err != nil {
						t.Fatal(err)
					}
					m, err := f.Metadata()
					if err == nil {
						err = m.Hold(r.Generation)
					}
					if err := errors.Join(err, f.Close()); err != nil {
						t.Fatal(err)
					}
				}
				h := s.start(name, true, nil)
				h.is(Alone)
				if got := s.read(name); got != "of a" {
					t.Errorf("the disk says %q", got)
				}
				other := s.start(map[string]string{"a": "b", "b": "a"}[name], false, nil)
				h.is(Protected)
				other.halt()
				h.halt()
			})
		})
	}
}
