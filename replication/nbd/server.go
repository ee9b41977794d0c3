package nbd

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/gocolo/lockstep/internal/wait"
)

// ServerConfig bounds a [Server]. The zero value is ready.
type ServerConfig struct {
	// TLS, if not nil, is offered by STARTTLS. A caller that wants TLS from
	// the first byte hands ServeConn a *tls.Conn instead. A QEMU over GnuTLS 3.7 shows no certificate with an
	// RSA key over TLS 1.3 where ClientCAs are set, as their names are sent: a server that wants one has
	// tls.RequireAnyClientCert, and verifies it in VerifyConnection.
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
	// MaxTotalBytes bounds the memory for the data of requests of all
	// connections together, in bytes; zero means 256 MiB, and less than
	// MaxRequest means MaxRequest. A request waits for room. The runtime gives memory back
	// later, so that the process may have twice as much for a while. Besides, each
	// connection has a buffer of 16 KiB, or of 64 KiB once more than that came at a time.
	MaxTotalBytes int64
	// MaxConns bounds the connections that Serve serves at a time; zero means
	// 64. Others wait for one of them to end. Meanwhile a connection that
	// should negotiate and is silent for a second is closed, or for an eighth of one while
	// many wait.
	MaxConns int
	// Timeout is how long negotiation as a whole, the arrival of each 64 KiB of the
	// data of a write, and the client's taking of each 64 KiB of replies (or an eighth
	// longer), may last; zero means 30 s. So a slow link, of 18 kbit/s at least, is not
	// taken for a lost one, and a client that sends byte by byte does not keep the
	// memory of its requests.
	// A client that asks nothing is waited for without end.
	Timeout time.Duration
	// OnConn is called when a connection has ended, with its address and
	// why; nil is an orderly end. It is called from the connection's
	// goroutine and may be called by several at the same time.
	OnConn func(addr net.Addr, err error)
	// OnClient is called when a connection has come to an export, with the connection that
	// ServeConn was given, or that Serve has accepted. It is called from the connection's
	// goroutine, before the first request is read, and may be called by several at the
	// same time. By it a caller of ServeConn, which has to bound connections itself, knows
	// those that only take room.
	OnClient func(conn net.Conn, e *Export)

	// Logger hears of clients that are refused or whose connections fail, of those that are
	// closed to make room for others, and that none can be accepted for now (Warn; of one
	// client's refusals the first, the others are Debug), and of those that come and go
	// (Debug). A record has the client's address and, once the client has chosen, the
	// export and its generation, if it has one; to name the guest too, a host adds an
	// attribute with the logger's With. Nothing is logged for a request. Nil: nothing is
	// logged.
	Logger *slog.Logger
}

// Server serves exports. Its methods may be called from any goroutine.
type Server struct {
	cfg    ServerConfig
	memory *memory

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
	if cfg.MaxTotalBytes == 0 {
		cfg.MaxTotalBytes = 256 << 20
	}
	largest := max(cfg.MaxRequest, maxContexts*(chunkLen+4+maxExtents*extentLen))
	return &Server{cfg: cfg, memory: newMemory(cfg.MaxTotalBytes, largest)}
}

// ServeConn serves one connection, which it closes, until the client
// disconnects (it then returns nil), the connection fails, the client breaks
// the protocol (a *ProtocolError), the export is closed, or ctx ends. It
// returns after everything under way is done.
func (s *Server) ServeConn(ctx context.Context, conn net.Conn) error {
	return s.serve(ctx, conn, nil)
}

// link is a connection, without TLS. Closing it also ends waits for other things, such as
// memory.
type link struct {
	net.Conn
	once sync.Once
	gone chan struct{} // closed with the connection
}

func (l *link) Close() error {
	l.once.Do(func() { close(l.gone) })
	return l.Conn.Close()
}

// serve does what ServeConn does; at is the place of conn in a room, or nil.
func (s *Server) serve(ctx context.Context, conn net.Conn, at *place) error {
	l := &link{Conn: conn, gone: make(chan struct{})}
	defer l.Close()
	defer wait.AtEnd(ctx, func() { l.Close() })()
	log := newClientLog(s.cfg.Logger, conn)
	err := s.serveConn(l, at, log)
	log.end(ctx, err, at.pushed())
	if ctx.Err() != nil && errors.Is(err, net.ErrClosed) {
		return ctx.Err()
	}
	return err
}

func (s *Server) serveConn(l *link, at *place, log *clientLog) error {
	conn := l.Conn
	if err := conn.SetDeadline(time.Now().Add(s.cfg.Timeout)); err != nil {
		return err
	}
	n := &negotiation{srv: s, raw: l, conn: conn, at: at, log: log}
	e, err := n.run()
	if e == nil {
		return err
	}
	defer n.leave()
	if err := conn.SetDeadline(time.Time{}); err != nil {
		return err
	}
	at.settle()
	if s.cfg.OnClient != nil {
		s.cfg.OnClient(conn, e)
	}
	log.uses(e)
	return serveRequests(e, n)
}
