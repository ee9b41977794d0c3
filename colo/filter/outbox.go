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
	flying bool // the first one is being written from the ring, where it still is
	told   bool // Lost was called since the last Mark
	closed bool // packets are dropped, from Failover to the next Mark
	lost   uint64
}

// Each packet in the ring has slotHead bytes before it, which are be32 of its length and of
// that of its virtio-net header, as they go to a connection that has both. A marker has its
// number in the place of a packet, and isMark for the first length.
const (
	slotHead = 8
	isMark   = markMagic
)

// NewOutbox returns an Outbox for limit bytes of packets. Zero is 4 MiB, and a limit below
// four packets of the greatest length is raised to that.
func NewOutbox(limit int) *Outbox {
	if limit == 0 {
		limit = 4 << 20
	}
	return &Outbox{wake: make(chan struct{}, 1), ring: ring{limit: max(limit, 4*slot(slotHead+MaxFrame)) &^ 3}}
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
	var head [slotHead]byte
	binary.BigEndian.PutUint32(head[:], uint32(len(f.Data)))
	binary.BigEndian.PutUint32(head[4:], uint32(f.VNetHdr))
	o.mu.Lock()
	tell := false
	var err error
	if !o.closed && !o.ring.pushBehind(head[:], f.Data) {
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
	var m [slotHead + 8]byte
	binary.BigEndian.PutUint32(m[:], isMark)
	binary.BigEndian.PutUint64(m[slotHead:], epoch)
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed = false
	if !o.ring.push(m[:]) {
		o.lost += uint64(o.ring.n)
		if o.flying {
			o.lost--
		}
		o.clear()
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
	o.clear()
	return nil
}

// clear drops what waits. What is being written stays as it is, in memory that is not used
// again.
func (o *Outbox) clear() {
	o.ring.clear(true)
	o.flying = false
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
// small packets costs as much as one large packet. A large one goes by itself, from where it
// waits.
func (o *Outbox) Run(ctx context.Context, conn *Conn) error {
	fill := func(b []byte) []byte { return o.drain(conn, b) }
	for ctx.Err() == nil {
		if p := o.large(conn); p != nil {
			err := conn.whole(p)
			o.land()
			if err != nil {
				return err
			}
			continue
		}
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

const (
	batchSize = 64 << 10 // a write has at least as many bytes, if that many wait
	largeSize = 16 << 10 // a packet of as many bytes is not copied for a write
)

// drain appends the packets that wait to b, up to a large one, in the form in which conn
// writes them.
func (o *Outbox) drain(conn *Conn, b []byte) []byte {
	o.mu.Lock()
	defer o.mu.Unlock()
	for o.ring.n > 0 && len(b) < batchSize {
		p := o.ring.front()
		switch {
		case binary.BigEndian.Uint32(p) == isMark:
			b = conn.appendMark(b, binary.BigEndian.Uint64(p[slotHead:]))
		case len(p) >= largeSize:
			return b
		default:
			b = conn.appendFrame(b, p[slotHead:], int(binary.BigEndian.Uint32(p[4:])))
		}
		o.ring.pop()
	}
	return b
}

// large returns the first packet that waits if it is a large one, in the form in which conn
// writes it and in the ring's memory, else nil. It stays there until land.
func (o *Outbox) large(conn *Conn) []byte {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.ring.n == 0 {
		return nil
	}
	p := o.ring.front()
	if len(p) < largeSize {
		return nil
	}
	o.flying = true
	return conn.framed(p)
}

// land removes the packet that large has returned.
func (o *Outbox) land() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.flying {
		o.flying = false
		o.ring.pop()
	}
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
