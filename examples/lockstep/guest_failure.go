package main

import (
	"context"
	"fmt"
	"sync"
)

// A fate is what a guest that fails means. While a session protects it, the other
// side is to go on: the session yields. Before and after, it is the end of the side.
type fate struct {
	mu      sync.Mutex
	session session // nil: there is none, or it has ended
	failed  error   // the guest has; the session was told
}

// protect says that a session begins.
func (f *fate) protect(s session) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.session = s
}

// alone says that the session has ended and this side is to go on. It returns why it
// cannot: the guest failed meanwhile.
func (f *fate) alone() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.session = nil
	return f.failed
}

// yield lets the other side go on, since this side's guest has failed. It reports
// whether there is a session to tell.
func (f *fate) yield(why error) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.session == nil {
		return false
	}
	f.failed = why
	f.session.Yield(why)
	return true
}

// runGuest runs the guest until ctx ends or the guest fails.
func (s *side) runGuest(ctx context.Context, fail context.CancelCauseFunc) {
	err := s.machine.Run(ctx)
	if ctx.Err() != nil {
		return
	}
	if err = fmt.Errorf("guest: %w", err); !s.guest.yield(err) {
		fail(err)
	}
}
