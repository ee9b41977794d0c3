package failover

import (
	"context"
	"errors"
	"sync"
	"time"
)

// Manual is the Arbiter that is a person: a claim waits until an operator says yes or no
// to it. Each host has its own. It is the operator who makes sure that only one of the
// two is told yes; nothing else does. Its grants have no deadline, so the gate of a
// holder stays open for as long as the process lives: before another host is told yes the
// operator has made sure that this one has stopped.
//
// A claim whose After is the generation that this host itself holds is put to
// the operator too. Its methods may be called from any goroutine.
type Manual struct {
	// Asked, if set, is called with each claim that begins to wait. It is set
	// before the first use.
	Asked func(Claim)

	mu      sync.Mutex
	record  Record
	changed chan struct{} // closed and replaced with each change
	waiting *question
}

// question is a claim that waits for the operator.
type question struct {
	claim  Claim
	answer chan error // capacity one
}

var _ Arbiter = (*Manual)(nil)

// ErrNobodyAsks says that no claim waits for an operator's word.
var ErrNobodyAsks = errors.New("failover: no claim waits for an answer")

// NewManual returns a Manual that begins with the record r; a guest that was never granted
// has the zero Record.
func NewManual(r Record) *Manual { return &Manual{record: r, changed: make(chan struct{})} }

// Waiting returns the claim that waits for the operator's word.
func (m *Manual) Waiting() (c Claim, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.waiting == nil {
		return Claim{}, false
	}
	return m.waiting.claim, true
}

// Grant says yes to the claim that waits; ErrNobodyAsks if there is none.
func (m *Manual) Grant() error { return m.say(nil) }

// Refuse says no to the claim that waits, for good; ErrNobodyAsks if there is none.
func (m *Manual) Refuse() error { return m.say(ErrRefused) }

func (m *Manual) say(answer error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.waiting == nil {
		return ErrNobodyAsks
	}
	m.waiting.answer <- answer
	m.waiting = nil
	return nil
}

// Revoke ends the grant that this host has: its next renewal is refused, and
// Watch reports it. A grant without a deadline is not renewed, so whoever holds
// it shuts its gate itself (Keeper.Drop).
func (m *Manual) Revoke() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.record.Held() {
		m.set(Record{Generation: m.record.Generation, Note: m.record.Note, Writes: m.record.Writes + 1})
	}
}

func (m *Manual) set(r Record) {
	m.record = r
	close(m.changed)
	m.changed = make(chan struct{})
}

// Acquire implements Arbiter. Since each host has a record of its own, a claim
// after a later generation than the record's is no contradiction. A second claim
// takes the place of the one that waits, which ends with ErrNobodyAsks.
func (m *Manual) Acquire(ctx context.Context, c Claim) (Grant, error) {
	if err := c.Check(); err != nil {
		return Grant{}, err
	}
	q := &question{c, make(chan error, 1)}
	m.mu.Lock()
	if m.waiting != nil {
		m.waiting.answer <- ErrNobodyAsks
	}
	m.waiting = q
	m.mu.Unlock()
	if m.Asked != nil {
		m.Asked(c)
	}
	sent := time.Now()
	var answer error
	select {
	case answer = <-q.answer:
	case <-ctx.Done():
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.waiting == q {
			m.waiting = nil
			return Grant{}, context.Cause(ctx)
		}
		// The operator was faster: a yes is a yes.
		if answer = <-q.answer; answer == nil {
			return m.grant(c, sent)
		}
		return Grant{}, answer
	}
	if answer != nil {
		return Grant{}, answer
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.grant(c, sent)
}

func (m *Manual) grant(c Claim, sent time.Time) (Grant, error) {
	r := m.record
	r.Generation = max(r.Generation, c.After)
	c.After, c.Term = r.Generation, 0
	next, _, err := Record{Generation: r.Generation, Note: r.Note, Writes: r.Writes}.Acquire(c, true)
	if err != nil {
		return Grant{}, err
	}
	m.set(next)
	return Grant{Generation: next.Generation, Token: next.Token, Sent: sent}, nil
}

// Renew implements Arbiter.
func (m *Manual) Renew(_ context.Context, g Grant, note string) (Grant, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	g.Sent = time.Now()
	next, err := m.record.Renew(g, note)
	if err != nil {
		return Grant{}, err
	}
	m.set(next)
	return g, nil
}

// Release implements Arbiter.
func (m *Manual) Release(_ context.Context, g Grant, note string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	next, err := m.record.Release(g, note)
	if err != nil {
		return err
	}
	m.set(next)
	return nil
}

// Record implements Arbiter.
func (m *Manual) Record(context.Context) (Record, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.record, nil
}

// Watch implements Arbiter.
func (m *Manual) Watch(ctx context.Context, seen Record) (Record, error) {
	for {
		m.mu.Lock()
		r, changed := m.record, m.changed
		m.mu.Unlock()
		if r.Changed(seen) {
			return r, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return Record{}, context.Cause(ctx)
		}
	}
}
