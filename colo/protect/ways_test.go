package protect

import (
	"context"
	"net"
	"slices"
	"sync"
	"time"
)

// The ways between the hosts of a simulation: what connects two of them, and what
// has befallen it.
type ways struct {
	host  func(name string) *host
	delay func() time.Duration // of each message

	mu     sync.Mutex
	cables []*cableEnd // the end of the one that dialled
	refuse bool        // nobody gets through, and is told so
	silent [2]bool     // what a sends does not arrive, what b sends
	mended chan struct{}
}

func newWays(host func(string) *host, delay func() time.Duration) *ways {
	return &ways{host: host, delay: delay, mended: make(chan struct{})}
}

// dial connects two hosts. Where nothing arrives, nobody is told.
func (w *ways) dial(ctx context.Context, from, to string, l *listener) (net.Conn, error) {
	for {
		w.mu.Lock()
		refuse, silent, mended := w.refuse, w.silent != [2]bool{}, w.mended
		w.mu.Unlock()
		if refuse || l == nil {
			return nil, errNoRoute
		}
		if !silent {
			break
		}
		select {
		case <-mended:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	a, b := newCable(w.host(from), w.host(to), w.delay, w.delay)
	select {
	case l.in <- b:
	case <-l.closed:
		return nil, errNoRoute
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cables = append(slices.DeleteFunc(w.cables, (*cableEnd).over), a)
	if w.refuse { // meanwhile
		a.Break()
	}
	w.silence(a)
	return a, nil
}

// silence lets a connection be as the way is. w.mu is held.
func (w *ways) silence(a *cableEnd) {
	for _, end := range a.w.ends {
		end.hold(w.silent[side(end.host.name)] || !end.host.lives() || !end.other.host.lives())
	}
}

func side(host string) int { return int(host[0] - 'a') }

// part breaks everything between the hosts, and lets nothing be made.
func (w *ways) part() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.refuse = true
	for _, a := range w.cables {
		a.Break()
	}
	w.cables = nil
}

// quiet keeps what those hosts send from arriving.
func (w *ways) quiet(a, b bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.silent = [2]bool{w.silent[0] || a, w.silent[1] || b}
	for _, a := range w.cables {
		w.silence(a)
	}
}

// mend lets everything arrive. With reset the connections that were silent are
// found to be broken.
func (w *ways) mend(reset bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	was := w.silent != [2]bool{}
	w.refuse, w.silent = false, [2]bool{}
	close(w.mended)
	w.mended = make(chan struct{})
	for _, a := range w.cables {
		if was && reset {
			a.Break()
		}
		w.silence(a)
	}
}

// dies ends a host: its connections break, or nothing is ever heard of them again.
func (w *ways) dies(h *host, silent bool) {
	h.w.f.mu.Lock()
	delete(h.w.f.at, h.name)
	h.w.f.mu.Unlock()
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, a := range w.cables {
		if a.host != h && a.other.host != h {
			continue
		}
		if silent {
			w.silence(a)
		} else {
			a.Break()
		}
		a.w.wake()
	}
}
