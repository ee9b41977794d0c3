package qmp

import (
	"net"
	"sync"
)

// outbox has the lines that wait to be written to a client.
type outbox struct {
	maxBytes, maxEvents int

	mu      sync.Mutex
	changed sync.Cond
	lines   [][]byte
	isEvent []bool // of each line, whether it is an event
	bytes   int    // the length of all lines together
	events  int    // among the lines
	missed  uint64 // events that were dropped
	last    bool   // no line follows
	gone    bool   // nobody takes lines any more
}

func newOutbox(maxBytes, maxEvents int) *outbox {
	o := &outbox{maxBytes: maxBytes, maxEvents: maxEvents}
	o.changed.L = &o.mu
	return o
}

// answer adds a line that must not be lost, and waits while there are too many.
func (o *outbox) answer(line []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for o.bytes > o.maxBytes && !o.gone {
		o.changed.Wait()
	}
	o.put(line, false)
}

// event adds a line unless there are too many, and reports whether it did. It does not
// wait.
func (o *outbox) event(line []byte) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.gone || o.last {
		return true
	}
	if o.events >= o.maxEvents || o.bytes > 2*o.maxBytes {
		o.missed++
		return false
	}
	o.put(line, true)
	return true
}

func (o *outbox) put(line []byte, event bool) {
	if o.gone {
		return
	}
	o.lines, o.isEvent = append(o.lines, line), append(o.isEvent, event)
	if o.bytes += len(line); event {
		o.events++
	}
	o.changed.Broadcast()
}

// finish says that no line follows: what is there is still written.
func (o *outbox) finish() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.last = true
	o.changed.Broadcast()
}

// run writes the lines until finish was called and none is left, or until an error. Before
// each write it calls deadline, which sets the time by which the client must take a byte.
func (o *outbox) run(conn net.Conn, deadline func()) error {
	defer func() {
		o.mu.Lock()
		o.gone, o.lines, o.isEvent = true, nil, nil
		o.changed.Broadcast()
		o.mu.Unlock()
	}()
	const chunk = 64 << 10
	var buf []byte
	for {
		o.mu.Lock()
		for len(o.lines) == 0 && !o.last {
			o.changed.Wait()
		}
		if len(o.lines) == 0 {
			o.mu.Unlock()
			return nil
		}
		n := 0
		for buf = buf[:0]; n < len(o.lines) && len(buf) < chunk; n++ {
			buf = append(buf, o.lines[n]...)
		}
		o.mu.Unlock()
		for part := buf; len(part) > 0; {
			deadline()
			m, err := conn.Write(part[:min(len(part), chunk)])
			if part = part[m:]; err != nil && m == 0 {
				return err
			}
		}
		if cap(buf) > 4*chunk {
			buf = nil
		}
		o.mu.Lock()
		for i := range n {
			o.bytes -= len(o.lines[i])
			if o.isEvent[i] {
				o.events--
			}
			o.lines[i] = nil
		}
		if o.lines, o.isEvent = o.lines[n:], o.isEvent[n:]; len(o.lines) == 0 {
			o.lines, o.isEvent = nil, nil
		}
		o.changed.Broadcast()
		o.mu.Unlock()
	}
}

func (o *outbox) missedEvents() uint64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.missed
}
