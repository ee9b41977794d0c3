package protect

import (
	"bytes"
	"errors"
	"fmt"
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
		b := s.start("b", false, nil)
		a := s.start("a", true, nil)
		a.is(Protected)
		b.is(Following)
		a.kill(false)
		b.is(Alone)
		a.bury()
		s.close("a")
		a = s.start("a", false, nil)
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
	var disks []*Disk
	for i := range 2 {
		d, err := NewDisk(DiskConfig{Name: fmt.Sprint(i), Image: &image{b: make([]byte, 4096)}})
		if err != nil {
			t.Fatal(err)
		}
		m, err := d.metadata()
		if err == nil {
			err = m.Hold(uint64(3 + i))
		}
		if err != nil {
			t.Fatal(err)
		}
		disks = append(disks, d)
	}
	if g, own, err := held(disks[:1]); g != 3 || !own || err != nil {
		t.Errorf("one: generation %d, its own %v, %v", g, own, err)
	}
	if _, _, err := held(disks); !errors.Is(err, errCopy) {
		t.Errorf("both: %v", err)
	}
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
