package nbd

import (
	"math"
	"net"
	"sync"
	"time"
)

// sender sends messages, each of a head and data. Messages that come while another is
// being sent leave together, with one system call, in the order in which they came, except
// that small messages leave before large ones.
type sender struct {
	conn    net.Conn
	whole   bool          // conn takes any number of parts with one system call
	timeout time.Duration // in which a piece of what is sent has to leave
	endless bool          // timeout does not bound a send: the pulse of a client does
	lost    func(error)   // see handOver; nil: the sending goroutine goes on as long as there is something to send

	mu      sync.Mutex
	free    *sync.Cond  // signals room in pending, or that sending is false
	sending bool        // a goroutine is sending
	restful func()      // rest, as one value, so that it is allocated once
	pending []byte      // small messages
	large   []*large    // messages whose callers wait; the first may be that of the sending goroutine itself
	spare   []byte      // memory for the next pending
	batch   []*large    // used by the sending goroutine, as are parts, vec and until
	parts   [][]byte    // the parts of all of batch
	vec     net.Buffers // parts; a write removes what it has sent
	until   time.Time   // the deadline of the connection
	unused  []*large    // for reuse
	calls   uint64      // how many system calls have ended
	err     error
}

// large is a message whose data is sent from where it is.
type large struct {
	head  []byte
	data  []byte
	ended chan struct{} // has an element when it has been sent, or cannot be
	own   bool          // it belongs to the sending goroutine, and nobody waits for ended
}

const (
	// copied is the greatest length of data that is copied; longer data is sent from its
	// place.
	copied = 16 << 10
	// leave is how long a farewell may take.
	leave = 100 * time.Millisecond
	// handOver is the number of system calls after which a caller that sends messages of
	// others leaves the rest to a goroutine, if lost can be told of its error. Otherwise a
	// guest's write, or a checkpoint, would be delayed for as long as others have
	// something to send.
	handOver = 8
	// maxPending is how many bytes are collected while another goroutine sends; beyond it
	// callers wait.
	maxPending = 256 << 10
	// maxBatch is how many bytes one system call sends before no more messages are added
	// to it, since they share one timeout.
	maxBatch = 512 << 10
)

func (o *sender) init(conn net.Conn, timeout time.Duration) {
	o.conn, o.timeout = conn, timeout
	switch conn.(type) {
	case *net.TCPConn, *net.UnixConn:
		o.whole = true
	}
	o.free = sync.NewCond(&o.mu)
}

// state reports whether a goroutine is sending, and how many system calls have ended.
func (o *sender) state() (sending bool, calls uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.sending, o.calls
}

// send sends a message, or leaves it to the goroutine that is sending. Neither head nor
// data is used after it returns. The first error sticks.
func (o *sender) send(head, data []byte) error { return o.sendUpTo(handOver, head, data) }

// sendUpTo is send for a caller that sends messages of others with no more than so many system
// calls, where it can leave the rest to a goroutine.
func (o *sender) sendUpTo(most int, head, data []byte) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(data) > copied {
		l := o.queue(head, data)
		if o.sending {
			o.mu.Unlock()
			<-l.ended
			o.mu.Lock()
			o.unused = append(o.unused, l)
			return o.err
		}
		l.own = true
	} else {
		for o.sending && len(o.pending) > maxPending {
			o.free.Wait()
		}
		o.pending = append(o.pending, head...)
		o.pending = append(o.pending, data...)
		if o.sending {
			return o.err
		}
	}
	o.sending = true
	if o.lost == nil {
		most = math.MaxInt
	}
	if !o.drain(most) {
		go o.rest(o.lost)
	}
	return o.err
}

// put sends a message, if it is to be sent now or large, or leaves it to the next call.
func (o *sender) put(now bool, head, data []byte) error {
	if now || len(data) > copied {
		return o.send(head, data)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.pending = append(o.pending, head...)
	o.pending = append(o.pending, data...)
	return o.err
}

// flush sends what put has left, unless another goroutine does. Then it waits, as send does,
// while too much is left to that one.
func (o *sender) flush() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	for o.sending && len(o.pending) > maxPending {
		o.free.Wait()
	}
	if !o.sending && o.err == nil && len(o.pending) > 0 {
		o.sending = true
		o.drain(math.MaxInt)
	}
	return o.err
}

// post keeps a small message for the next push or send, since its caller does not wait for
// the answer and so need not see it leave. Many that are posted together leave with one
// system call, and get to the other side together. It waits for room. It calls lost, which
// is not nil, with an error.
func (o *sender) post(head, data []byte) {
	if len(data) > copied {
		if err := o.send(head, data); err != nil {
			o.lost(err)
		}
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	for o.sending && len(o.pending) > maxPending {
		o.free.Wait()
	}
	if o.err != nil {
		return // the goroutine that met it has told
	}
	o.pending = append(o.pending, head...)
	o.pending = append(o.pending, data...)
}

// push has a goroutine send what was left to it. lost, which is always the same, is called
// if that fails.
func (o *sender) push(lost func(error)) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.sending || o.err != nil || len(o.pending) == 0 {
		return
	}
	o.sending = true
	if o.restful == nil {
		o.restful = func() { o.rest(lost) }
	}
	go o.restful()
}

