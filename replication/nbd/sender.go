package nbd

import (
	"math"
	"net"
	"sync"
	"time"
)

// sender sends messages of a head and data. Small ones that come while
// another is being sent leave together.
type sender struct {
	conn    net.Conn
	timeout time.Duration
	lost    func(error) // see handOver; nil: whoever sends goes on as long as there is something

	mu      sync.Mutex
	free    *sync.Cond // there may be room in pending, or sending is false
	sending bool
	pending []byte
	spare   []byte
	parts   [2][]byte
	vec     net.Buffers // of parts
	err     error
}

const (
	// copied is the longest data that is copied rather than sent from where
	// it is.
	copied = 16 << 10
	// leave is how long a farewell may take.
	leave = 100 * time.Millisecond
	// handOver is after how many system calls somebody who sends for others
	// leaves the rest to a goroutine, if there is somebody to be told of its
	// error: the write of a guest, or a checkpoint, would be held up for as long
	// as others have something to send.
	handOver = 8
	// maxPending is how much is collected while somebody sends; others wait.
	maxPending = 256 << 10
)

func (o *sender) init(conn net.Conn, timeout time.Duration) {
	o.conn, o.timeout = conn, timeout
	o.free = sync.NewCond(&o.mu)
}

// send sends a message, or leaves it to whoever is sending. Neither head nor
// data is used after it returns. The first error sticks.
func (o *sender) send(head, data []byte) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	for o.sending && (len(data) > copied || len(o.pending) > maxPending) {
		o.free.Wait()
	}
	o.pending = append(o.pending, head...)
	if len(data) <= copied {
		o.pending = append(o.pending, data...)
		data = nil
	}
	if o.sending {
		return o.err
	}
	o.sending = true
	most := handOver
	if o.lost == nil {
		most = math.MaxInt
	}
	if !o.drain(data, most) {
		go o.rest(o.lost)
	}
	return o.err
}

// rest sends what there is until there is no more; its caller has set sending.
func (o *sender) rest(lost func(error)) {
	o.mu.Lock()
	o.drain(nil, math.MaxInt)
	err := o.err
	o.mu.Unlock()
	if err != nil {
		lost(err)
	}
}

// farewell sends the last message, if nobody is sending, and reports whether it
// has left. It does not wait for long.
func (o *sender) farewell(head []byte) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.sending || o.err != nil {
		return false
	}
	o.sending = true
	o.timeout = min(o.timeout, leave) // read by who sends
	o.pending = append(o.pending, head...)
	o.drain(nil, math.MaxInt)
	return o.err == nil
}

// enqueue has a small message sent, without waiting for anything: if nobody is
// sending, by a goroutine that ends when there is nothing more to send. lost is
// called if that fails.
func (o *sender) enqueue(head []byte, lost func(error)) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.err != nil {
		return
	}
	o.pending = append(o.pending, head...)
	if o.sending {
		return // an error is told to that one
	}
	o.sending = true
	go o.rest(lost)
}

// abort makes err that of all that is still to be sent, unless there is one.
func (o *sender) abort(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.err == nil {
		o.err = err
	}
	o.free.Broadcast()
}

// wait waits until nobody is sending.
func (o *sender) wait() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for o.sending {
		o.free.Wait()
	}
}

// drain sends what is pending, and data after that, and what others add, with at
// most so many system calls; it reports whether that is all. If not, sending is
// still set. The caller holds mu, which is released meanwhile, and has set sending.
func (o *sender) drain(data []byte, most int) bool {
	for o.err == nil && (len(o.pending) > 0 || data != nil) {
		if most--; most < 0 {
			return false
		}
		p := o.pending
		o.pending = o.spare[:0]
		o.mu.Unlock()
		o.conn.SetWriteDeadline(time.Now().Add(o.timeout))
		var err error
		if data == nil {
			_, err = o.conn.Write(p)
		} else {
			o.parts = [2][]byte{p, data}
			o.vec = o.parts[:]
			_, err = o.vec.WriteTo(o.conn)
			data, o.parts = nil, [2][]byte{}
		}
		o.mu.Lock()
		o.spare = p
		if o.err == nil {
			o.err = err
		}
		o.free.Broadcast()
	}
	o.sending = false
	o.free.Broadcast()
	return true
}
