package colotest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/event"
)

// ErrHeld is how a [Witness] refuses. It matches colo.ErrRefused.
var ErrHeld = fmt.Errorf("colotest: the other side holds the guest: %w", colo.ErrRefused)

// Witness is an arbiter in memory, for both sides of a pair: the first side that
// asks gets the guest, for the whole generation, and the other does not. It may
// be asked from any goroutine.
type Witness struct {
	// Deny, if set, is asked first; its error refuses whoever asks, and is
	// made to match colo.ErrRefused, unless it says that nobody could be asked:
	// it matches context.DeadlineExceeded, context.Canceled or
	// os.ErrDeadlineExceeded, or is a net.Error. Set it before use.
	Deny func(colo.Claim) error

	mu         sync.Mutex
	holder     event.Mode
	generation int
	claims     []colo.Claim
}

var _ colo.Arbiter = (*Witness)(nil)

// Arbitrate implements colo.Arbiter.
func (w *Witness) Arbitrate(_ context.Context, c colo.Claim) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.claims = append(w.claims, c)
	if w.Deny != nil {
		if err := w.Deny(c); err != nil {
			return refusal(err)
		}
	}
	switch w.holder {
	case "":
		w.holder = c.Mode
	case c.Mode:
	default:
		return fmt.Errorf("%w: the %s, in generation %d", ErrHeld, w.holder, w.generation)
	}
	return nil
}

// refusal makes err a refusal, unless it says that nobody could be asked.
func refusal(err error) error {
	var n net.Error
	switch {
	case errors.Is(err, colo.ErrRefused), errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled),
		errors.Is(err, os.ErrDeadlineExceeded), errors.As(err, &n):
		return err
	}
	return fmt.Errorf("%w: %w", colo.ErrRefused, err)
}

// Holder returns the side that got the guest in this generation, "" if none
// did.
func (w *Witness) Holder() event.Mode {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.holder
}

// Claims returns what was asked so far, in order.
func (w *Witness) Claims() []colo.Claim {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]colo.Claim(nil), w.claims...)
}

// Next begins a generation: the survivor is protected again, by a new pair.
func (w *Witness) Next() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.generation++
	w.holder = ""
}
