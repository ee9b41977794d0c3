package protect

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/gocolo/lockstep/internal/wait"
	"github.com/gocolo/lockstep/replication"
	"github.com/gocolo/lockstep/replication/nbd"
)

// A disk becomes longer on the secondary first, and then on the primary, whose guest is the one that is
// told of it. So a host that goes on with the guest has a disk that is at least as long as the guest was
// told. Where the session ends in between the copies are of two lengths: whichever host is behind
// makes its own longer when the two meet again.

// Grow makes a disk of the guest, which DiskConfig.Name names, size bytes long, while the guest runs. Where
// it is protected the copy of the other host becomes longer first, and then the one here. What is new
// reads as zeroes. It is called where the guest runs, and returns nil when the guest has a disk of
// that length, which DiskConfig.Grown is told; also if it had before, so that it can be called again.
//
// The error is a *StateError in other states, which names the host that has the guest if that is known; it
// matches replication.ErrSize if the disk is longer already, or cannot have that length;
// errors.ErrUnsupported if the image here cannot become longer; and it is a *RefusedError, with the
// other host's words, if that cannot make its copy longer, or is of a version that
// does not do that. Then nothing has changed, and the guest is as protected as before. After any other
// error, such as that of ctx, which bounds it all, or of the image here, the other host's copy may be longer
// already. That changes nothing for the guest. The disk here becomes as long by another
// call, or when the next session begins.
//
// A host without the other one makes its own disk longer. The other host's copy follows when the
// next session begins, if it is known to be of the same disk.
func (j *Job) Grow(ctx context.Context, disk string, size int64) error {
	d := j.diskOf(disk)
	if d == nil {
		return fmt.Errorf("protect: the guest has no disk %q", disk)
	}
	done, err := j.turn(ctx)
	if err != nil {
		return err
	}
	defer done()
	for {
		s, err := j.allowed(doGrow)
		if err != nil {
			return j.growsElsewhere(err)
		}
		if s == nil {
			err = d.growAlone(ctx, size)
		} else {
			err = j.growBoth(ctx, s, d, size)
		}
		if err == nil {
			d.tellGrown()
			j.ownLog().Info("a disk has grown", "side", j.side().String(), "checkpoint", uint64(0), "disk", disk, "bytes", size)
			return nil
		}
		switch {
		case ctx.Err() != nil:
			return fmt.Errorf("protect: grow disk %q: %w", disk, context.Cause(ctx))
		case errors.Is(err, errGrowAgain) && s != nil: // the session ends, or has not begun
			if _, e := j.over(ctx, s); e != nil {
				return fmt.Errorf("protect: grow disk %q: %w", disk, e)
			}
		case errors.Is(err, replication.ErrNotRunning) && s == nil: // a session begins, or ends
			if e := wait.For(ctx, minRedial); e != nil {
				return fmt.Errorf("protect: grow disk %q: %w", disk, e)
			}
		default:
			return fmt.Errorf("protect: grow disk %q: %w", disk, err)
		}
	}
}

// errGrowAgain says that a session has ended before it was known what comes of a growth.
var errGrowAgain = errors.New("the session has ended")

// growsElsewhere adds to a *StateError which host can make the disk longer.
func (j *Job) growsElsewhere(err error) error {
	var se *StateError
	if s := j.session(); errors.As(err, &se) && se.State == Following && s != nil {
		return fmt.Errorf("%w; %s has the guest, and makes the disk of both hosts longer", err, s.peer.host)
	}
	return err
}

// growAlone makes a disk longer that has no copy on another host now.
func (d *Disk) growAlone(ctx context.Context, size int64) error {
	p := d.leading()
	switch {
	case p == nil:
		return errIdle
	case p.Size() == size:
		return nil
	}
	return d.grow(ctx, p, size, nil)
}

// grow makes the disk of a primary longer.
func (d *Disk) grow(ctx context.Context, p *replication.Primary, size int64, remote replication.Remote) error {
	defer d.waits.end(d.waits.begin(opGrow))
	err := p.Grow(ctx, size, remote)
	if err == nil {
		d.lengthens(size)
	}
	return err
}

