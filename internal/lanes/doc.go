// Package lanes moves pages of guest memory over connections that run beside a
// stream, in the packets of package multifd.
//
// The stream is made of sections. Pages go over whichever connection (lane) is free,
// in any order within a section, and the end of each section is a barrier: a [Sender]
// has a SYNC packet on each lane before the stream says that the section ends, and a
// [Receiver] takes a lane's SYNC for its end there. So what a page of one section
// says is in place before anything of the next one is taken, on whichever connection
// it comes.
//
// One lane that breaks, or says what it may not, breaks all. Which of the two sides
// may go on then is for whoever drives the stream: no page counts before the
// section's end has been reached on all lanes and in the stream.
package lanes

import (
	"errors"
	"time"
)

// Limit says how long the goroutine that drives the stream waits for the lanes. Its
// methods are called on that goroutine.
type Limit interface {
	// Deadline returns when a wait that begins now is to be looked at again;
	// zero: never.
	Deadline() time.Time
	// Late is called when that time has come. Moved: a byte has been sent or received
	// on some lane since the wait began, or since Late was called last in it.
	// Nil: the wait goes on, to the next Deadline. An error spoils all lanes.
	Late(moved bool) error
}

// Max is how many lanes there may be: what a lane's number has room for.
const Max = 255

// ErrStuck says that a packet has not left a lane within the patience of its Sender.
var ErrStuck = errors.New("a channel is stuck")

// errClosed is the error of lanes that Close or Halt has ended in order; Err
// does not return it.
var errClosed = errors.New("the channels are closed")

// wait is the waiting of one goroutine within a Limit.
type wait struct {
	limit Limit // nil: for ever
	moved func() uint64
	timer *time.Timer
	seen  uint64
}

// begin begins a wait and returns what ends it, nil: nothing.
func (w *wait) begin() <-chan time.Time {
	if w.limit == nil {
		return nil
	}
	w.seen = w.moved()
	return w.arm()
}

func (w *wait) arm() <-chan time.Time {
	at := w.limit.Deadline()
	if at.IsZero() {
		return nil
	}
	if w.timer == nil {
		w.timer = time.NewTimer(time.Until(at))
	} else {
		w.timer.Reset(time.Until(at))
	}
	return w.timer.C
}

// late is called when the channel of begin has fired. It returns the channel that ends
// the rest of the wait, or the error of a wait that is over.
func (w *wait) late() (<-chan time.Time, error) {
	now := w.moved()
	moved := now != w.seen
	w.seen = now
	if err := w.limit.Late(moved); err != nil {
		return nil, err
	}
	return w.arm(), nil
}

// end ends a wait.
func (w *wait) end() {
	if w.timer != nil {
		w.timer.Stop()
	}
}
