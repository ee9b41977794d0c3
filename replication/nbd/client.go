package nbd

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// Client is a connection to an export, after negotiation. It is a disk whose
// methods may be called from any number of goroutines, whose requests are
// then under way together, and whose answers may come in any order. It is
// also a replication.Remote.
//
// It has no goroutine of its own: those who wait for an answer take turns in
// reading answers for all. When the connection fails, everything under way
// and everything later gets that error. (A goroutine may be sending what several
// callers have to send together, or a flush to a server that does not know FUA; it
// ends when that is sent, and before Close returns.) A client must be closed also if its connection has failed.
type Client struct {
	conn net.Conn
	info Info
	cfg  ClientConfig

	structured bool // replies
	contexts   []clientContext

	turn chan struct{} // has an element while somebody reads
	r    *bufio.Reader // of whose turn it is

	free  chan *call // calls not under way
	calls []*call    // by slot; fixed

	mu       sync.Mutex
	err      error // why nothing works any more
	answered uint64
	active   int
	dead     chan struct{} // closed when err is set

	progress    uint64 // counts waits of Progress
	interrupted bool   // the present one is to end

	through through
	out     sender
}

// call is a slot for a request under way.
type call struct {
	slot   uint32
	gen    uint32 // the upper half of the handle, so that a reply to a former use is noticed
	active bool   // guarded by Client.mu, as are the rest until the call is finished
	req    request
	sent   time.Time
	buf    []byte      // where the data of a read goes
	done   func(error) // what to tell, or nil: ready
	ready  chan error

	fua  bool  // to be flushed when it is answered
	next *call // in through

	// What there has been of an answer in chunks. Whoever has taken the call
	// has these.
	left    int64  // bytes of a read that are still to come
	parts   []span // that are there, in order, apart from each other
	errors  int    // chunks
	failure error
	status  *statusAnswer
}

// ask is a request, and where its data and its answer go.
type ask struct {
	request
	p, dst []byte // data to send, and to receive
	status *statusAnswer
	fua    bool        // flush when it is answered
	done   func(error) // nil: the caller waits
}

func newClient(d *dialogue, info Info, cfg ClientConfig) *Client {
	c := &Client{
		conn: d.conn, info: info, cfg: cfg, r: d.r,
		structured: d.structured, contexts: d.contexts,
		turn: make(chan struct{}, 1),
		free: make(chan *call, cfg.MaxRequests),
		dead: make(chan struct{}),
	}
	for i := range cfg.MaxRequests {
		k := &call{slot: uint32(i), ready: make(chan error, 1)}
		c.calls = append(c.calls, k)
		c.free <- k
	}
	c.through.flush = &call{slot: uint32(cfg.MaxRequests)}
	c.calls = append(c.calls, c.through.flush)
	c.out.init(c.conn, cfg.Timeout)
	c.out.lost = c.lostSend
	return c
}

// Info returns what the server has said about the export.
func (c *Client) Info() Info { return c.info }

// Size returns the length of the export, in bytes.
func (c *Client) Size() int64 { return c.info.Size }

// Err returns why the connection has ended, or nil.
func (c *Client) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Close tells the server that the client leaves, which a server that takes
// nothing holds up for a moment, and closes the connection. What is under way
// gets ErrClosed; it may or may not have been done.
func (c *Client) Close() error {
	c.mu.Lock()
	idle := c.err == nil && c.active == 0
	c.mu.Unlock()
	if idle {
		req := request{cmd: cmdDisc}
		idle = c.out.farewell(req.append(nil)) // best effort: the end says the same
	}
	c.end(ErrClosed, idle)
	c.out.wait()
	return nil
}

// Abort implements replication.Aborter: it is Close without a word to the
// server, and does not wait.
func (c *Client) Abort() { c.fail(ErrClosed) }

// fail ends the connection, and everything under way.
func (c *Client) fail(err error) { c.end(err, false) }

// end is fail, with a TLS session closed as it should be if polite.
func (c *Client) end(err error, polite bool) {
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return
	}
	c.err = err
	close(c.dead)
	var lost []*call
	for _, k := range c.calls {
		if k.active {
			k.active = false
			c.active--
			lost = append(lost, k)
		}
	}
	c.mu.Unlock()
	c.logLost(err, len(lost))
	if polite { // which a TLS session is for as long as the other side lets it
		late := time.AfterFunc(leave, func() { hangUp(c.conn) })
		c.conn.Close()
		late.Stop()
	} else {
		hangUp(c.conn)
	}
	c.out.abort(err)
	for _, k := range lost {
		c.finish(k, err)
	}
}

