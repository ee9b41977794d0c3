package nbd

import (
	"math"
	"net"
	"sync"
	"time"
)

// sender sends messages of a head and data. Those that come while another is being
// sent leave together, with one system call, in the order in which they came but for
// the small ones, which leave before the others.
type sender struct {
	conn    net.Conn
	timeout time.Duration
	lost    func(error) // see handOver; nil: whoever sends goes on as long as there is something

	mu      sync.Mutex
	free    *sync.Cond // there may be room in pending, or sending is false
	sending bool
	pending []byte   // small messages
	large   []*large // whose callers wait, the first but for one that sends itself
	spare   []byte
	batch   []*large    // of whoever sends, as are parts and vec
	parts   [][]byte    // of the batch
	vec     net.Buffers // parts, of which a write takes away what it has sent
	unused  []*large
	err     error
}

// large is a message whose data is sent from where it is.
type large struct {
	head  []byte
	data  []byte
	ended chan struct{} // has an element when it has been sent, or cannot be
	own   bool          // of whoever sends, and nobody waits for ended
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
	// maxBatch is after how much data one system call takes no more messages, for
	// they have the timeout together.
	maxBatch = 512 << 10
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
	most := handOver
	if o.lost == nil {
		most = math.MaxInt
	}
	if !o.drain(most) {
		go o.rest(o.lost)
	}
	return o.err
}

// queue makes a message one of large. The caller holds mu.
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

// rest sends what there is until there is no more; its caller has set sending.
func (o *sender) rest(lost func(error)) {
	o.mu.Lock()
	o.drain(math.MaxInt)
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
	o.drain(math.MaxInt)
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

// drain sends what is there, and what others add, with at most so many system
// calls; it reports whether that is all. If not, sending is still set. The caller
// holds mu, which is released meanwhile, and has set sending.
func (o *sender) drain(most int) bool {
	for o.err == nil && (len(o.pending) > 0 || len(o.large) > 0) {
		if most--; most < 0 {
			return false
		}
		p := o.pending
		o.pending = o.spare[:0]
		o.gather(p)
		o.mu.Unlock()
		o.conn.SetWriteDeadline(time.Now().Add(o.timeout))
		var err error
		if len(o.batch) == 0 {
			_, err = o.conn.Write(p)
		} else {
			o.vec = o.parts
			_, err = o.vec.WriteTo(o.conn)
		}
		clear(o.parts)
		o.mu.Lock()
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

// gather makes the batch, and its parts after p, of the first of large. The caller
// holds mu.
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

// release lets go on whoever waits for one of these. The caller holds mu.
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