// lengthens notes how long the disk has become, which may have become longer still meanwhile.
func (d *Disk) lengthens(size int64) {
	for is := d.size.Load(); is < size && !d.size.CompareAndSwap(is, size); is = d.size.Load() {
	}
}

// tellGrown tells the guest's device how long the disk is, if that has not been told.
func (d *Disk) tellGrown() {
	d.telling.Lock()
	defer d.telling.Unlock()
	if size := d.size.Load(); size > d.told {
		if d.told = size; d.cfg.Grown != nil {
			d.cfg.Grown(size)
		}
	}
}

// growBoth makes the copy of a session's secondary longer and then that of the primary, which this host is.
func (j *Job) growBoth(ctx context.Context, s *session, d *Disk, size int64) (err error) {
	ctx, end := j.while(ctx, Protected)
	defer end()
	ctx, done := s.peer.until(ctx, func() bool { return s.peer.ended || s.peer.lost || s.peer.departs })
	defer done()
	p := d.leading()
	if p == nil || j.session() != s {
		return errGrowAgain
	}
	switch is := p.Size(); {
	case is == size:
		return nil
	case is > size:
		return fmt.Errorf("%w: it has %d bytes, and does not become shorter", replication.ErrSize, is)
	case !d.canGrow():
		return fmt.Errorf("%w: the image here cannot become longer", errors.ErrUnsupported)
	case !slices.Contains(s.peer.growing, d.cfg.Name):
		return refuse("the copy of %s cannot become longer, or that host is of a version that makes none longer while it follows", s.peer.host)
	}
	if err := d.failed(); err != nil {
		return err
	}
	defer func() {
		if err != nil && ctx.Err() != nil {
			err = fmt.Errorf("%w: %w", errGrowAgain, err)
		}
	}()
	if err := j.growThere(ctx, s, d.cfg.Name, size); err != nil {
		return err
	}
	remote, leave, err := j.reachGrown(ctx, s, d)
	if err != nil {
		return err
	}
	defer leave()
	for {
		err = d.grow(ctx, p, size, remote)
		if !errors.Is(err, replication.ErrRunning) {
			break
		}
		if wait.For(ctx, minRedial/10) != nil { // for the end of a checkpoint
			break
		}
	}
	if err != nil {
		return errors.Join(err, remote.Close())
	}
	return nil
}

// growThere has the secondary make its copy longer. It asks again where it hears nothing, since the
// control connection may be another by then.
func (j *Job) growThere(ctx context.Context, s *session, disk string, size int64) error {
	s.growth++
	n := note{Say: sayGrow, Seq: s.growth, Disk: disk, Size: size}
	for {
		answer := s.peer.answer(ctx, n, j.cfg.Lost, func() (*note, bool) { return s.peer.grown, false })
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case answer == nil:
		case answer.Reason != "":
			return &RefusedError{Reason: answer.Reason, There: true}
		default:
			return nil
		}
	}
}

// reachGrown makes the connections to a copy of the secondary that has become longer, in the place of
// those of the session, which end with the length that they began with. leave is called when what
// is returned has been tried; until then the connections end with ctx.
func (j *Job) reachGrown(ctx context.Context, s *session, d *Disk) (_ replication.Remote, leave func(), err error) {
	var clients [2]*nbd.Client // of writes and of the identity
	closeAll := func() {
		for _, c := range clients {
			if c != nil {
				c.Close()
			}
		}
	}
	p := s.peer
	h := hello{Guest: j.cfg.Name, Generation: p.generation, Host: j.cfg.Host, Token: p.token}
	channels := d.channels()
	for i := range clients {
		ch := channels[i]
		h.Channel = chGrown + ch
		conn, _, err := dial(ctx, &j.cfg, h)
		if err == nil {
			clients[i], err = nbd.NewClient(ctx, conn, nbd.ClientConfig{Export: ch, Logger: d.log})
		}
		if err != nil {
			closeAll()
			return nil, nil, err
		}
	}
	stop := wait.AtEnd(ctx, closeAll)
	return replication.WithIdentity(clients[0], clients[1]), func() { stop() }, nil
}
