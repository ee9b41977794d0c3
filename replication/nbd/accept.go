package nbd

import (
	"context"
	"errors"
	"net"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/gocolo/lockstep/internal/wait"
)

// passing are the errors of accept(2) after which it is worth accepting again: the client
// has left already, or the host is short of something. The listener still works.
var passing = []error{
	syscall.ECONNABORTED, syscall.ECONNRESET, syscall.EINTR, syscall.EAGAIN, syscall.EPROTO, syscall.EPERM, // a firewall's refusal is EPERM
	syscall.ENETDOWN, syscall.ENETUNREACH, syscall.EHOSTDOWN, syscall.EHOSTUNREACH, syscall.ETIMEDOUT,
}

// short are those of them that a connection which is closed may end.
var short = []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM}

func isShort(err error) bool   { return isOneOf(err, short) }
func isPassing(err error) bool { return isOneOf(err, passing) || isShort(err) || isTimeout(err) }

func isOneOf(err error, all []error) bool {
	return slices.ContainsFunc(all, func(e error) bool { return errors.Is(err, e) })
}

const (
	firstPause = 5 * time.Millisecond // after an error that passes; then twice as long each time
	maxPause   = time.Second

	// Where a connection waits for room, one that is still in negotiation is closed for
	// it, if it has been silent for this long, or if a patience-th of its time for
	// negotiation has passed.
	silence  = time.Second
	patience = 8

	// Where they come faster than that lets go, as when one host opens thousands, silence is halved
	// for each MaxConns connections that were closed for it, so often at most. A client across an
	// ocean still gets in then.
	haste = 3
)

// Serve accepts connections from ln and serves them until ctx ends; it then
// closes ln and the connections, waits for what they have under way, and
// returns ErrServerClosed. If ln fails first, it does the same and returns
// why. Errors of accepting that pass, such as that the process has no
// descriptor left, do not end it: it tries again, after a pause that grows.
//
// When MaxConns connections are there and another one comes, one that is still
// in negotiation and silent is closed instead of waited for.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer wait.AtEnd(ctx, func() { ln.Close() })()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	room := newRoom(s.cfg.MaxConns, s.cfg.Timeout)
	pause := time.Duration(0)
	for {
		conn, err := ln.Accept()
		switch {
		case err == nil:
			pause = 0
		case ctx.Err() != nil:
			return ErrServerClosed
		case isPassing(err):
			if isShort(err) {
				room.shed(time.Now()) // it may be because of that one
			}
			if pause == 0 && s.cfg.Logger != nil {
				s.cfg.Logger.Warn("no client of a disk can be accepted for now", "error", err)
			}
			pause = min(max(2*pause, firstPause), maxPause)
			if wait.For(ctx, pause) != nil {
				return ErrServerClosed
			}
			continue
		default:
			ln.Close()
			return err
		}
		at := room.enter(ctx, conn)
		if at == nil {
			conn.Close()
			return ErrServerClosed
		}
		wg.Go(func() {
			defer room.leave(at)
			err := s.serve(ctx, conn, at)
			if s.cfg.OnConn != nil {
				s.cfg.OnConn(conn.RemoteAddr(), err)
			}
		})
	}
}

// room counts connections. It closes silent ones where others wait.
type room struct {
	max  int
	long time.Duration // how long a negotiation may last while others wait

	mu     sync.Mutex
	places map[*place]struct{}
	closed int           // of late to make room, but for those that found room at once
	left   chan struct{} // has an element if a connection has left since it was empty
}

// place is the place in a room that the connection of one client has.
type place struct {
	room  *room
	conn  net.Conn
	came  time.Time
	heard time.Time // when the client last sent something
	stays bool      // it must not be shut: it has negotiated, or has been shut already
	shut  bool      // it was closed to make room for another
}

func newRoom(max int, timeout time.Duration) *room {
	return &room{max: max, long: timeout / patience, places: make(map[*place]struct{}), left: make(chan struct{}, 1)}
}

// enter waits for room and returns the place of conn, or nil when ctx ends before. It is
// called by one goroutine at a time.
func (r *room) enter(ctx context.Context, conn net.Conn) *place {
	for first := true; ; first = false {
		now := time.Now()
		r.mu.Lock()
		if len(r.places) < r.max {
			if first && r.closed > 0 {
				r.closed--
			}
			at := &place{room: r, conn: conn, came: now, heard: now}
			r.places[at] = struct{}{}
			r.mu.Unlock()
			return at
		}
		r.mu.Unlock()
		next := r.shed(now)
		if next == 0 {
			next = r.long + silence // no connection negotiates; one may leave
		}
		t := time.NewTimer(next)
		select {
		case <-r.left:
		case <-t.C:
		case <-ctx.Done():
		}
		t.Stop()
		if ctx.Err() != nil {
			return nil
		}
	}
}

// shed closes the connection that has negotiated longest, among those that have been
// silent or there for too long. If there is none, it returns after how long there may be
// one; zero: never.
func (r *room) shed(now time.Time) (next time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out *place
	quiet := silence >> min(r.closed/r.max, haste)
	for at := range r.places {
		if at.stays {
			continue
		}
		due := min(quiet-now.Sub(at.heard), r.long-now.Sub(at.came))
		switch {
		case due <= 0:
			if out == nil || at.came.Before(out.came) {
				out = at
			}
		case next == 0 || due < next:
			next = due
		}
	}
	if out == nil {
		return next
	}
	out.stays, out.shut = true, true
	r.closed = min(r.closed+1, r.max*haste)
	out.conn.Close()
	return r.long + silence // it leaves before that
}

func (r *room) leave(at *place) {
	r.mu.Lock()
	delete(r.places, at)
	r.mu.Unlock()
	select {
	case r.left <- struct{}{}:
	default:
	}
}

// spoke is called when the client has sent something.
func (at *place) spoke() {
	if at != nil {
		at.room.mu.Lock()
		at.heard = time.Now()
		at.room.mu.Unlock()
	}
}

// pushed reports whether the connection has been closed to make room for
// another.
func (at *place) pushed() bool {
	if at == nil {
		return false
	}
	at.room.mu.Lock()
	defer at.room.mu.Unlock()
	return at.shut
}

// settle is called when the client has negotiated. From then on it may be silent
// without being closed.
func (at *place) settle() {
	if at != nil {
		at.room.mu.Lock()
		at.stays = true
		at.room.mu.Unlock()
	}
}
