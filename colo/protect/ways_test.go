package protect

import (
	"context"
	"maps"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/gocolo/lockstep/internal/wait"
)

// The ways between the hosts of a simulation: what connects each two of them, and what
// has befallen it.
type ways struct {
	host  func(name string) *host
	delay func() time.Duration // of each message
	takes func() time.Duration // making a connection; nil: no time

	mu     sync.Mutex
	cables []*cableEnd        // the end of the one that dialled
	refuse map[[2]string]bool // between these two nobody gets through, and is told so
	silent map[[2]string]bool // what the first sends does not arrive at the second
	mended chan struct{}
}

func newWays(host func(string) *host, delay func() time.Duration) *ways {
	return &ways{host: host, delay: delay, refuse: map[[2]string]bool{}, silent: map[[2]string]bool{}, mended: make(chan struct{})}
}

// dial connects two hosts. Where nothing arrives, nobody is told.
func (w *ways) dial(ctx context.Context, from, to string, l *listener) (net.Conn, error) {
	var takes time.Duration
	if w.takes != nil {
		takes = w.takes()
	}
	for {
		w.mu.Lock()
		refuse, silent, mended := w.refuse[pair(from, to)], w.silent[[2]string{from, to}] || w.silent[[2]string{to, from}], w.mended
		w.mu.Unlock()
		if refuse || l == nil {
			return nil, errNoRoute
		}
		if !silent {
			if takes == 0 {
				break
			}
			if err := wait.For(ctx, takes); err != nil {
				return nil, err
			}
			takes = 0 // and it is looked again
			continue
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
	w.host(from).trace("dials", 0)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cables = append(slices.DeleteFunc(w.cables, (*cableEnd).over), a)
	if w.refuse[pair(from, to)] { // meanwhile
		a.Break()
	}
	w.silence(a)
	return a, nil
}

// silence lets a connection be as the way is. w.mu is held.
func (w *ways) silence(a *cableEnd) {
	for _, end := range a.w.ends {
		end.hold(end.muted() || w.silent[[2]string{end.host.name, end.other.host.name}] || !end.host.lives() || !end.other.host.lives())
	}
}

// part breaks everything between those hosts, and lets nothing be made.
func (w *ways) part(names ...string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, from := range names {
		for _, to := range names {
			w.refuse[pair(from, to)] = true
		}
	}
	w.cables = slices.DeleteFunc(w.cables, func(a *cableEnd) bool {
		parted := w.refuse[pair(a.host.name, a.other.host.name)]
		if parted {
			a.Break()
		}
		return parted
	})
}

// quiet keeps what a host sends from arriving at another.
func (w *ways) quiet(from, to string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.silent[[2]string{from, to}] = true
	for _, a := range w.cables {
		w.silence(a)
	}
}

// mend lets everything arrive. With reset the connections that were silent are
// found to be broken.
func (w *ways) mend(reset bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	was := maps.Clone(w.silent)
	clear(w.refuse)
	clear(w.silent)
	close(w.mended)
	w.mended = make(chan struct{})
	for _, a := range w.cables {
		here, there := a.host.name, a.other.host.name
		if muted := a.w.unmute(); reset && (muted || was[[2]string{here, there}] || was[[2]string{there, here}]) {
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
		a.w.mu.Lock()
		a.w.wakeAll()
		a.w.mu.Unlock()
	}
}
