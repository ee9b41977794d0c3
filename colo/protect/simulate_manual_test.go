package protect

import (
	"context"
	"slices"
	"time"

	"github.com/gocolo/lockstep/internal/wait"
)

// A world without an arbiter: an operator says who goes on. He sees both hosts, and does what the
// documentation asks of him: he says yes to one host only, when the other is dead or stands still,
// and never to one whose copy is older than what the world has seen.

// An operator looks at the hosts of a simulation again and again.
type operator struct {
	s    *simulation
	yes  map[uint64]*host // by generation, the host that he has told to go on after it
	n    int              // how often
	done chan struct{}
}

// operates lets an operator decide, until the function that is returned is called.
func (s *simulation) operates() (stop func()) {
	if !s.manual {
		return func() {}
	}
	ctx, cancel := context.WithCancel(context.Background())
	o := &operator{s: s, yes: map[uint64]*host{}, done: make(chan struct{})}
	go func() {
		defer close(o.done)
		for wait.For(ctx, 300*time.Millisecond) == nil {
			o.looks()
		}
	}()
	return func() { cancel(); <-o.done }
}

// looks decides between the hosts of the moment.
func (o *operator) looks() {
	o.s.mu.Lock()
	all := slices.Clone(o.s.booted)
	o.s.mu.Unlock()
	for _, h := range all {
		if !h.gone.Load() && h.job.State() == Asking && o.may(h, all) {
			o.s.say("the operator says that %s goes on", h.name)
			o.n++
			o.yes[h.copyOf.Load()] = h
			if o.n%3 == 0 {
				h.job.Fenced()
			} else {
				h.job.Failover()
			}
			return
		}
	}
}

// may reports whether a host may go on.
func (o *operator) may(h *host, all []*host) bool {
	for _, other := range all {
		if other == h || other.gone.Load() || other.over() {
			continue
		}
		if state := other.job.State(); state != Asking && state != Waiting {
			return false // it may have the guest, or has not noticed yet, or has not left yet
		}
		if other.stands() {
			return false // what it is when it goes on nobody knows
		}
	}
	mine := h.copyOf.Load()
	for _, other := range all {
		if other.copyOf.Load() > mine {
			return false
		}
	}
	told := o.yes[mine]
	return told == nil || told == h || told.gone.Load() || told.over()
}

// stands reports whether the process is stopped.
func (h *host) stands() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.still != nil
}

// manualLost is what lost is in a world without an arbiter.
func (s *simulation) manualLost() string {
	var last uint64
	all := slices.Concat(s.up(), s.dead, s.ended)
	for _, h := range all {
		last = max(last, h.copyOf.Load())
	}
	for _, h := range s.up() {
		if h.copyOf.Load() == last && !h.over() {
			return h.name + " has it"
		}
	}
	return ""
}
