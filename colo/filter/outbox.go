package filter

import (
	"context"
	"encoding/binary"
	"sync"
)

// An Outbox is where packets wait for a slow stream: the outdev of a mirror or
// a redirector. WriteFrame and Mark never wait; Run, on a goroutine of the
// caller's, writes to the stream, in order. Its methods may be called from any
// goroutine.
type Outbox struct {
	// Lost is called when a packet found no room, from within WriteFrame, once
	// until a Mark. The two guests do not see the same any more: it is time
	// for a checkpoint. It must not block. It is set before the Outbox is used.
	Lost func()

	wake chan struct{}

	mu     sync.Mutex
	ring   ring
	told   bool
	closed bool
	lost   uint64
}

// Each packet has a byte before it: the length of its virtio-net header, or isMark if it
// is no packet but a marker.
const isMark = 0xff

// NewOutbox returns an Outbox for limit bytes of packets. Zero is 4 MiB, and a limit below
// four packets of the greatest length is raised to that.
func NewOutbox(limit int) *Outbox {
	if limit == 0 {
		limit = 4 << 20
	}
	return &Outbox{wake: make(chan struct{}, 1), ring: ring{limit: max(limit, 4*slot(MaxFrame+1)) &^ 3}}
}

// WriteFrame takes a copy of f. If there is no room it returns [ErrFull], and the packet
// is lost. If f is no frame it returns an [*Error].
func (o *Outbox) WriteFrame(f Frame) error {
	switch {
	case len(f.Data) > MaxFrame:
		return &Error{Op: "outbox", Offset: -1, Err: ErrFrameTooBig}
	case len(f.Data) == 0, !validVNet(f.VNetHdr), f.VNetHdr > len(f.Data):
		return &Error{Op: "outbox", Offset: -1, Err: ErrFrame}
	}
	o.mu.Lock()
	tell := false
	var err error
	if !o.closed && !o.ring.pushBehind([]byte{byte(f.VNetHdr)}, f.Data) {
		err = ErrFull
		o.lost++
		tell = !o.told
		o.told = true
	}
	o.mu.Unlock()
	signal(o.wake)
	if tell && o.Lost != nil {
		o.Lost()
	}
	return err
}

// Mark puts an epoch marker after the packets that wait. If there is no room for it, it
// drops these packets: the checkpoint makes up for them.
func (o *Outbox) Mark(epoch uint64) error {
	m := [9]byte{isMark}
	binary.BigEndian.PutUint64(m[1:], epoch)
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed = false
	if !o.ring.push(m[:]) {
		o.lost += uint64(o.ring.n)
		o.ring.clear(true)
		o.ring.push(m[:])
	}
	o.told = false
	signal(o.wake)
	return nil
}

// Received does nothing. (A colo.PrimaryNetwork.)
func (o *Outbox) Received(epoch uint64) error { return nil }

// Loaded does nothing. (A colo.PrimaryNetwork.)
func (o *Outbox) Loaded(epoch uint64) error { return nil }

// Failover drops the packets that wait, and those that come until the next Mark, since
// there is no other side.
func (o *Outbox) Failover() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed = true
	o.ring.clear(true)
	return nil
}

// LostFrames returns how many packets found no room.
func (o *Outbox) LostFrames() uint64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.lost
}

// Run writes to conn until ctx ends or a write fails, and returns why. It is
// called once at a time. Packets whose write failed are lost, with the
// connection. A write that blocks is ended by closing the connection.
// Packets that wait go out together in one write, up to some size, so that a burst of
// small packets costs as much as one large packet.
func (o *Outbox) Run(ctx context.Context, conn *Conn) error {
	fill := func(b []byte) []byte { return o.drain(conn, b) }
	for ctx.Err() == nil {
		sent, err := conn.batch(fill)
		if err != nil {
			return err
		}
		if !sent {
			select {
			case <-ctx.Done():
			case <-o.wake:
			}
		}
	}
	return context.Cause(ctx)
}

// batchSize is how many bytes a write has at least, if that many wait.
const batchSize = 64 << 10

// drain appends the packets that wait to b, in the form in which conn writes them.
func (o *Outbox) drain(conn *Conn, b []byte) []byte {
	o.mu.Lock()
	defer o.mu.Unlock()
	for o.ring.n > 0 && len(b) < batchSize {
		if p := o.ring.front(); p[0] == isMark {
			b = conn.appendMark(b, binary.BigEndian.Uint64(p[1:]))
		} else {
			b = conn.appendFrame(b, p[1:], int(p[0]))
		}
		o.ring.pop()
	}
	return b
}

// A Mirror is a [Filter] that copies packets to an Outbox and lets them pass.
// On a primary it mirrors what goes to the guest, and the Outbox is told of the
// marks. Packets that find no room are lost to the other side, as Lost says.
type Mirror struct{ Out *Outbox }

// Process implements [Filter].
func (m Mirror) Process(_ Place, _ Direction, f Frame) bool {
	_ = m.Out.WriteFrame(f) // Lost says so
	return true
}

// A Redirector is a [Filter] that takes packets out of the chain and sends them to an
// Outbox. With a nil Out packets pass. [Chain.Serve] for its entry brings packets into the
// chain after it.
type Redirector struct{ Out *Outbox }

// Process implements [Filter].
func (r Redirector) Process(_ Place, _ Direction, f Frame) bool {
	if r.Out == nil {
		return true
	}
	_ = r.Out.WriteFrame(f) // Lost says so
	return false
}

// Pending returns how many packets and markers wait.
func (o *Outbox) Pending() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.ring.n
}
