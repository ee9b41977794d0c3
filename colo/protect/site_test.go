package protect

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo/colotest"
	"github.com/gocolo/lockstep/event"
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

// ranOnA has the guest run on host a, alone, and write to its disk there. It returns the generation in
// which it did; the host is gone then.
func (s *site) ranOnA() (generation uint64) {
	s.t.Helper()
	a := s.start("a", true, nil)
	a.is(Alone)
	s.write("a", "of a")
	generation = a.job.Query().Generation
	a.halt()
	s.close("a")
	return generation
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
