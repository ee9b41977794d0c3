package nbd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
)

// Disk is the disk that an export serves. Its methods are called from several goroutines at the
// same time. A replication.Disk is a Disk. One whose reads may take long can have a ReadContext,
// as replication.Sums has, which is called in the place of ReadAt, and whose ctx ends with the
// client's connection.
type Disk interface {
	io.ReaderAt
	io.WriterAt
	Size() int64
	Sync() error
}

// Methods that a Disk may have besides; the export then announces what they can do.
type (
	trimmer    interface{ Trim(off, n int64) error }
	zeroWriter interface {
		WriteZeroes(off, n int64) error
	}
	fuaWriter interface {
		WriteFUA(p []byte, off int64) error
	}
)

// contextReader is a Disk whose reads may take long, as those of replication.Sums. They end with
// the connection on which they were asked for.
type contextReader interface {
	ReadContext(ctx context.Context, p []byte, off int64) (int, error)
}

// ExportConfig describes an export.
type ExportConfig struct {
	// Name is the name by which clients ask for the export. The empty name is the default
	// export.
	Name string
	// Generation, if not zero, is part of the name on the wire, see [Name].
	// A client that asks for another generation is refused with ErrPolicy.
	Generation  uint64
	Description string // for people; may be empty, and has 4096 bytes at most
	Disk        Disk
	ReadOnly    bool
	// MaxClients bounds the connections at a time; zero means one. With one,
	// a client that comes back is let in only when nothing of its former
	// connection can reach the disk any more.
	MaxClients int
	// Contexts are metadata contexts that clients may select, in addition to
	// ContextAllocation, for which the Disk's Extents method is asked, see
	// replication.ExtentReader; a Disk without that method is reported as all
	// data.
	Contexts []Context
}

// Export is a disk that a [Server] serves. Its methods may be called from any
// goroutine.
type Export struct {
	srv      *Server
	cfg      ExportConfig
	contexts []Context // ContextAllocation and those of cfg
	requests atomic.Uint64

	mu      sync.Mutex
	gated   bool
	closed  bool
	changes int // requests under way that change the disk
	drained chan struct{}
	conns   map[*link]chan struct{} // each channel is closed when the connection is not used any more
}

// Export begins to serve a disk. The error is ErrPolicy if the server has an
// export of that name, of whatever generation: that must be closed first.
func (s *Server) Export(cfg ExportConfig) (*Export, error) {
	if len(Name(cfg.Name, cfg.Generation)) > maxName {
		return nil, fmt.Errorf("nbd: export name of %d bytes", len(cfg.Name))
	}
	if len(cfg.Description) > maxName {
		return nil, fmt.Errorf("nbd: description of %d bytes", len(cfg.Description))
	}
	if cfg.MaxClients == 0 {
		cfg.MaxClients = 1
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.exports[cfg.Name] != nil {
		return nil, fmt.Errorf("%w: export %q is there already", ErrPolicy, cfg.Name)
	}
	e := &Export{srv: s, cfg: cfg, conns: make(map[*link]chan struct{})}
	if err := e.setContexts(); err != nil {
		return nil, err
	}
	if s.exports == nil {
		s.exports = make(map[string]*Export)
	}
	s.exports[cfg.Name] = e
	return e, nil
}

// find returns the export that a client asks for.
func (s *Server) find(wire string) (*Export, *OptionError) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.exports[wire]; e != nil && e.cfg.Generation == 0 {
		return e, nil
	}
	name, generation := SplitName(wire)
	e := s.exports[name]
	switch {
	case e == nil:
		return nil, &OptionError{Code: repErrUnknown, Message: "no such export"}
	case e.cfg.Generation != generation:
		return nil, &OptionError{Code: repErrPolicy, Message: fmt.Sprintf("generation %d was asked for, the export has %d", generation, e.cfg.Generation)}
	}
	return e, nil
}

// WireName returns the name by which clients ask for the export.
func (e *Export) WireName() string { return Name(e.cfg.Name, e.cfg.Generation) }

// Clients returns how many clients are connected.
func (e *Export) Clients() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.conns)
}

// Requests returns how many requests have come, over all connections. A disk of which a client still
// asks for something is told by that from one whose client is silent.
func (e *Export) Requests() uint64 { return e.requests.Load() }

