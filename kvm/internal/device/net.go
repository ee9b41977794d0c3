package device

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"

	"github.com/gocolo/lockstep/vmstate"
)

// A network card has a queue for what it receives and one for what it sends, and a
// header before each frame, all zero without offloads. (Virtio 1.1, section 5.1.)
const (
	netMAC    = 1 << 5  // VIRTIO_NET_F_MAC
	netStatus = 1 << 16 // VIRTIO_NET_F_STATUS

	netReceive  = 0
	netTransmit = 1

	netHeader = 10
)

// Lengths of a frame in bytes, without its checksum.
const (
	MinFrame = 14
	MaxFrame = 65535
)

// netQueued is how many bytes of frames wait for the guest at most.
const netQueued = 512 << 10

// Errors of Receive.
var (
	ErrFull  = errors.New("queue full")
	ErrFrame = errors.New("bad frame length")
)

// Uplink is where the frames go that the guest sends. See pc.Uplink.
type Uplink interface {
	WritePacket(frame []byte) error
	Room() <-chan struct{}
}

// Net is a virtio network card. What the guest sends goes to the uplink from the
// goroutine that runs Work; what the uplink does not take stays in the ring. What
// the guest receives waits in the card while the ring has no room for it, and is
// then part of the card's state.
type Net struct {
	virtio
	uplink  Uplink
	work    worker
	frame   []byte // being sent; Work's
	waiting frames
	wire    frames // waiting, in a stream
	dropped atomic.Uint64
}

// NewNet returns a network card. If mac is all zero, the guest chooses an address.
// log may be nil.
func NewNet(uplink Uplink, mac [6]byte, mem *Memory, line Line, log *slog.Logger) *Net {
	n := &Net{
		uplink:  uplink,
		work:    make(worker, 1),
		frame:   make([]byte, MaxFrame),
		waiting: newFrames(netQueued),
		wire:    newFrames(netQueued),
	}
	offered := uint32(netStatus)
	config := make([]byte, 8)
	if mac != [6]byte{} {
		offered |= netMAC
		copy(config, mac[:])
	}
	config[6] = 1 // the link is up
	n.init(2, offered, config, mem, line, log)
	n.notify = func(q int) {
		if q == netTransmit {
			n.work.kick()
			return
		}
		n.mu.Lock()
		n.deliver()
		n.mu.Unlock()
	}
	return n
}

// Dropped returns how many frames were dropped: those that the guest got no room
// ready for in time, and those that it sent and that are none.
func (n *Net) Dropped() uint64 { return n.dropped.Load() }

// Receive gives the guest a copy of a frame and never waits: while the ring has no
// room, or the gate is closed, the frame waits in the card. If there is no room in
// the card either it is dropped, with ErrFull. Any goroutine may call it.
func (n *Net) Receive(gate *Gate, frame []byte) error {
	if len(frame) < MinFrame || len(frame) > MaxFrame {
		return ErrFrame
	}
	in := gate.TryEnter()
	n.mu.Lock()
	ok := n.waiting.add(frame)
	if in {
		n.deliver()
	}
	n.mu.Unlock()
	if in {
		gate.Leave()
	}
	if !ok {
		n.dropped.Add(1)
		return ErrFull
	}
	return nil
}

// deliver moves waiting frames into the ring. mu is held.
func (n *Net) deliver() {
	var header [netHeader]byte
	moved := false
	for {
		f := n.waiting.first()
		if f == nil {
			break
		}
		c, ok := n.peek(netReceive)
		if !ok {
			break
		}
		if size(c.in) < netHeader+uint64(len(f)) {
			n.waiting.drop() // it will never fit
			n.dropped.Add(1)
			continue
		}
		q := &n.queues[netReceive]
		q.pop()
		n.mem.scatter(header[:], c.in, 0)
		n.mem.scatter(f, c.in, netHeader)
		q.push(c.head, uint32(netHeader+len(f)))
		n.waiting.drop()
		moved = true
	}
	if moved {
		n.interrupt(netReceive)
	}
}

// Work sends what the guest wants sent until ctx ends.
func (n *Net) Work(ctx context.Context, gate *Gate) {
	room := make(chan struct{})
	ctx, stop := context.WithCancel(ctx)
	go func() {
		defer close(room)
		for {
			select {
			case <-ctx.Done():
				return
			case <-n.uplink.Room():
				n.work.kick()
			}
		}
	}()
	n.work.run(ctx, gate, n.step)
	stop()
	<-room
}

// Kick has the card look at its rings: the gate has been opened.
func (n *Net) Kick() {
	n.work.kick()
	n.mu.Lock()
	n.deliver()
	n.mu.Unlock()
}

// KickTransmit has Work look for frames to send, after a time without it.
func (n *Net) KickTransmit() { n.work.kick() }

// step sends one frame.
func (n *Net) step() (more bool) {
	n.mu.Lock()
	c, ok := n.peek(netTransmit)
	if !ok {
		n.mu.Unlock()
		return false
	}
	length := size(c.out)
	good := length >= netHeader+MinFrame && length <= netHeader+MaxFrame
	if good {
		frame := n.frame[:length-netHeader]
		n.mem.gather(frame, c.out, netHeader)
		// The uplink may hand a frame to this card before it returns.
		n.busy++
		n.mu.Unlock()
		err := n.uplink.WritePacket(frame)
		n.mu.Lock()
		n.release()
		if err != nil { // full: it stays where it is until there is room
			n.mu.Unlock()
			return false
		}
	} else {
		n.dropped.Add(1)
	}
	defer n.mu.Unlock()
	q := &n.queues[netTransmit]
	q.pop()
	q.push(c.head, 0)
	n.interrupt(netTransmit)
	return true
}

// Save implements State.
func (n *Net) Save() {
	n.virtio.Save()
	n.mu.Lock()
	defer n.mu.Unlock()
	n.wire.copy(&n.waiting)
}

// Apply implements State.
func (n *Net) Apply() {
	n.virtio.Apply()
	n.mu.Lock()
	defer n.mu.Unlock()
	n.waiting.copy(&n.wire)
}

// VMState implements vmstate.Device.
func (n *Net) VMState(f *vmstate.Fields) {
	n.fields(f)
	n.wire.vmstate(f)
}
