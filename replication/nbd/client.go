package nbd

import (
	"fmt"
	"net"
	"sync"
	"time"
)

// Client is a connection to an export, after negotiation. It is a disk whose
// methods may be called from any number of goroutines, whose requests are
// then under way together, and whose answers may come in any order. It is
// also a replication.Remote.
//
// It has no permanent goroutine: callers that wait for an answer take turns in reading
// answers for all. When the connection fails, all requests under way, and all later ones,
// get that error. (A goroutine may be sending what several callers have to send together,
// small writes of StartWrite, or a flush to a server that does not know FUA. It ends when
// that is sent, and before Close returns.) A client must be closed even if its connection has failed.
type Client struct {
	conn net.Conn
	info Info
	cfg  ClientConfig

	structured bool // the server gives structured replies
	contexts   []clientContext

	turn chan struct{} // has an element while a caller reads
	r    *reader       // used by the caller that has the turn

	free chan *call // calls that are not under way

	mu       sync.Mutex
	calls    []*call       // all calls that were ever needed, by slot
	made     int           // of those, how many are for requests
	err      error         // why the connection has ended
	answered uint64        // counts the requests that were answered
	active   int           // how many requests are under way
	posted   int           // requests that were left to the sender to go with others; 0 once they have gone
	dead     chan struct{} // closed when err is set

	progress    uint64 // counts calls of Progress
	interrupted bool   // the present call of Progress is to return

	through through
	out     sender
	pulse   pulse
}

// call is a slot for a request under way.
type call struct {
	slot    uint32
	flushes bool   // it is the one of through
	gen     uint32 // the upper half of the handle, so that a reply to an earlier use is recognized
	active  bool   // guarded by Client.mu, and so are the following fields until the call is finished
	req     request
	buf     []byte      // memory for the data of a read
	done    func(error) // is given the answer; nil: the caller waits at ready
	ready   chan error

	fua  bool  // it is to be flushed when it is answered
	next *call // the next call in through

	// The part of a chunked answer that has come. It belongs to the goroutine that has
	// taken the call.
	left    int64  // bytes of a read that have not come
	parts   []span // parts of a read that have come, in order, with gaps between them
	errors  int    // error chunks that have come
	failure error
	status  *statusAnswer
}

// ask has a request, the memory for its data, and how it is answered.
type ask struct {
	request
	p, dst []byte // data to send, and to receive
	status *statusAnswer
	fua    bool        // it is to be flushed when it is answered
	late   bool        // nobody waits for it: it may leave together with others
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
	c.out.init(c.conn, 0)
	c.out.endless = true
	c.out.lost = c.lostSend
	c.pulse.listen(c.conn, c.r)
	c.conn.SetDeadline(time.Time{}) // it is the caller's, who may have set one
	return c
}

// Info returns what the server has said about the export.
func (c *Client) Info() Info { return c.info }

// Size returns the length of the export, in bytes.
func (c *Client) Size() int64 { return c.info.Size }

// Align implements replication.Aligner: it returns the minimum block of the server.
func (c *Client) Align() int64 { return int64(c.info.MinBlock) }

// CheckWrites implements replication.WriteChecker: the error is ErrReadOnly if the export can
// only be read, and errors.ErrUnsupported if the server knows no flush, without which nobody
// learns what is stable. A server that does not know FUA is asked to flush instead.
func (c *Client) CheckWrites() error {
	if c.info.ReadOnly {
		return fmt.Errorf("%w, and a disk is written", ErrReadOnly)
	}
	if err := c.canFlush(); err != nil {
		return fmt.Errorf("the server of export %q never says that what was written is stable: %w", c.info.Name, err)
	}
	return nil
}

// Err returns why the connection has ended, or nil.
func (c *Client) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Close tells the server that the client leaves and closes the connection. A server that
// reads nothing delays Close for a moment. Requests under way get ErrClosed; they may or
// may not have been carried out.
func (c *Client) Close() error {
	c.mu.Lock()
	idle := c.err == nil && c.active == 0
	c.mu.Unlock()
	if idle {
		req := request{cmd: cmdDisc}
		idle = c.out.farewell(req.append(nil)) // best effort, since closing says the same
	}
	c.end(ErrClosed, idle)
	c.out.wait()
	return nil
}

