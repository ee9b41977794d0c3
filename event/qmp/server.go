package qmp

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/internal/qjson"
	"github.com/gocolo/lockstep/internal/wait"
)

// The defaults of a Server.
const (
	DefaultMaxClients = 16
	DefaultMaxValue   = 4 << 20
	DefaultMaxBacklog = 16 << 20
	DefaultMaxEvents  = 1024
	DefaultStall      = 30 * time.Second
)

// MaxInFlight is how many commands of a client that has enabled out-of-band
// execution may wait behind the one that runs; then no more is read of it, out
// of band or not. Of one that has not nothing is read while a command runs.
const MaxInFlight = 8

// A Version is the version that a monitor gives in its greeting.
type Version struct {
	Major, Minor, Micro int
	Package             string // whose build it is
}

// A Server serves a monitor to any number of clients. Its fields are set before
// it is used.
type Server struct {
	// Commands are the commands of the host; nil: there are only those that need no host.
	Commands *Commands

	// Bus is where the events come from that clients see, as QMP prints them and limited
	// as QEMU limits them ([event.Limiter]); nil: there are none. A client does not see
	// what was published before it had negotiated.
	Bus *event.Bus

	// Version is given in the greeting and by query-version; zero is QEMU 7.2.22, which this
	// package imitates.
	Version Version

	// MaxClients bounds how many clients are served at a time. A further client can
	// connect, but gets no greeting until another leaves, as with a QEMU, which serves
	// one; or until it takes the place of a client that has not said qmp_capabilities
	// within ten seconds, or less where many have come that say nothing. 0 is
	// [DefaultMaxClients].
	MaxClients int

	// MaxValue bounds a client's command, in bytes without blanks. 0 is
	// [DefaultMaxValue]; QEMU has 64 MiB.
	MaxValue int

	// MaxBacklog bounds the answers that a client has not read, in bytes; then no
	// more of its commands are executed. 0 is [DefaultMaxBacklog].
	MaxBacklog int

	// MaxEvents bounds the events that a client has not read; those beyond are
	// dropped, and counted. 0 is [DefaultMaxEvents].
	MaxEvents int

	// Stall is how long a client may take no byte of what waits for it before it
	// is closed. 0 is [DefaultStall].
	Stall time.Duration

	// Quit ends the host; nil: there is no command quit. It is called when the client
	// has its answer and has been closed, once for each client that says quit. It must
	// not wait for Serve to return.
	Quit func()

	// Log gets a record for each client that is closed because it stalls (Warn), one a second at
	// most for clients that are closed because they are browsers, or say nothing while others
	// wait (Warn), and one for each that comes and goes (Debug). Nil: nothing is logged.
	Log *slog.Logger

	dropped atomic.Uint64
}

// Dropped returns how many events clients have missed because they did not read.
// It may be called from any goroutine.
func (s *Server) Dropped() uint64 { return s.dropped.Load() }

// Serve accepts clients of l, which it closes, and serves them until ctx ends; it
// returns the cause, or net.ErrClosed if l was closed before. After any other error of l, such
// as that there is no descriptor left, it tries again. When it returns all clients are closed
// and no goroutine of its own is left; it waits for commands that run. It may be
// called for several listeners at once.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer wait.AtEnd(ctx, func() { l.Close() })()
	defer l.Close()

	h := newHub(s)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel(nil)
	wg.Go(func() { h.limit(ctx) })
	defer s.Bus.SubscribeAll(h.event)()

	all := newPlaces(positive(s.MaxClients, DefaultMaxClients), s.Log)
	for pause := time.Millisecond; ; {
		conn, err := l.Accept()
		switch {
		case err == nil:
			pause = time.Millisecond
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, net.ErrClosed):
			return err
		default: // out of descriptors, say, or refused by a firewall, which passes
			if err := wait.For(ctx, pause); err != nil {
				return err
			}
			pause = min(2*pause, time.Second)
			continue
		}
		p := all.take(ctx, conn)
		if p == nil {
			conn.Close()
			return context.Cause(ctx)
		}
		wg.Go(func() {
			defer all.leave(p)
			s.serve(ctx, h, conn, p)
		})
	}
}

// ServeConn serves one client, until it leaves, or ctx ends; then it returns the
// cause. It closes conn.
func (s *Server) ServeConn(ctx context.Context, conn net.Conn) error {
	h := newHub(s)
	ctx, cancel := context.WithCancelCause(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel(nil)
	wg.Go(func() { h.limit(ctx) })
	defer s.Bus.SubscribeAll(h.event)()
	s.serve(ctx, h, conn, newPlaces(1, s.Log).take(ctx, conn))
	return context.Cause(ctx)
}

func positive[T int | time.Duration](n, or T) T {
	if n > 0 {
		return n
	}
	return or
}

func (s *Server) version() Version {
	if s.Version == (Version{}) {
		return Version{7, 2, 22, "lockstep"}
	}
	return s.Version
}

// versionInfo has the fields that value returns, for the schema. (QAPI struct VersionInfo.)
type versionInfo struct {
	QEMU struct {
		Major int64 `json:"major"`
		Minor int64 `json:"minor"`
		Micro int64 `json:"micro"`
	} `json:"qemu"`
	Package string `json:"package"`
}

func (v Version) value() qjson.Object {
	return qjson.Object{
		{Name: "qemu", Value: qjson.Object{
			{Name: "major", Value: int64(v.Major)}, {Name: "minor", Value: int64(v.Minor)}, {Name: "micro", Value: int64(v.Micro)},
		}},
		{Name: "package", Value: v.Package},
	}
}

// hub hands the events of a bus to the clients of one call of Serve.
type hub struct {
	s    *Server
	wake chan struct{} // capacity 1: the limiter keeps something new

	mu      sync.Mutex
	limiter event.Limiter
	clients map[*client]struct{} // those that have negotiated
}

func newHub(s *Server) *hub {
	return &hub{s: s, wake: make(chan struct{}, 1), clients: make(map[*client]struct{})}
}

// event takes a record on the publisher's goroutine. It does not block.
func (h *hub) event(r event.Record) {
	h.mu.Lock()
	defer h.mu.Unlock()
	_, limited := event.LimitKey(r.Event)
	if h.limiter.Put(time.Now(), r) {
		h.say(r)
	}
	if limited {
		select {
		case h.wake <- struct{}{}:
		default:
		}
	}
}

// say gives a record to all clients. The caller holds mu.
func (h *hub) say(r event.Record) {
	if len(h.clients) == 0 {
		return
	}
	v, err := encode(r)
	if err != nil {
		if h.s.Log != nil {
			h.s.Log.Error("an event does not encode", "event", r.Event.Name(), "err", err)
		}
		return
	}
	line := append(qjson.Append(nil, v), "\r\n"...)
	for c := range h.clients {
		if !c.out.event(line) {
			h.s.dropped.Add(1)
		}
	}
}

// limit hands over what the limiter has kept, when it is due.
func (h *hub) limit(ctx context.Context) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		h.mu.Lock()
		for _, r := range h.limiter.Due(time.Now()) {
			h.say(r)
		}
		at, ok := h.limiter.Next()
		h.mu.Unlock()
		timer.Reset(time.Hour)
		if ok {
			timer.Reset(time.Until(at))
		}
		select {
		case <-timer.C:
		case <-h.wake:
		case <-ctx.Done():
			return
		}
	}
}

func (h *hub) join(c *client) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.clients[c] = struct{}{}
}

func (h *hub) leave(c *client) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.clients, c)
}
