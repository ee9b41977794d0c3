package qmp

import (
	"context"
	"errors"
	"net"
	"os"
	"sync"
	"time"

	"github.com/gocolo/lockstep/internal/qjson"
	"github.com/gocolo/lockstep/internal/wait"
)

// client is one client of a Server. A field without a comment belongs to the goroutine
// that executes commands: the one that reads, or, once out-of-band execution is
// enabled, the one that takes commands off the queue.
type client struct {
	s   *Server
	h   *hub
	at  *place
	out *outbox

	ctx        context.Context
	negotiated bool
	quit       bool // set where the command is executed, see stop
	oob        bool // set once, by the goroutine that reads, before there is a queue

	mu      sync.Mutex
	changed sync.Cond
	queue   []request // behind the one that runs
	busy    bool      // one of the queue runs
	stop    bool      // no more are executed
}

// request is one JSON value that a client has sent, or the error that it gave.
type request struct {
	value any
	err   error
}

// serve serves one client from its connection to its end.
func (s *Server) serve(ctx context.Context, h *hub, conn net.Conn, at *place) {
	ctx, cancel := context.WithCancel(ctx)
	c := &client{s: s, h: h, at: at, ctx: ctx, out: newOutbox(positive(s.MaxBacklog, DefaultMaxBacklog), positive(s.MaxEvents, DefaultMaxEvents))}
	c.changed.L = &c.mu
	if s.Log != nil {
		s.Log.Debug("a client of the monitor has come", "from", conn.RemoteAddr())
	}
	c.out.answer(c.line(c.greeting()))

	var wg sync.WaitGroup
	var failed error
	writes := deadlines{conn: conn, stall: positive(s.Stall, DefaultStall)}
	stop := wait.AtEnd(ctx, func() {
		conn.SetReadDeadline(time.Unix(1, 0))
		writes.close(min(time.Second, writes.stall))
	})
	wg.Go(func() {
		failed = c.out.run(conn, writes.next)
		cancel()
	})
	c.read(conn)
	h.leave(c)
	c.out.finish()
	wg.Wait()
	stop()
	cancel()
	conn.Close()
	if s.Log != nil {
		if errors.Is(failed, os.ErrDeadlineExceeded) {
			s.Log.Warn("a client of the monitor does not read and was closed", "from", conn.RemoteAddr(), "err", failed, "missed-events", c.out.missedEvents())
		}
		s.Log.Debug("a client of the monitor has gone", "from", conn.RemoteAddr(), "missed-events", c.out.missedEvents())
	}
	if c.quit && s.Quit != nil {
		s.Quit()
	}
}

func (c *client) greeting() any {
	caps := []any{}
	if c.s.Commands != nil && c.s.Commands.offersOOB() {
		caps = append(caps, "oob")
	}
	return qjson.Object{{Name: "QMP", Value: qjson.Object{{Name: "version", Value: c.s.version().value()}, {Name: "capabilities", Value: caps}}}}
}

func (c *client) line(v any) []byte { return append(qjson.Append(nil, v), "\r\n"...) }

// deadlines sets the deadlines of the writes to a client.
type deadlines struct {
	conn  net.Conn
	stall time.Duration

	mu     sync.Mutex
	closed bool
}

// next sets the deadline of the next write.
func (d *deadlines) next() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.closed {
		d.conn.SetWriteDeadline(time.Now().Add(d.stall))
	}
}

// close sets the last deadline: all that is still to be written must be written within
// that time.
func (d *deadlines) close(in time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
	d.conn.SetWriteDeadline(time.Now().Add(in))
}

// read reads what the client sends until that ends, and returns when none of its commands
// runs any more.
func (c *client) read(conn net.Conn) {
	var worker sync.WaitGroup
	defer worker.Wait()
	defer func() { // those that wait are executed, unless the monitor has ended
		c.mu.Lock()
		for len(c.queue) > 0 && !c.stop && c.ctx.Err() == nil {
			c.changed.Wait()
		}
		c.stop = true
		c.changed.Broadcast()
		c.mu.Unlock()
	}()
	defer wait.AtEnd(c.ctx, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.changed.Broadcast()
	})()
	p := qjson.Parser{MaxBytes: positive(c.s.MaxValue, DefaultMaxValue)}
	queued := false
	var begins opening
	buf := make([]byte, 4<<10)
	for {
		n, err := conn.Read(buf)
		for _, b := range buf[:n] {
			if begins.browser(b) {
				c.at.browses()
				return
			}
			for more := true; more; {
				var r request
				var done bool
				if r.value, done, more, r.err = p.Feed(b); !done {
					continue
				}
				switch {
				case !c.oob:
					c.execute(r)
				case c.outOfBand(r.value):
					c.settle()
					c.execute(r)
				default:
					if !queued {
						queued = true
						worker.Go(c.work)
					}
					c.push(r)
				}
				if c.stopped() {
					return
				}
			}
		}
		if err != nil || c.ctx.Err() != nil {
			return
		}
	}
}

func (c *client) stopped() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.stop || c.ctx.Err() != nil
}

// outOfBand reports whether a value is to be executed at once.
func (c *client) outOfBand(v any) bool {
	o, ok := v.(qjson.Object)
	if !ok {
		return false
	}
	_, oob := o.Get("exec-oob")
	_, in := o.Get("execute")
	return oob && !in
}

// push puts a request into the queue, and waits while it is full.
func (c *client) push(r request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.queue = append(c.queue, r)
	c.changed.Broadcast()
	for len(c.queue) >= MaxInFlight && !c.stop && c.ctx.Err() == nil {
		c.changed.Wait()
	}
}

// moment is how long an out-of-band command waits for the commands that were sent before it.
const moment = 5 * time.Millisecond

// settle gives commands that were sent right before an out-of-band one a moment,
// so that a client which sends all at once gets its answers in the order in
// which a QEMU, which reads slowly, gives them. Commands that take longer are overtaken.
func (c *client) settle() {
	c.mu.Lock()
	defer c.mu.Unlock()
	over := false
	defer time.AfterFunc(moment, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		over = true
		c.changed.Broadcast()
	}).Stop()
	for (c.busy || len(c.queue) > 0) && !over && !c.stop && c.ctx.Err() == nil {
		c.changed.Wait()
	}
}

// work executes what is in the queue.
func (c *client) work() {
	for {
		c.mu.Lock()
		for len(c.queue) == 0 && !c.stop && c.ctx.Err() == nil {
			c.changed.Wait()
		}
		if c.stop || c.ctx.Err() != nil {
			c.mu.Unlock()
			return
		}
		r := c.queue[0]
		c.queue = c.queue[1:]
		c.busy = true
		c.changed.Broadcast()
		c.mu.Unlock()
		c.execute(r)
		c.mu.Lock()
		c.busy = false
		c.changed.Broadcast()
		c.mu.Unlock()
	}
}