// Abort implements replication.Aborter: it closes the connection without a word to the
// server, and does not wait.
func (c *Client) Abort() { c.fail(ErrClosed) }

// fail ends the connection and all requests under way.
func (c *Client) fail(err error) { c.end(err, false) }

// end does what fail does; polite says that a TLS session is closed in due form.
func (c *Client) end(err error, polite bool) {
	err = ended(err)
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return
	}
	c.err = err
	close(c.dead)
	if c.pulse.timer != nil {
		c.pulse.timer.Stop()
	}
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
	if polite { // a TLS session waits for the other side to take its farewell
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

// hangUp closes a connection without a farewell. Close of a TLS session sends one first,
// and would wait for a peer that takes nothing.
func hangUp(conn net.Conn) {
	if t, ok := conn.(interface{ NetConn() net.Conn }); ok {
		hangUp(t.NetConn())
	}
	conn.Close()
}

// lostSend ends the connection when a message could not be sent.
func (c *Client) lostSend(err error) { c.fail(fmt.Errorf("nbd: send: %w", err)) }

// finish handles the answer to a call that is no longer active. It does not wait.
func (c *Client) finish(k *call, err error) {
	switch {
	case k.flushes:
		c.flushedThrough(err)
	case err == nil && k.fua:
		c.answeredThrough(k)
	default:
		c.tell(k, err)
	}
}

// tell gives the answer to the caller of k.
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

// begin gets a slot and sends a request with it. If done is nil the caller waits at
// k.ready. The error of a request that could not be sent is delivered in the same way.
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
	if a.late {
		c.out.post(a.append(head[:0]), a.p)
		c.mu.Lock()
		c.posted++
		c.pushIf(c.posted >= mostPosted)
	} else if err := c.out.sendUpTo(a.calls(), a.append(head[:0]), a.p); err != nil {
		c.lostSend(err)
	}
	return k
}

// calls returns for how many system calls the caller of a request sends messages of others. A server
// that does one thing at a time takes none of them before somebody has read a long answer, and that
// may be this caller alone.
func (a *ask) calls() int {
	if len(a.dst) > copied || a.status != nil {
		return 1
	}
	return handOver
}

// mostPosted is how many requests wait for others to leave with, while there is an answer
// to come whose arrival sends them.
const mostPosted = 16

// Push implements replication.Pusher: it sends the server the writes that StartWrite has
// kept to send them together with later ones.
func (c *Client) Push() {
	c.mu.Lock()
	c.pushIf(true)
}

// pushIf sends what was posted, if now is set, or if the answers to all other requests have
// come, so that none would send it. The caller holds mu, which is released.
//
// A request counts as posted only when the sender has it: whoever sets posted to zero sends
// it. That some may have left already, with another message, does no harm.
func (c *Client) pushIf(now bool) {
	now = c.posted > 0 && (now || c.active <= c.posted)
	if now {
		c.posted = 0
	}
	c.mu.Unlock()
	if now {
		c.out.push(c.out.lost)
	}
}

// newCall makes a call. The caller holds mu.
func (c *Client) newCall() *call {
	k := &call{slot: uint32(len(c.calls)), ready: make(chan error, 1)}
	c.calls = append(c.calls, k)
	return k
}

// another makes one more call for requests, or returns nil if there are as many as may be: most
// clients never have as many under way.
func (c *Client) another() *call {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.made == c.cfg.MaxRequests {
		return nil
	}
	c.made++
	return c.newCall()
}

// slot returns a call that is not under way. If there is none, and can be no other, it waits for
// one, and reads answers meanwhile if no other goroutine does.
func (c *Client) slot() *call {
	select {
	case k := <-c.free:
		return k
	default:
	}
	if k := c.another(); k != nil {
		return k
	}
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

// wait returns the answer to k, and frees it.
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
	head, err := c.r.Peek(replyLen)
	return head, eof(err)
}
