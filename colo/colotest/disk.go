package colotest

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"sync"

	"github.com/gocolo/lockstep/replication"
)

// Disk is a disk whose content is a list: the guest appends to it. The disk of the primary
// sends what is appended to it to the disk of the secondary ([Disk.Follow]), before a
// session at once and then as the protocol allows; both record what a session asked of
// them. Calls in an order that the protocol does not allow fail, which ends the session.
//
// Its methods may be called from any goroutine.
type Disk struct {
	// Fail, if set, is called before each call of a session is carried out; if it returns
	// an error, the call returns that. It is called with the disk locked.
	Fail func(Call) error

	mu      sync.Mutex
	peer    *Disk    // the disk of the secondary; nil: nobody follows
	content []uint64 // what the guest sees
	own     int      // the end of content that the guest of a secondary wrote itself
	pending []uint64 // forwarded to a secondary, not yet of a checkpoint
	held    []uint64 // of a primary: forwarded behind a mark, for the checkpoint after it
	holding bool     // forwarded writes go to held
	started bool     // Start was called
	stopped bool     // Stop was called
	calls   []Call
	last    Call
}

var (
	_ replication.Replicator = (*Disk)(nil)
	_ replication.Marker     = (*Disk)(nil)
)

// NewDisk returns an empty disk.
func NewDisk() *Disk { return new(Disk) }

// Follow makes peer, a new disk, the copy of d on the secondary: it gets the content of
// d, and from now on what is written to d. Call it before the session, while the guest
// does not write.
func (d *Disk) Follow(peer *Disk) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.peer, d.holding, d.started, d.stopped = peer, false, false, false
	peer.forward(d.content...)
}

// Append writes to the disk, on behalf of the guest.
func (d *Disk) Append(v uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.content = append(d.content, v)
	switch {
	case d.stopped:
	case d.peer == nil:
		if d.started {
			d.own++
		}
	case d.holding:
		d.held = append(d.held, v)
	default:
		d.peer.forward(v)
	}
}

func (d *Disk) forward(v ...uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.started {
		d.content = append(d.content, v...)
		return
	}
	d.pending = append(d.pending, v...)
}

// AppendFrame appends the hash in a frame of a [VM], so that the disk can be
// compared with the guest's history.
func (d *Disk) AppendFrame(frame []byte) {
	d.Append(binary.BigEndian.Uint64(frame[len(frame)-16:])) // the round's hash
}

// Content returns what the guest sees.
func (d *Disk) Content() []uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.content)
}

// Calls returns what a session called, in order; Err is not recorded.
func (d *Disk) Calls() []Call {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.calls)
}

// turn records a call, and fails it where the protocol does not allow it now.
func (d *Disk) turn(name string, epoch uint64, ok bool) error {
	c := Call{name, epoch}
	d.calls = append(d.calls, c)
	if !ok {
		return fmt.Errorf("colotest: disk: %v after %v", c, d.last)
	}
	if d.Fail != nil {
		if err := d.Fail(c); err != nil {
			return err
		}
	}
	d.last = c
	return nil
}

// Start implements replication.Replicator.
func (d *Disk) Start(context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.turn("start", 0, !d.started || d.stopped); err != nil {
		return err
	}
	d.started, d.stopped, d.own, d.pending = true, false, 0, nil
	return nil
}

// Checkpoint implements replication.Replicator: the guest's own writes vanish,
// those of the primary take their place.
func (d *Disk) Checkpoint(_ context.Context, epoch uint64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.turn("checkpoint", epoch, d.started && !d.stopped && d.last.Epoch+1 == epoch); err != nil {
		return err
	}
	d.content = append(d.content[:len(d.content)-d.own], d.pending...)
	d.own, d.pending = 0, nil
	return nil
}

// Err implements replication.Replicator: what Fail says to the name "err".
func (d *Disk) Err() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.Fail == nil {
		return nil
	}
	return d.Fail(Call{"err", d.last.Epoch})
}

// Stop implements replication.Replicator. What was forwarded and is of no
// checkpoint is void.
func (d *Disk) Stop(_ context.Context, failover bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	name := "stop"
	if failover {
		name = "failover"
	}
	if err := d.turn(name, d.last.Epoch, true); err != nil {
		return err
	}
	if !failover {
		d.content = d.content[:len(d.content)-d.own]
	}
	d.own, d.pending, d.held, d.stopped = 0, nil, nil, true
	return nil
}

// Mark implements replication.Marker.
func (d *Disk) Mark(_ context.Context, epoch uint64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	// The mark of the initial synchronisation comes before Start.
	ok := epoch == 0 || d.started && d.last == Call{"loaded", epoch - 1}
	if err := d.turn("mark", epoch, ok); err != nil {
		return err
	}
	d.holding = true
	return nil
}

// Loaded implements replication.Marker.
func (d *Disk) Loaded(_ context.Context, epoch uint64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	ok := d.last == Call{"mark", epoch} || epoch == 0 && d.last == Call{"start", 0}
	if err := d.turn("loaded", epoch, ok); err != nil {
		return err
	}
	d.holding = false
	if d.peer != nil {
		d.peer.forward(d.held...)
	}
	d.held = nil
	return nil
}
