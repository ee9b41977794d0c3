package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/colo/quickack"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/event/qmp"
	"github.com/gocolo/lockstep/vmstate"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// follower is a QEMU secondary of the relay.
type follower struct {
	r       *relayRun
	addr    string
	monitor string
	xbzrle  uint64
	creds   *certificates // nil: without TLS

	stop context.CancelFunc // ends its sessions; nil: there has been none
	done chan struct{}      // closed when they have ended
	ever atomic.Bool        // it has been sent the guest
	log  *slog.Logger       // of its sessions; nil: nowhere

	mu      sync.Mutex
	session *colo.Primary // nil: not connected
	epoch   uint64        // of the guest, that it has loaded
	synced  bool          // the secondary has loaded a checkpoint, in this session
	goesOn  bool          // it was told to go on
	why     string        // the last session has ended, or none has begun; "": none was tried
	changed chan struct{} // closed when any of these changes
}

// begin starts to keep a session with the secondary, until end.
func (s *follower) begin(ctx context.Context) {
	ctx, s.stop = context.WithCancel(ctx)
	s.done = make(chan struct{})
	s.log = logOf(s.r.sessionLog(), "secondary", s.addr)
	go func() {
		defer close(s.done)
		s.run(ctx)
	}()
}

// end ends its session, if there is one.
func (s *follower) end() {
	if s.stop != nil {
		s.stop()
		<-s.done
	}
}

// live reports whether there is a session.
func (s *follower) live() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.session != nil
}

// run keeps a session with the secondary, and begins another when it ends.
func (s *follower) run(ctx context.Context) {
	said := ""
	for ctx.Err() == nil {
		err := s.follow(ctx)
		if ctx.Err() != nil {
			return
		}
		s.update(func() { s.why = oneLine(err) })
		if text := err.Error(); text != said {
			said = text
			s.r.p.warn("secondary %s: %v", s.addr, err)
		}
		s.r.p.object(map[string]any{"secondary": s.addr, "error": err.Error()})
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
		}
	}
}

// follow is one session. It returns why it ended.
func (s *follower) follow(ctx context.Context) error {
	conn, err := s.connect(ctx)
	if err != nil {
		return err
	}
	reg := new(vmstate.Registry)
	rep, saver, err := s.r.guest.NewReplica(reg, ram.SaverConfig{XBZRLE: int64(s.xbzrle)})
	if err != nil {
		conn.Close()
		return err
	}
	defer rep.Close()
	in, err := s.r.guest.Info()
	if err != nil {
		conn.Close()
		return err
	}
	var why error
	events := new(event.Bus)
	event.Subscribe(events, func(c event.CheckpointCommit) {
		s.r.p.object(map[string]any{"secondary": s.addr, "epoch": rep.Epoch(), "pages": c.Pages, "ms": float64(c.TransferNS+c.CommitNS) / 1e6})
		if c.Epoch == 0 {
			s.r.p.say("following   %s has the guest", s.addr)
		}
		s.update(func() { s.epoch, s.synced = rep.Epoch(), true })
	})
	session, err := colo.NewPrimary(conn, colo.PrimaryConfig{
		VM: rep, State: reg, RAM: saver, Events: events, Machine: in.Machine, Step: rep.Step,
		CheckpointDelay: 24 * time.Hour, PeerTimeout: s.r.peer, Logger: s.log,
		Arbiter: colo.ArbiterFunc(func(_ context.Context, c colo.Claim) error {
			why = c.Cause
			return fmt.Errorf("%w: a relay runs no guest", colo.ErrRefused)
		}),
	})
	if err != nil {
		conn.Close()
		return err
	}
	s.ever.Store(true)
	s.update(func() { s.session = session })
	defer s.update(func() { s.session, s.synced = nil, false })
	session.RequestCheckpoint(event.CauseRequest) // for what came during the initial migration
	err = session.Run(ctx)
	if why != nil {
		err = why
	}
	if err == nil {
		err = errors.New("the session has ended")
	}
	return err
}

func (s *follower) connect(ctx context.Context) (net.Conn, error) {
	network, address := qmp.Split(s.addr)
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	conn = quickack.Conn(conn)
	if s.creds == nil {
		return conn, nil
	}
	t := tls.Client(conn, s.creds.now())
	if err := handshake(ctx, t); err != nil {
		conn.Close()
		return nil, err
	}
	return t, nil
}

// request asks for a checkpoint; requests coalesce.
func (s *follower) request() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.session != nil {
		s.session.RequestCheckpoint(event.CauseRequest)
	}
}

func (s *follower) update(fn func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fn()
	if s.changed != nil {
		close(s.changed)
		s.changed = nil
	}
}

// has reports whether the secondary has the guest of epoch, or a later one.
func (s *follower) has(epoch uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.synced && s.epoch >= epoch
}

// follows reports whether the secondary has a whole guest and its session runs.
func (s *follower) follows() bool { return s.has(0) }

// reaches waits until the secondary has the guest of epoch; it returns false if
// it is lost first or ctx ends.
func (s *follower) reaches(ctx context.Context, epoch uint64) bool {
	if s.has(epoch) {
		return true
	}
	s.request()
	for {
		s.mu.Lock()
		there, gone := s.synced && s.epoch >= epoch, s.session == nil
		if s.changed == nil {
			s.changed = make(chan struct{})
		}
		changed := s.changed
		s.mu.Unlock()
		switch {
		case gone:
			return false
		case there:
			return true
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return false
		}
	}
}