// queue appends a message to large. The caller holds mu.
func (o *sender) queue(head, data []byte) *large {
	var l *large
	if k := len(o.unused); k > 0 {
		l, o.unused = o.unused[k-1], o.unused[:k-1]
	} else {
		l = &large{ended: make(chan struct{}, 1)}
	}
	l.head, l.data, l.own = append(l.head[:0], head...), data, false
	o.large = append(o.large, l)
	return l
}

// rest sends until there is nothing left; its caller has set sending.
func (o *sender) rest(lost func(error)) {
	o.mu.Lock()
	o.drain(math.MaxInt)
	err := o.err
	o.mu.Unlock()
	if err != nil {
		lost(err)
	}
}

// farewell sends the last message if no goroutine is sending, and reports whether it was
// sent. It waits for a moment at most.
func (o *sender) farewell(head []byte) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.sending || o.err != nil {
		return false
	}
	o.sending = true
	if short := leave - leave/9; o.endless || o.timeout > short { // leave with the eighth more
		o.timeout, o.endless = short, false // the sending goroutine reads them
	}
	o.until = time.Time{}
	o.pending = append(o.pending, head...)
	o.drain(math.MaxInt)
	return o.err == nil
}

// enqueue has a small message sent, without waiting. If no goroutine is sending, it starts
// one, which ends when there is nothing more to send. lost is called if that fails.
func (o *sender) enqueue(head []byte, lost func(error)) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.err != nil {
		return
	}
	o.pending = append(o.pending, head...)
	if o.sending {
		return // the goroutine that sends is told of an error
	}
	o.sending = true
	go o.rest(lost)
}

// abort makes err the error of all messages that are still to be sent, if there is no
// error yet.
func (o *sender) abort(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.err == nil {
		o.err = err
	}
	o.free.Broadcast()
}

// wait waits until no goroutine is sending.
func (o *sender) wait() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for o.sending {
		o.free.Wait()
	}
}

// drain sends what there is, and what others add, with at most so many system calls. It
// reports whether nothing is left; if something is, sending is still set. The caller has
// set sending and holds mu, which is released meanwhile.
func (o *sender) drain(most int) bool {
	for o.err == nil && (len(o.pending) > 0 || len(o.large) > 0) {
		if most--; most < 0 {
			return false
		}
		p := o.pending
		o.pending = o.spare[:0]
		o.gather(p)
		o.mu.Unlock()
		o.vec = o.parts
		err := o.transmit()
		for !o.whole && err == nil && len(o.vec) > 0 {
			o.mu.Lock()
			o.calls++
			o.mu.Unlock()
			err = o.transmit()
		}
		clear(o.parts)
		o.mu.Lock()
		o.calls++
		o.spare = p
		if o.err == nil {
			o.err = err
		}
		o.release(o.batch)
		o.free.Broadcast()
	}
	if o.err != nil {
		o.release(o.large)
		o.pending, o.large = o.pending[:0], o.large[:0]
	}
	o.sending = false
	o.free.Broadcast()
	return true
}

// transmit sends vec, or a piece of it where that is all that is sent at a time, and removes
// from it what has left.
func (o *sender) transmit() error {
	for {
		o.allow()
		var n int64
		var err error
		if o.whole && len(o.vec) > 1 {
			n, err = o.vec.WriteTo(o.conn)
		} else {
			n, err = o.one()
		}
		if err == nil || !o.whole || n < piece || !isTimeout(err) {
			return err
		}
	}
}

// one sends the first part of vec, or a piece of it.
func (o *sender) one() (int64, error) {
	p := o.vec[0]
	if !o.whole {
		p = p[:min(len(p), piece)]
	}
	n, err := o.conn.Write(p)
	if o.vec[0] = o.vec[0][n:]; len(o.vec[0]) == 0 {
		o.vec = o.vec[1:]
	}
	return int64(n), err
}

// allow gives the next system call of the sending goroutine the timeout, or up to an eighth
// more, so that the deadline need not be moved for each.
func (o *sender) allow() {
	if o.endless {
		return
	}
	if now := time.Now(); o.until.Sub(now) <= o.timeout {
		o.until = now.Add(o.timeout + o.timeout/8)
		o.conn.SetWriteDeadline(o.until)
	}
}

// gather puts the first of large into the batch, and their parts after p. The caller holds
// mu.
func (o *sender) gather(p []byte) {
	o.batch, o.parts = o.batch[:0], o.parts[:0]
	if len(p) > 0 {
		o.parts = append(o.parts, p)
	}
	n, size := 0, 0
	for n < len(o.large) && size < maxBatch {
		l := o.large[n]
		o.batch, o.parts = append(o.batch, l), append(o.parts, l.head, l.data)
		size += len(l.data)
		n++
	}
	o.large = append(o.large[:0], o.large[n:]...)
	clear(o.large[len(o.large) : len(o.large)+n])
}

// release wakes those who wait for the messages in all. The caller holds mu.
func (o *sender) release(all []*large) {
	for i, l := range all {
		l.data, all[i] = nil, nil
		if l.own {
			o.unused = append(o.unused, l)
		} else {
			l.ended <- struct{}{}
		}
	}
}
