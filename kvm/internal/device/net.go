package device

import (
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"math"
	"sync/atomic"

	"github.com/gocolo/lockstep/internal/packet"
	"github.com/gocolo/lockstep/vmstate"
)

// A network card has a queue for what it receives and one for what it sends, and a
// header before each frame, with num_buffers if frames may take several buffers.
// (Virtio 1.1, section 5.1.)
const (
	netMAC    = 1 << 5  // VIRTIO_NET_F_MAC
	netStatus = 1 << 16 // VIRTIO_NET_F_STATUS

	netReceive  = 0
	netTransmit = 1

	netHeader      = packet.VNetLen
	netMergeHeader = packet.VNetMergeLen
)

// NetVersion is the version of a card's section, which loads all from 1 on. Version 2 has
// the features that are offered as state, and headers before the frames that wait.
const NetVersion = netVersion

const netVersion = 2

// Lengths of a frame in bytes, without its checksum.
const (
	MinFrame    = 14
	MaxFrame    = 65535
	MaxBigFrame = 14 + 8 + 65535 // behind a header: an IP packet, and tags
)

// netQueued is how many bytes of frames wait for the guest at most, with what the queue
// adds to each. It has room for all frames that may have waited in a card of version 1:
// there a frame of at least 14 bytes took 2 more, and here it takes 14 more.
const netQueued = 1 << 20

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

// Composer is an Uplink in whose memory a frame can be made. See pc.Composer.
type Composer interface {
	ComposePacket(n int, compose func(frame []byte) bool) error
}

// Net is a virtio network card. What the guest sends goes to the uplink from the
// goroutine that runs Work; what the uplink does not take stays in the ring. What
// the guest receives waits in the card while the ring has no room for it, and is
// then part of the card's state.
type Net struct {
	virtio
	vnet    int           // length of the header before the uplink's frames, 0: none
	sending sending       // Work's
	waiting frames        // frames for the guest, until its ring takes them
	wire    frames        // waiting, in a stream
	dropped atomic.Uint64 // see Dropped
}

