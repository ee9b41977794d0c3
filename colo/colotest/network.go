package colotest

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/vmstate"
)

// ErrFull says that a [Network] holds as many frames as it may.
var ErrFull = errors.New("colotest: network full")

// maxCarried bounds the frames, and the bytes of one, that a checkpoint
// carries.
const (
	maxCarried = 1 << 20
	maxFrame   = 64 << 10
)

// Network is a guest's network: it holds the guest's output as a session tells
// it to, lets it leave to Send, and records both. It is a colo.PrimaryNetwork
// and a colo.SecondaryNetwork, so a guest keeps its Network when its side
// changes; and it is a device, which must be registered ([Network.Register]):
// frames that the checkpoint covers and that have not left yet are part of it,
// so that a secondary that takes over can send them.
//
// A new Network passes everything. Calls in an order that the protocol does not
// allow fail, which ends the session.
//
// Its methods may be called from any goroutine. Send is called with the network
// locked, one frame at a time.
type Network struct {
	// Send is given each frame that leaves, which it may keep. Nil: the frame
	// is only recorded.
	Send func(frame []byte)
	// Limit is how many frames may be held; then Output returns ErrFull. 0: no
	// limit.
	Limit int
	// Full is called when Output refuses a frame (colo.Primary's
	// RequestCheckpoint, say), on Output's goroutine.
	Full func()
	// Keep says how many of the frames that left are recorded, the last ones.
	// 0: all. Negative: none.
	Keep int

	mu       sync.Mutex
	holding  bool
	held     []held   // by this side's guest, in order
	spare    [][]byte // memory of frames that have left, for reuse
	carried  [][]byte // by the primary's guest, covered by our checkpoint, perhaps not sent yet
	released []Released
	calls    []Call
	last     Call   // the last call, which says what may come next
	now      uint64 // the epoch that the guest's output belongs to
	received uint64
	image    frames
}

// Released is a frame that left.
type Released struct {
	Frame []byte
	// Epoch is that in which the guest gave the frame; Received is the last
	// epoch that was received when it left. Both count from 0; before a
	// session and after it they are those of the last session.
	Epoch, Received uint64
	// Alone says that it left because this side was alone.
	Alone bool
}

// Call is one call of a network or a disk by a session.
type Call struct {
	Name  string // the method, lower case
	Epoch uint64
}

// String returns the call as a session makes it, such as "Mark(3)".
func (c Call) String() string { return fmt.Sprintf("%s(%d)", c.Name, c.Epoch) }

// held is a frame that waits for the checkpoint after an epoch.
type held struct {
	frame []byte
	epoch uint64
	since time.Time
}

var (
	_ colo.PrimaryNetwork   = (*Network)(nil)
	_ colo.SecondaryNetwork = (*Network)(nil)
	_ colo.Dropper          = (*Network)(nil)
	_ colo.OutputHolder     = (*Network)(nil)
	_ vmstate.Device        = (*Network)(nil)
)

// Register registers the network as a device.
func (n *Network) Register(reg *vmstate.Registry) error {
	return reg.Register(vmstate.Entry{Name: "network", Version: 1, MinVersion: 1}, n)
}

// Output takes a frame of the guest. Use it as VMConfig.Output.
func (n *Network) Output(frame []byte) error {
	n.mu.Lock()
	if n.Limit > 0 && n.holding && len(n.held) >= n.Limit {
		n.mu.Unlock()
		if n.Full != nil {
			n.Full()
		}
		return ErrFull
	}
	defer n.mu.Unlock()
	var b []byte
	if k := len(n.spare); k > 0 {
		b, n.spare = n.spare[k-1], n.spare[:k-1]
	}
	b = append(b[:0], frame...)
	if !n.holding {
		n.release(held{frame: b, epoch: n.now}, true)
		return nil
	}
	n.held = append(n.held, held{b, n.now, time.Now()})
	return nil
}

func (n *Network) release(h held, alone bool) {
	if n.Send != nil {
		n.Send(h.frame)
	}
	switch {
	case n.Keep < 0:
		if n.Send == nil {
			n.spare = append(n.spare, h.frame)
		}
		return
	case n.Keep > 0 && len(n.released) >= n.Keep:
		n.released = append(n.released[:0], n.released[len(n.released)-n.Keep+1:]...)
	}
	n.released = append(n.released, Released{Frame: h.frame, Epoch: h.epoch, Received: n.received, Alone: alone})
}

