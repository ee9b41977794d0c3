package protect

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/gocolo/lockstep/replication"
)

// chGrown begins the name of a connection that takes the place of one of a disk that has become longer,
// whose channel follows.
const chGrown = "grown-"

// maxRegrown bounds the connections of a session for disks that have become longer. A primary closes those
// that it does not use any more, which this side may hear later.
const maxRegrown = 2*maxDisks + 8

// maxLengths bounds the connections for one purpose to one disk: that of the session, one to the disk as it is
// about to be, and those of former lengths whose end has not been noticed yet.
const maxLengths = 8

// diskOf returns the disk of that name, or nil.
func (j *Job) diskOf(name string) *Disk {
	if i := slices.IndexFunc(j.cfg.Disks, func(d *Disk) bool { return d.cfg.Name == name }); i >= 0 {
		return j.cfg.Disks[i]
	}
	return nil
}

// canGrow reports whether the image can become longer at all.
func (d *Disk) canGrow() bool {
	_, ok := d.cfg.Image.(replication.Grower)
	return ok
}

// maxSize returns how long the other host can have the disk made.
func (d *Disk) maxSize() int64 {
	if d.cfg.MaxSize == 0 {
		return DefaultMaxSize
	}
	return d.cfg.MaxSize
}

// id returns the name of the guest's disk, which all copies have, or "" if this copy does not know it.
func (d *Disk) id() string {
	m, err := d.metadata()
	if err != nil || m == nil {
		return ""
	}
	if id := m.Identity().Disk; id != (replication.ID{}) {
		return id.String()
	}
	return ""
}

// oneDisk reports whether two sides have copies of one disk, both of which can become longer: what they
// have of it is of two lengths then because a growth has ended in between, or has found the other host away.
func oneDisk(here, there *offer, name string) bool {
	idOf := func(o *offer) string {
		for _, g := range o.Growing {
			if g.Name == name {
				return g.ID
			}
		}
		return ""
	}
	id := idOf(here)
	return id != "" && id == idOf(there)
}

// reaches returns an error unless the disks here may become as long as those of the other side.
func (j *Job) reaches(o *offer) error {
	for _, p := range o.Disks {
		if d := j.diskOf(p.Name); d != nil && p.Size > uint64(d.Size()) && p.Size > uint64(d.maxSize()) {
			return refuse("the disk %q has %d bytes here, %d there, and may have %d here", p.Name, d.Size(), p.Size, d.maxSize())
		}
	}
	return nil
}

// catchUp makes disks of this host, which has the guest, as long as those of a secondary that is about to
// follow: their growth has ended in between.
func (j *Job) catchUp(ctx context.Context, p *peer) error {
	for _, d := range j.cfg.Disks {
		there := p.sizes[d.cfg.Name]
		if there <= d.Size() {
			continue
		}
		if err := d.growAlone(ctx, there); err != nil {
			return fmt.Errorf("protect: disk %q has %d bytes on %s, and cannot become as long here: %w", d.cfg.Name, there, p.host, err)
		}
		d.tellGrown()
	}
	return nil
}

// followSizes makes disks of this host, a secondary's, as long as those of its primary are.
func (j *Job) followSizes(ctx context.Context, p *peer) error {
	for _, d := range j.cfg.Disks {
		there := p.sizes[d.cfg.Name]
		if there <= d.Size() {
			continue
		}
		if err := d.growCopy(ctx, there); err != nil {
			return fmt.Errorf("protect: disk %q has %d bytes on %s, and cannot become as long here: %w", d.cfg.Name, there, p.host, err)
		}
	}
	return nil
}

// growCopy makes a secondary's disk longer.
func (d *Disk) growCopy(ctx context.Context, size int64) error {
	d.mu.RLock()
	s := d.secondary
	d.mu.RUnlock()
	switch {
	case s == nil:
		return errors.New("it is not a secondary's")
	case s.Size() == size:
		return nil
	case !d.canGrow():
		return fmt.Errorf("%w: the image cannot become longer", errors.ErrUnsupported)
	case size > d.maxSize():
		return fmt.Errorf("%w: %d bytes, and it may have %d", replication.ErrSize, size, d.maxSize())
	}
	defer d.waits.end(d.waits.begin(opGrow))
	err := s.Grow(ctx, size)
	if err == nil {
		d.lengthens(size)
	}
	return err
}

// heardGrow makes a disk here, of a secondary, longer, and says what came of it. What is asked for while one
// is being made longer is not answered; the primary asks again.
func (j *Job) heardGrow(s *session, n note) {
	if s.primary != nil || !s.growsNow(true) {
		return
	}
	began := s.begins(func(ctx context.Context) {
		defer s.growsNow(false)
		answer := note{Say: sayGrown, Seq: n.Seq}
		if err := j.growFor(ctx, s, n); err != nil {
			answer.Reason = err.Error()
		}
		if ctx.Err() == nil {
			s.peer.say(answer)
		}
	})
	if !began {
		s.growsNow(false)
	}
}

// growFor does what a note asks for.
func (j *Job) growFor(ctx context.Context, s *session, n note) error {
	d := j.diskOf(n.Disk)
	if _, whole := s.committed(); !whole || j.State() != Following {
		return fmt.Errorf("%s is %v", j.cfg.Host, j.State())
	}
	if d == nil {
		return errors.New("there is no such disk here")
	}
	if err := d.failed(); err != nil {
		return err
	}
	return d.growCopy(ctx, n.Size)
}

// growsNow notes whether a disk is being made longer, and reports whether that has changed.
func (s *session) growsNow(on bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	changed := s.grows != on
	s.grows = on
	return changed
}

// works says by what the session begins something; nil: by nothing any more.
func (s *session) works(begin func(func(context.Context))) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.work = begin
}

// begins begins something, with a context that ends with the session, which waits for it. It returns false if
// the session has ended.
func (s *session) begins(f func(context.Context)) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.work == nil {
		return false
	}
	s.work(f)
	return true
}

// regrown takes a connection to a disk here, a secondary's, that has become longer. It runs on a goroutine of
// the port.
func (j *Job) regrown(conn net.Conn, h hello) {
	j.mu.Lock()
	s := j.current
	ours := j.m.state == Following && s != nil && s.primary == nil && h.Token != "" && h.Token == s.peer.token && h.Generation == s.peer.generation && h.Host == s.peer.host
	j.mu.Unlock()
	var d *Disk
	for _, o := range j.cfg.Disks {
		if ch := o.channels(); slices.Contains(ch[:2], strings.TrimPrefix(h.Channel, chGrown)) {
			d = o
		}
	}
	if !ours || d == nil {
		turnAway(conn, "the %s connection belongs to no session", h.Channel)
		return
	}
	if !s.regrows(1) {
		turnAway(conn, "there are %d connections of disks that have become longer", maxRegrown)
		return
	}
	err := writeHello(conn, hello{Channel: h.Channel, Guest: h.Guest, Host: j.cfg.Host, Generation: h.Generation, Token: h.Token})
	if err == nil {
		err = conn.SetDeadline(time.Time{})
	}
	if err == nil && s.begins(func(ctx context.Context) {
		defer s.regrows(-1)
		d.serve(ctx, conn)
	}) {
		return
	}
	s.regrows(-1)
	conn.Close()
}

// regrows adds to the number of such connections, if there may be so many.
func (s *session) regrows(n int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.regrown+n > maxRegrown {
		return false
	}
	s.regrown += n
	return true
}
