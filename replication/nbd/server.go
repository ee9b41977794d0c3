package nbd

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"sync"
	"time"
)

// ServerConfig bounds a [Server]. The zero value is ready.
type ServerConfig struct {
	// TLS, if not nil, is offered by STARTTLS. A caller that wants TLS from
	// the first byte hands ServeConn a *tls.Conn instead.
	TLS *tls.Config
	// RequireTLS serves nothing before STARTTLS.
	RequireTLS bool
	// MaxRequest is the length, in bytes, of the largest read or write, and
	// is announced to clients; zero means 32 MiB.
	MaxRequest uint32
	// MaxRequests bounds the requests of one connection that are served at
	// the same time; zero means 64. The client waits for room.
	MaxRequests int
	// MaxBytes bounds the length of their data, in bytes; zero means 64 MiB,
	// and less than MaxRequest means MaxRequest.
	MaxBytes int64
	// MaxConns bounds the connections that Serve serves at a time; zero means
	// 64. Others wait to be accepted.
	MaxConns int
	// Timeout is how long negotiation as a whole, and the client's taking of
	// a reply, may last; zero means 30 s. A client that asks nothing is
	// waited for without end.
	Timeout time.Duration
	// OnConn is called when a connection has ended, with its address and
	// why; nil is an orderly end. It is called from the connection's
	// goroutine and may be called by several at the same time.
	OnConn func(addr net.Addr, err error)
}

// Server serves exports. Its methods may be called from any goroutine.
type Server struct {
	cfg ServerConfig

	mu      sync.Mutex
	exports map[string]*Export // by name, without generation
}

// NewServer returns a Server without exports.
func NewServer(cfg ServerConfig) *Server {
	if cfg.MaxRequest == 0 {
		cfg.MaxRequest = 32 << 20
	}
	if cfg.MaxRequests == 0 {
		cfg.MaxRequests = 64
	}
	if cfg.MaxBytes == 0 {
		cfg.MaxBytes = 64 << 20
	}
	cfg.MaxBytes = max(cfg.MaxBytes, int64(cfg.MaxRequest))
	if cfg.MaxConns == 0 {
		cfg.MaxConns = 64
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = 30 * time.Second
	}
	return &Server{cfg: cfg}
}

// Serve accepts connections from ln and serves them until ctx ends; it then
// closes ln and the connections, waits for what they have under way, and
// returns ErrServerClosed. If ln fails first, it does the same and returns
// why.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { ln.Close() })
	defer stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	room := make(chan struct{}, s.cfg.MaxConns)
	for {
		select {
		case room <- struct{}{}:
		case <-ctx.Done():
			return ErrServerClosed
		}
		conn, err := ln.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return ErrServerClosed
			}
			if ne, ok := err.(net.Error); ok && ne.Timeout() {
				<-room
				continue
			}
			ln.Close()
			return err
		}
		wg.Go(func() {
			defer func() { <-room }()
			err := s.ServeConn(ctx, conn)
			if s.cfg.OnConn != nil {
				s.cfg.OnConn(conn.RemoteAddr(), err)
			}
		})
	}
}

// ServeConn serves one connection, which it closes, until the client
// disconnects (it then returns nil), the connection fails, the client breaks
// the protocol (a *ProtocolError), the export is closed, or ctx ends. It
// returns after everything under way is done.
func (s *Server) ServeConn(ctx context.Context, conn net.Conn) error {
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	err := s.serveConn(conn)
	if ctx.Err() != nil && errors.Is(err, net.ErrClosed) {
		return ctx.Err()
	}
	return err
}

func (s *Server) serveConn(conn net.Conn) error {
	if err := conn.SetDeadline(time.Now().Add(s.cfg.Timeout)); err != nil {
		return err
	}
	n := &negotiation{srv: s, raw: conn, conn: conn}
	e, err := n.run()
	if e == nil {
		return err
	}
	defer n.leave()
	if err := conn.SetDeadline(time.Time{}); err != nil {
		return err
	}
	return serveRequests(s, e, n.conn, n.r)
}
