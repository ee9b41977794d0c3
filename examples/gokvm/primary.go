package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// A primary runs the guest, and has it protected.
type primary struct {
	*side
	token   string
	pace    pacer
	session atomic.Pointer[colo.Primary] // nil before it begins
	failed  atomic.Bool                  // it ended before there was anything to take over
}

// connectFor is how long the secondary may take to be there.
const connectFor = time.Minute

// endFor is how long the secondary may take to hear that the guest has ended.
const endFor = 5 * time.Second

func runPrimary(ctx context.Context, o options, c *console, p *printer) (err error) {
	if err := o.hw.probe(); err != nil {
		return err
	}
	s := &primary{side: newSide(ctx, o, c, p)}
	s.pace = pacer{least: o.atLeast, request: func(c event.Cause) {
		if session := s.session.Load(); session != nil {
			session.RequestCheckpoint(c)
		}
	}}
	defer s.pace.close()
	defer func() { err = s.close(err) }()
	if s.disk, err = openDisk(ctx, o, p, &s.events); err != nil {
		return err
	}
	t, err := openCable(o)
	if err != nil {
		return err
	}
	g := newGuest(o)
	if err := s.build(newNetwork(o, t, o.continuous, g, s.pace.ask), g); err != nil {
		return err
	}
	if err := s.agree(ctx); err != nil {
		return err
	}
	s.tell(func(r event.Record) {
		switch e := r.Event.(type) {
		case event.CheckpointCommit:
			s.pace.committed(r.Time)
		case event.Migration:
			s.failed.Store(e.Status == "failed")
		}
	})
	s.listen(func() { s.pace.ask(event.CauseRequest) })
	s.run()
	if err := s.net.vm(g).Resume(ctx); err != nil {
		return err
	}

	over := make(chan error, 1)
	s.group.Go(func() { over <- s.protect() })
	for {
		select {
		case err := <-s.ended:
			return s.finish(err, over)
		case err := <-over:
			over = nil
			switch {
			case tookOver(err):
				s.p.wentAlone(s.session.Load().Info().Epoch, err)
			case errors.Is(err, errUnprotected):
				s.p.phase("unprotected", "the guest runs here only: %v", err)
			default:
				return s.farewell(err)
			}
		case <-ctx.Done():
			s.sayEnd("as ordered on the primary's host", over)
			s.p.phase("ended", "as ordered")
			return nil
		}
	}
}

// agree connects to the secondary and compares configurations.
func (s *primary) agree(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, connectFor, fmt.Errorf("the secondary was not to be had within %v", connectFor))
	defer cancel()
	var conn net.Conn
	for said := false; conn == nil; {
		var err error
		if conn, err = dialChannel(ctx, s.o.peer, chControl, "-"); err == nil {
			break
		}
		if !said {
			s.p.say("waiting for the secondary: %v", err)
			said = true
		}
		select {
		case <-time.After(serveRetry):
		case <-ctx.Done():
			return fmt.Errorf("%w (%w)", context.Cause(ctx), err)
		}
	}
	token, err := greet(conn, newHello(s.o, s.disk.size()))
	if err != nil {
		return errors.Join(err, conn.Close())
	}
	s.token = token
	s.peer = newPeer(event.ModePrimary, conn, s.o.arbiter)
	s.peer.asked = func() { s.pace.ask(event.CauseLimit) }
	s.group.Go(func() { s.peer.serve(s.ctx) })
	return nil
}

// errUnprotected: the pair never came to be, and the guest runs.
var errUnprotected = errors.New("not protected")

// protect makes the secondary a copy and keeps it one. It returns when this side
// has gone on alone (see tookOver), or why it has not.
func (s *primary) protect() error {
	unprotected := func(what string, err error) error {
		return fmt.Errorf("%w: %s: %w", errUnprotected, what, err)
	}
	dial := func(channel string) (net.Conn, error) { return dialChannel(s.ctx, s.o.peer, channel, s.token) }
	if s.disk != nil {
		conn, err := dial(chDisk)
		if err != nil {
			return unprotected("disk", err)
		}
		s.group.Go(func() { s.disk.primary.Run(s.ctx) })
		if err := s.disk.attach(s.ctx, conn); err != nil {
			return unprotected("disk", err)
		}
	}
	ctx, leave := context.WithCancel(s.ctx)
	defer leave()
	if s.net != nil {
		s.group.Go(func() {
			s.net.serve(ctx, func() (io.ReadWriteCloser, error) { return dial(chNetwork) })
		})
	}
	if err := s.net.connected(ctx); err != nil {
		return unprotected("network", err)
	}
	link, err := dial(chCOLO)
	if err != nil {
		return unprotected("session", err)
	}
	beat, err := dial(chHeartbeat)
	if err != nil {
		return unprotected("heartbeat", errors.Join(err, link.Close()))
	}
	session, err := s.newSession(link)
	if err != nil {
		return unprotected("session", errors.Join(err, link.Close(), beat.Close()))
	}
	s.session.Store(session)
	s.beat(ctx, beat, session.Lost)
	if err = session.Run(s.ctx); err != nil && s.failed.Load() {
		return unprotected("session", err)
	}
	return err
}

func (s *primary) newSession(link net.Conn) (*colo.Primary, error) {
	saver := ram.NewSaver(s.guest.Blocks(), s.guest.DirtyLog(), ram.SaverConfig{})
	if err := errors.Join(
		saver.Register(&s.state),
		s.guest.Register(&s.state),
		s.net.register(&s.state),
	); err != nil {
		return nil, err
	}
	cfg := colo.PrimaryConfig{
		VM: s.net.vm(s.guest), State: &s.state, RAM: saver, Disks: s.disk.replicas(),
		Events: &s.events, Arbiter: s.peer, Heartbeat: &s.pulse, Machine: machineType,
		CheckpointDelay: s.o.interval, LateResume: s.o.lateResume, PeerTimeout: s.o.peerTimeout(),
		CheckpointTimeout: s.o.patience,
	}
	if s.net != nil {
		cfg.Net = s.net.primary
	}
	return colo.NewPrimary(link, cfg)
}

// finish is the end of the guest.
func (s *primary) finish(err error, over <-chan error) error {
	how := howEnded(err)
	if how == "" {
		if session := s.session.Load(); session != nil && over != nil {
			session.Yield(err)
			<-over
		}
		return err // the secondary has a guest that is well, and goes on
	}
	s.sayEnd(how, over)
	return s.guestEnded(err)
}

// sayEnd tells the secondary that there is no guest any more, and ends the
// session as one that goes on alone, so that everything may leave that was held.
func (s *primary) sayEnd(why string, over <-chan error) {
	if over == nil {
		return // nobody follows
	}
	ctx, cancel := context.WithTimeout(s.ctx, endFor)
	defer cancel()
	s.p.willEnd()
	s.peer.end(ctx, why)
	session := s.session.Load()
	if session == nil {
		return
	}
	session.Fenced() // the secondary has heard it, or is lost
	<-over
}