// turn records a call, and fails it where the protocol does not allow it now.
func (n *Network) turn(name string, epoch uint64, ok bool) error {
	c := Call{name, epoch}
	if n.Keep >= 0 {
		n.calls = append(n.calls, c)
	}
	if !ok {
		return fmt.Errorf("colotest: network: %v after %v", c, n.last)
	}
	n.last = c
	return nil
}

// Mark implements colo.PrimaryNetwork.
func (n *Network) Mark(epoch uint64) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	ok := epoch == 0 && !n.holding || epoch > 0 && n.last == Call{"loaded", epoch - 1}
	if err := n.turn("mark", epoch, ok); err != nil {
		return err
	}
	n.holding, n.now = true, epoch+1
	return nil
}

// Received implements colo.PrimaryNetwork.
func (n *Network) Received(epoch uint64) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.turn("received", epoch, n.last == Call{"mark", epoch}); err != nil {
		return err
	}
	n.received = epoch
	i := 0
	for ; i < len(n.held) && n.held[i].epoch <= epoch; i++ {
		n.release(n.held[i], false)
	}
	n.held = append(n.held[:0], n.held[i:]...)
	return nil
}

// Loaded implements colo.PrimaryNetwork.
func (n *Network) Loaded(epoch uint64) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.turn("loaded", epoch, n.last == Call{"received", epoch})
}

// Commit implements colo.SecondaryNetwork.
func (n *Network) Commit(epoch uint64) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	ok := epoch == 0 && n.last == Call{} || epoch > 0 && n.last == Call{"resumed", epoch - 1}
	if err := n.turn("commit", epoch, ok); err != nil {
		return err
	}
	n.holding, n.now, n.received = true, epoch+1, epoch
	for _, h := range n.held {
		n.spare = append(n.spare, h.frame)
	}
	n.held = n.held[:0]
	return nil
}

// Resumed implements colo.SecondaryNetwork.
func (n *Network) Resumed(epoch uint64) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.turn("resumed", epoch, n.last == Call{"commit", epoch})
}

// Failover implements both: what the checkpoint covers and what this side's
// guest has since said leaves, in order.
func (n *Network) Failover() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.turn("failover", n.last.Epoch, true); err != nil {
		return err
	}
	for _, f := range n.carried {
		n.release(held{frame: f, epoch: n.last.Epoch}, true)
	}
	for _, h := range n.held {
		n.release(h, true)
	}
	n.carried, n.held, n.holding = nil, nil, false
	return nil
}

// Drop implements colo.Dropper: what is held is dropped, and what this side's guest says
// from now on never leaves.
func (n *Network) Drop() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.turn("drop", n.last.Epoch, true); err != nil {
		return err
	}
	n.carried, n.held, n.holding = nil, nil, true
	return nil
}

// HeldOutput implements colo.OutputHolder.
func (n *Network) HeldOutput() colo.Held {
	n.mu.Lock()
	defer n.mu.Unlock()
	var h colo.Held
	for _, f := range n.held {
		h.Packets++
		h.Bytes += int64(len(f.frame))
	}
	if len(n.held) > 0 {
		h.Age = time.Since(n.held[0].since)
	}
	return h
}

// Held returns how many frames wait.
func (n *Network) Held() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.held) + len(n.carried)
}

// Released returns what has left, as far as it is kept.
func (n *Network) Released() []Released {
	n.mu.Lock()
	defer n.mu.Unlock()
	return append([]Released(nil), n.released...)
}

// Calls returns what a session called, in order.
func (n *Network) Calls() []Call {
	n.mu.Lock()
	defer n.mu.Unlock()
	return append([]Call(nil), n.calls...)
}

// frames is the state of a network in the stream.
type frames struct{ list [][]byte }

// PreSave implements vmstate.PreSaver. Between the mark and the save the guest
// stands still, so all that is held belongs to the checkpoint.
func (n *Network) PreSave() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.image.list = n.image.list[:0]
	for _, h := range n.held {
		n.image.list = append(n.image.list, h.frame)
	}
	return nil
}

// VMState implements vmstate.Device.
func (n *Network) VMState(f *vmstate.Fields) {
	count := uint32(len(n.image.list))
	f.Uint32("frames", &count)
	list := vmstate.Resize(f, &n.image.list, uint64(count), maxCarried)
	for i := range list {
		size := uint32(len(list[i]))
		f.Uint32("length", &size)
		f.Bytes("frame", vmstate.Resize(f, &list[i], uint64(size), maxFrame))
	}
}

// PostLoad implements vmstate.PostLoader.
func (n *Network) PostLoad(uint32) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.carried = append([][]byte(nil), n.image.list...)
	return nil
}