// Gate refuses changes from now on, with ESHUTDOWN. It returns when the changes under way
// are done, or with ctx's error, after which the export is gated too. Reads and flushes
// are served.
func (e *Export) Gate(ctx context.Context) error {
	e.mu.Lock()
	e.gated = true
	var drained chan struct{}
	if e.changes > 0 {
		if e.drained == nil {
			e.drained = make(chan struct{})
		}
		drained = e.drained
	}
	e.mu.Unlock()
	if drained == nil {
		return nil
	}
	select {
	case <-drained:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Open allows changes again.
func (e *Export) Open() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.gated = false
}

// Close ends the export: changes are refused and the connections of its clients are
// closed. When it returns nil, no request of a client reaches the disk any more, and the
// name is free. If ctx ends before, Close returns its error, and may be called again.
func (e *Export) Close(ctx context.Context) error {
	e.mu.Lock()
	e.gated, e.closed = true, true
	var waits []chan struct{}
	for c, done := range e.conns {
		c.Close()
		waits = append(waits, done)
	}
	e.mu.Unlock()
	for _, done := range waits {
		select {
		case <-done:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	e.srv.mu.Lock()
	defer e.srv.mu.Unlock()
	if e.srv.exports[e.cfg.Name] == e {
		delete(e.srv.exports, e.cfg.Name)
	}
	return nil
}

// admit counts conn as a client until the returned function is called.
func (e *Export) admit(conn *link) (leave func(), refused *OptionError) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil, &OptionError{Code: repErrShutdown, Message: "the export is being closed"}
	}
	if len(e.conns) >= e.cfg.MaxClients {
		return nil, &OptionError{Code: repErrPolicy, Message: "the export has its clients already"}
	}
	done := make(chan struct{})
	e.conns[conn] = done
	return func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		delete(e.conns, conn)
		close(done)
	}, nil
}

// beginChange counts a request that changes the disk.
func (e *Export) beginChange() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.gated {
		return syscall.ESHUTDOWN
	}
	e.changes++
	return nil
}

func (e *Export) endChange() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.changes--; e.changes == 0 && e.drained != nil {
		close(e.drained)
		e.drained = nil
	}
}

// flags returns the transmission flags; structured says that the client takes structured
// replies.
func (e *Export) flags(structured bool) uint16 {
	f := uint16(flagHasFlags | flagSendFlush | flagSendFUA)
	if structured {
		f |= flagSendDF // reads are always answered in one chunk
	}
	if e.cfg.ReadOnly {
		f |= flagReadOnly
	} else {
		f |= flagSendWriteZeroes
		if _, ok := e.cfg.Disk.(trimmer); ok {
			f |= flagSendTrim
		}
	}
	if e.cfg.MaxClients > 1 {
		f |= flagCanMultiConn // a flush by one client covers the answered writes of all
	}
	return f
}

func (e *Export) writeFUA(p []byte, off int64) error {
	if f, ok := e.cfg.Disk.(fuaWriter); ok {
		return f.WriteFUA(p, off)
	}
	if _, err := e.cfg.Disk.WriteAt(p, off); err != nil {
		return err
	}
	return e.cfg.Disk.Sync()
}

func (e *Export) read(p []byte, off int64, l *link) (int, error) {
	if r, ok := e.cfg.Disk.(contextReader); ok {
		return r.ReadContext(whileOpen{context.Background(), l}, p, off)
	}
	return e.cfg.Disk.ReadAt(p, off)
}

// whileOpen is a context that ends when a connection is closed.
type whileOpen struct {
	context.Context
	l *link
}

func (c whileOpen) Done() <-chan struct{} { return c.l.gone }

func (c whileOpen) Err() error {
	select {
	case <-c.l.gone:
		return context.Canceled
	default:
		return nil
	}
}

// cannot reports whether err says that a disk can zero a range only by writing zeroes, for
// example because its sectors are larger than the range.
func cannot(err error) bool {
	return errors.Is(err, errors.ErrUnsupported) || errors.Is(err, syscall.EINVAL)
}

var zeroes [64 << 10]byte

// writeZeroes zeroes a range. Where it has to write zeroes, which may be 4 GiB of them, it
// ends with net.ErrClosed when gone is closed.
func (e *Export) writeZeroes(off, n int64, mayTrim bool, gone <-chan struct{}) error {
	if z, ok := e.cfg.Disk.(zeroWriter); ok && mayTrim {
		if err := z.WriteZeroes(off, n); !cannot(err) {
			return err
		}
	}
	for n > 0 {
		select {
		case <-gone:
			return net.ErrClosed
		default:
		}
		c := min(n, int64(len(zeroes)))
		if _, err := e.cfg.Disk.WriteAt(zeroes[:c], off); err != nil {
			return err
		}
		off, n = off+c, n-c
	}
	return nil
}

// ErrServerClosed is returned by Serve after its context has ended.
var ErrServerClosed = errors.New("nbd: server closed")
