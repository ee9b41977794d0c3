package main

import (
	"context"
	"errors"
	"io"
	"net"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/colo/proxy"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// A secondary follows the primary's guest.
type secondary struct {
	*side
	board   *switchboard
	left    chan struct{} // closed when the primary is not heard on the control connection
	session *colo.Secondary
}

func runSecondary(ctx context.Context, o options, c *console, p *printer) (err error) {
	if err := o.hw.probe(); err != nil {
		return err
	}
	s := &secondary{side: newSide(ctx, o, c, p), left: make(chan struct{})}
	defer func() { err = s.close(err) }()
	if s.disk, err = openDisk(ctx, o, p, &s.events); err != nil {
		return err
	}
	t, err := openCable(o)
	if err != nil {
		return err
	}
	if s.board, err = newSwitchboard(o.on); err != nil {
		return err
	}
	s.group.Go(func() { s.board.serve(s.ctx) })
	p.phase("listening", "on %v", s.board.l.Addr())
	if err := s.agree(ctx, t); err != nil {
		return err
	}
	s.tell(func(r event.Record) {
		if _, ok := r.Event.(event.DiskOverlayHalfFull); ok {
			s.group.Go(func() { s.peer.say(note{Say: sayCheckpoint}) })
		}
	})
	s.run()

	over := make(chan error, 1)
	s.group.Go(func() { over <- s.follow() })
	for {
		select {
		case err := <-over:
			if !tookOver(err) {
				return s.farewell(err)
			}
			over = nil
			s.listen(nil)
			s.p.wentAlone(s.session.Info().Epoch, err)
			s.guest.goAlone()
		case err := <-s.ended:
			return s.guestEnded(err)
		case <-ctx.Done():
			p.phase("ended", "as ordered")
			return nil
		}
	}
}

// agree waits for the primary, compares configurations and makes the guest.
func (s *secondary) agree(ctx context.Context, t cable) error {
	conn, err := s.board.take(ctx, chControl)
	if err != nil {
		return err
	}
	var theirs hello
	ready := func() error {
		g := newGuest(s.o)
		return s.build(newNetwork(s.o, t, theirs.Continuous, g, nil), g)
	}
	if err := receive(conn, newHello(s.o, s.disk.size()), &theirs, ready, s.board.admit); err != nil {
		return errors.Join(err, conn.Close())
	}
	s.peer = newPeer(event.ModeSecondary, conn, s.o.arbiter)
	s.group.Go(func() {
		s.peer.serve(s.ctx)
		close(s.left)
	})
	return nil
}

// errLeft: the primary is gone before there was a guest to take over.
var errLeft = errors.New("the primary has left before the guest was protected")

// follow takes the guest over from the primary and keeps it in step. It returns
// when this side has gone on alone (see tookOver), or why it has not.
func (s *secondary) follow() error {
	if s.disk != nil {
		s.group.Go(func() { s.disk.serve(s.ctx, s.board) })
	}
	ctx, leave := context.WithCancel(s.ctx)
	defer leave()
	if s.net != nil {
		s.group.Go(func() {
			s.net.serve(ctx, func() (io.ReadWriteCloser, error) { return s.board.take(ctx, chNetwork) })
		})
	}
	waiting, begun := context.WithCancelCause(ctx)
	defer begun(nil)
	s.group.Go(func() {
		select {
		case <-s.left:
			begun(errLeft)
		case <-waiting.Done():
		}
	})
	link, err := s.board.take(waiting, chCOLO)
	if err != nil {
		return err
	}
	beat, err := s.board.take(waiting, chHeartbeat)
	if err == nil {
		if err = s.net.connected(waiting); err != nil {
			err = errors.Join(err, beat.Close())
		}
	}
	begun(nil)
	if err != nil {
		return errors.Join(err, link.Close())
	}
	cache, err := s.newSession(link)
	if err != nil {
		return errors.Join(err, link.Close(), beat.Close())
	}
	s.beat(ctx, beat, s.session.Lost)
	err = s.session.Run(s.ctx)
	return errors.Join(err, cache.Close())
}

func (s *secondary) newSession(link net.Conn) (*ram.Cache, error) {
	cache, err := ram.NewCache(s.guest.Blocks(), s.guest.DirtyLog(), ram.CacheConfig{})
	if err != nil {
		return nil, err
	}
	if err := errors.Join(
		cache.Register(&s.state),
		s.guest.Register(&s.state),
		s.net.register(&s.state),
	); err != nil {
		return nil, errors.Join(err, cache.Close())
	}
	cfg := colo.SecondaryConfig{
		VM: s.net.vm(s.guest), State: &s.state, RAM: &stage{cache, s.guest}, Disks: s.disk.replicas(),
		Events: &s.events, Arbiter: s.peer, Heartbeat: &s.pulse, Machine: machineType, PeerTimeout: s.o.peerTimeout(),
	}
	if s.net != nil {
		cfg.Net = &moving{s.net.secondary, s.net, s.side}
	}
	if s.session, err = colo.NewSecondary(link, cfg); err != nil {
		return nil, errors.Join(err, cache.Close())
	}
	return cache, nil
}

// moving is a secondary's network that announces the guest when it goes on here.
type moving struct {
	*proxy.Secondary
	net  *network
	side *side
}

// Failover implements colo.SecondaryNetwork.
func (m *moving) Failover() error {
	m.net.announce()
	m.side.group.Go(func() { m.net.announceAgain(m.side.ctx) })
	return m.Secondary.Failover()
}