// hangUp closes a connection without a word: what Close of a TLS session would
// say first waits for a peer that takes nothing.
func hangUp(conn net.Conn) {
	if t, ok := conn.(interface{ NetConn() net.Conn }); ok {
		hangUp(t.NetConn())
	}
	conn.Close()
}

// lostSend is called when something could not be sent.
func (c *Client) lostSend(err error) { c.fail(fmt.Errorf("nbd: send: %w", err)) }

// finish deals with the answer to a call that is no longer active. It waits for
// nothing.
func (c *Client) finish(k *call, err error) {
	switch {
	case k == c.through.flush:
		c.flushedThrough(err)
	case err == nil && k.fua:
		c.answeredThrough(k)
	default:
		c.tell(k, err)
	}
}

// tell hands out the answer to a call.
func (c *Client) tell(k *call, err error) {
	done := k.done
	k.buf, k.done, k.status, k.failure = nil, nil, nil, nil
	if done == nil {
		k.ready <- err
		return
	}
	c.free <- k
	done(err)
}

// begin gets a slot and sends a request with it. A nil done makes the caller
// wait with k.ready. The error of one that could not be sent is delivered in
// the same way.
func (c *Client) begin(a ask) *call {
	k := c.slot()
	c.mu.Lock()
	k.buf, k.done, k.status, k.fua = a.dst, a.done, a.status, a.fua
	k.left, k.parts, k.errors, k.failure = int64(len(a.dst)), k.parts[:0], 0, nil
	err := c.err
	if err == nil {
		c.activate(k, &a.request)
	}
	c.mu.Unlock()
	if err != nil {
		c.tell(k, err)
		return k
	}
	var head [requestLen]byte
	if err := c.out.send(a.append(head[:0]), a.p); err != nil {
		c.lostSend(err)
	}
	return k
}

// slot waits for a call that is not under way, reading answers if nobody else
// does.
func (c *Client) slot() *call {
	for {
		select {
		case k := <-c.free:
			return k
		default:
		}
		select {
		case k := <-c.free:
			return k
		case c.turn <- struct{}{}:
			if len(c.free) == 0 {
				if err := c.readReply(); err != nil {
					c.fail(err)
				}
			}
			<-c.turn
		}
	}
}

// wait returns the answer to k, which is free then.
func (c *Client) wait(k *call) error {
	var err error
	for waiting := true; waiting; {
		select {
		case err = <-k.ready:
			waiting = false
		case c.turn <- struct{}{}:
			for len(k.ready) == 0 {
				if err := c.readReply(); err != nil {
					c.fail(err)
				}
			}
			<-c.turn
		}
	}
	c.free <- k
	return err
}

// do sends a request and waits for the answer.
func (c *Client) do(req request, p, dst []byte) error {
	return c.wait(c.begin(ask{request: req, p: p, dst: dst}))
}

// awaitReply waits until the header of a reply is in the buffer.
func (c *Client) awaitReply() ([]byte, error) {
	for c.r.Buffered() < replyLen {
		if err := c.peekReply(); err != nil && !isTimeout(err) {
			return nil, err
		}
		if c.late() {
			return nil, fmt.Errorf("%w: %v", ErrTimeout, c.cfg.Timeout)
		}
	}
	return c.r.Peek(replyLen)
}

// peekReply reads until the header of a reply is in the buffer, or a deadline
// passes, not necessarily the caller's.
func (c *Client) peekReply() error {
	c.mu.Lock()
	c.arm()
	c.mu.Unlock()
	_, err := c.r.Peek(replyLen)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// arm sets the deadline of whoever reads. The caller holds mu.
func (c *Client) arm() {
	if c.interrupted {
		c.conn.SetReadDeadline(time.Unix(1, 0))
		return
	}
	c.conn.SetReadDeadline(c.deadline())
}

// deadline returns when the oldest request must have been answered; zero:
// there is none. The caller holds mu.
func (c *Client) deadline() time.Time {
	var oldest time.Time
	if c.active == 0 {
		return oldest
	}
	for _, k := range c.calls {
		if k.active && (oldest.IsZero() || k.sent.Before(oldest)) {
			oldest = k.sent
		}
	}
	return oldest.Add(c.cfg.Timeout)
}

// late reports whether the deadline has passed and there is no reply.
func (c *Client) late() bool {
	if c.r.Buffered() >= replyLen {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	d := c.deadline()
	return !d.IsZero() && !time.Now().Before(d)
}