// NewNet returns a network card. If mac is all zero, the guest chooses an address. The
// frames to and from the uplink begin with a virtio-net header of vnet bytes, in which
// case it offers checksums, segmentation and buffers that are merged; 0: there is none.
// log may be nil.
func NewNet(uplink Uplink, vnet int, mac [6]byte, mem *Memory, line Line, log *slog.Logger) *Net {
	n := &Net{
		vnet:    vnet,
		waiting: newFrames(netQueued),
		wire:    newFrames(netQueued),
	}
	n.sending.init(uplink, vnet)
	offered := uint32(netStatus)
	if vnet > 0 {
		offered |= netOffloads
	}
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

// Dropped returns how many frames were dropped: those for which the guest had no
// room ready in time, and those that it sent and that are not valid.
func (n *Net) Dropped() uint64 { return n.dropped.Load() }

// most returns how long a frame may be, without its header.
func (n *Net) most() int {
	if n.vnet > 0 {
		return MaxBigFrame
	}
	return MaxFrame
}

// Receive gives the guest a copy of a frame and never waits: while the ring has no
// room, or the gate is closed, the frame waits in the card. If the driver has not offered to
// take such a frame, the card cuts it into segments or completes its checksum. If there is
// no room in the card either the frame is dropped, with ErrFull. A frame whose header is
// wrong fails with ErrFrame, and counts as dropped.
// Any goroutine may call it.
func (n *Net) Receive(gate *Gate, frame []byte) error {
	if len(frame) < n.vnet+MinFrame || len(frame) > n.vnet+n.most() {
		return ErrFrame
	}
	n.mu.Lock()
	err := n.keep(frame[:n.vnet], frame[n.vnet:])
	in := gate.TryEnter() // if not, whoever opens the gate finds the frame
	if in {
		n.deliver()
	}
	n.mu.Unlock()
	if in {
		gate.Leave()
	}
	if err != nil {
		n.dropped.Add(1)
	}
	return err
}

// keep puts a frame into the queue for the guest, whole or in segments. mu is held.
func (n *Net) keep(header, frame []byte) error {
	var h [vnetLen]byte
	copy(h[:], header)
	if !honest(h[:], frame) {
		return ErrFrame
	}
	if !takesWhole(n.features, h[:]) {
		if !n.waiting.cut(h[:], frame) {
			return ErrFull
		}
		return nil
	}
	b := n.waiting.add(vnetLen + len(frame))
	if b == nil {
		return ErrFull
	}
	copy(b[copy(b, h[:]):], frame)
	return nil
}

// deliver moves waiting frames into the ring. mu is held.
func (n *Net) deliver() {
	moved := false
	short := uint64(math.MaxUint64) // a frame that needed so many bytes would never have had room
	found := uint64(0)              // bytes of room that were found, and that no frame has taken
	q := &n.queues[netReceive]
	for b := n.waiting.first(); b != nil; b = n.waiting.first() {
		h, frame := packet.VNet(b[:vnetLen]), b[vnetLen:]
		var header [netMergeHeader]byte
		k := n.headerLen()
		need := uint64(k + len(frame))
		var rooms []room
		var in []segment
		var err error
		never, whole := need >= short, takesWhole(n.features, h)
		if !never && (whole || need > found) {
			rooms, in, never, err = q.rooms(need, n.features&netMerge != 0)
			n.broke(netReceive, err)
			found = max(found, size(in))
		}
		if never {
			short = need
		}
		if never || !whole && need <= found { // another driver has taken the card since the frame came
			n.waiting.drop()
			n.dropped.Add(1)
			continue
		}
		if rooms == nil {
			break
		}
		complete(n.features, h, frame)
		copy(header[:], h)
		binary.LittleEndian.PutUint16(header[netHeader:], uint16(len(rooms)))
		n.mem.scatter(header[:k], in, 0)
		n.mem.scatter(frame, in, uint64(k))
		for _, r := range rooms {
			q.pop()
			took := min(uint64(r.n), need)
			q.put(r.head, uint32(took))
			need -= took
		}
		q.publish()
		short, found = math.MaxUint64, 0
		n.waiting.drop()
		moved = true
	}
	if moved {
		n.interrupt(netReceive)
	}
}

// headerLen returns the length of the header that the driver puts before a
// frame that it sends, and expects before one that it receives. mu is held.
func (n *Net) headerLen() int {
	if n.features&netMerge != 0 {
		return netMergeHeader
	}
	return netHeader
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
			case <-n.sending.uplink.Room():
				n.work.kick()
			}
		}
	}()
	n.work.run(ctx, gate, n.step, nil)
	stop()
	<-room
}

// Kick makes the card look at its rings after the gate was opened.
func (n *Net) Kick() {
	n.work.kick()
	n.mu.Lock()
	n.deliver()
	n.mu.Unlock()
}

// KickTransmit makes Work look for frames to send, after a time in which it did not run.
func (n *Net) KickTransmit() { n.work.kick() }

// step sends one frame.
func (n *Net) step() (more bool) {
	n.mu.Lock()
	c, ok := n.peek(netTransmit)
	if !ok {
		n.mu.Unlock()
		return false
	}
	good := size(c.out) >= uint64(n.headerLen()+MinFrame) && size(c.out) <= uint64(n.headerLen()+n.most())
	if good {
		// The frame is sent without mu: the uplink may hand a frame to this card before it
		// returns, and a register that the driver writes meanwhile must not wait.
		n.busy++
		w := &n.sending
		w.begin(n.mem, c, n.headerLen(), n.features)
		n.mu.Unlock()
		err := w.send()
		n.mu.Lock()
		n.release()
		if good = w.good; good && err != nil { // full: it stays where it is until there is room
			n.mu.Unlock()
			return false
		}
	}
	if !good {
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
	n.fields(f, netOffloads)
	n.wire.vmstate(f)
}
