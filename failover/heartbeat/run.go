package heartbeat

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"
)

// What is sent over the connection, one byte each way at a time. A single byte
// cannot be cut in two.
const (
	beat    byte = 'B' // I am here
	goodbye byte = 'G' // I leave, in good order, and am not lost
)

var (
	// ErrLost says that the peer is lost: it was silent for the whole timeout,
	// or the connection broke without a goodbye. In the second case the error
	// also wraps the connection's own.
	ErrLost = errors.New("heartbeat: peer lost")

	// ErrGoodbye says that the peer stopped its Run in good order.
	ErrGoodbye = errors.New("heartbeat: peer said goodbye")

	// ErrProtocol says that what came over the connection was not a heartbeat.
	ErrProtocol = errors.New("heartbeat: not a heartbeat")
)

// Run sends a beat at once and then every interval, and watches for the
// peer's. It owns conn and closes it before it returns, and it returns only
// when the two goroutines that it starts, a reader and a writer, have ended
// (conn's Close must therefore wake both).
//
// It returns [ErrLost], [ErrGoodbye], [ErrProtocol], or, after sending a
// goodbye, the cause of the end of ctx. Timeout must be greater than interval;
// three to five times is usual.
func Run(ctx context.Context, conn io.ReadWriteCloser, interval, timeout time.Duration) error {
	return Watch(ctx, conn, Config{Interval: interval, Timeout: timeout})
}

// Config has the times of a heartbeat, and its logger.
type Config struct {
	// Interval is from one beat of this side to the next. Timeout is how long the peer
	// may be silent; it must be greater, and three to five times is usual.
	Interval, Timeout time.Duration

	// First is how long the peer's first beat may take, where that is longer than Timeout: a
	// peer begins to beat when it knows that the connection is made, a turn of the network
	// after this side, and when it is ready for what it beats for. 0: as long as Timeout.
	First time.Duration

	// Silent, if set, is called where the peer was silent for too long, on the goroutine that has
	// called Watch and before conn is closed: a peer that lives, and is not heard, can be told why
	// before it hears that end. It must not wait.
	Silent func()

	// Logger gets a record when the heartbeat begins and when it ends with the context
	// (Debug), for a goodbye (Info), for a peer that is lost or is no heartbeat, and for
	// a silence that is the fault of this process, which did not run for so long (Warn).
	// Beats are not logged. A host that has more than one heartbeat gives each a logger
	// that names the guest and the generation. Nil: nothing is logged.
	Logger *slog.Logger
}

// Watch is [Run] with a Config.
func Watch(ctx context.Context, conn io.ReadWriteCloser, cfg Config) error {
	return run(ctx, conn, cfg, func(time.Time) {})
}

// run is Watch. It tells heard, after each beat of the peer, when the peer is lost if
// that was the last one.
func run(ctx context.Context, conn io.ReadWriteCloser, cfg Config, heard func(deadline time.Time)) error {
	interval, timeout := cfg.Interval, cfg.Timeout
	if interval <= 0 || timeout <= interval {
		conn.Close()
		return fmt.Errorf("heartbeat: timeout %v must be greater than interval %v, and that than 0", timeout, interval)
	}
	log := cfg.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	log.Debug("a heartbeat begins", "interval", interval, "timeout", timeout)
	r := &runner{
		log: log,

		conn: conn,
		in:   make(chan error, 1),
		out:  make(chan byte, 1),
		sent: make(chan struct{}),
		read: make(chan struct{}),
		mon:  Monitor{Timeout: max(timeout, cfg.First)},

		heard: heard,
	}
	r.mon.Beat(time.Now())
	go r.reader()
	go r.writer()
	err, ours := r.loop(ctx, interval, timeout)
	r.logEnd(err, ours || ctx.Err() != nil)
	switch {
	case ours:
		r.leave(timeout)
	case err == ErrLost && cfg.Silent != nil:
		cfg.Silent()
	}
	conn.Close()
	close(r.out)
	<-r.sent
	for {
		select {
		case <-r.in: // the reader may be waiting to say what it read
		case <-r.read:
			return err
		}
	}
}

// runner holds what Run's goroutines share. The monitor belongs to the loop.
type runner struct {
	conn io.ReadWriteCloser
	in   chan error    // nil: a beat; otherwise why the reader ended
	out  chan byte     // what the writer is to send
	sent chan struct{} // closed when the writer has ended
	read chan struct{} // closed when the reader has ended
	mon  Monitor

	heard func(deadline time.Time) // told of each beat
	log   *slog.Logger
}

// logEnd tells why the loop has ended.
func (r *runner) logEnd(err error, ours bool) {
	switch {
	case ours:
		r.log.Debug("the heartbeat ends here", "cause", err)
	case errors.Is(err, ErrGoodbye):
		r.log.Info("the peer has ended its heartbeat")
	default:
		r.log.Warn("the peer is lost", "error", err)
	}
}

// loop runs until there is something to report; ours says that ctx has ended, and
// not the peer.
func (r *runner) loop(ctx context.Context, interval, timeout time.Duration) (err error, ours bool) {
	send := time.NewTicker(interval)
	defer send.Stop()
	due := time.NewTimer(time.Until(r.mon.Deadline()))
	defer due.Stop()
	r.out <- beat // there is room for one
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx), true
		case err := <-r.in:
			if err != nil {
				return err, false
			}
			first := r.mon.Timeout != timeout
			r.mon.Timeout = timeout
			r.mon.Beat(time.Now())
			r.heard(r.mon.Deadline())
			if first {
				due.Reset(time.Until(r.mon.Deadline()))
			}
		case <-send.C:
			select {
			case r.out <- beat:
			default: // the last one is still being written; it will do
			}
		case <-due.C:
			now := time.Now()
			if late := now.Sub(r.mon.Deadline()); r.mon.Lost(now) {
				if !r.mon.Excuse(now, interval) {
					return ErrLost, false
				}
				r.log.Warn("the peer is silent, and this process was late to look: it gets more time", "late", late)
			}
			due.Reset(r.mon.Deadline().Sub(now))
		}
	}
}

// leave sends a goodbye, and gives it no longer than timeout.
func (r *runner) leave(timeout time.Duration) {
	limit := time.NewTimer(timeout)
	defer limit.Stop()
	for {
		select {
		case r.out <- goodbye:
			select {
			case <-r.sent: // the writer ends after a goodbye
			case <-limit.C:
			}
			return
		case <-r.sent:
			return
		case <-r.in: // nobody listens any more
		case <-limit.C:
			return
		}
	}
}

// writer sends what it is given. A failed write is not a verdict: the reader
// sees the same connection break, or a goodbye that was there before.
func (r *runner) writer() {
	defer close(r.sent)
	for b := range r.out {
		if _, err := r.conn.Write([]byte{b}); err != nil || b == goodbye {
			return
		}
	}
}

func (r *runner) reader() {
	defer close(r.read)
	buf := make([]byte, 64)
	for {
		n, err := r.conn.Read(buf)
		for _, b := range buf[:n] {
			switch b {
			case beat:
			case goodbye:
				r.in <- ErrGoodbye
				return
			default:
				r.in <- fmt.Errorf("%w: byte %#x", ErrProtocol, b)
				return
			}
		}
		if n > 0 {
			r.in <- nil
		}
		if err != nil {
			r.in <- fmt.Errorf("%w: %w", ErrLost, err)
			return
		}
	}
}
