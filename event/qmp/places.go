package qmp

import (
	"context"
	"log/slog"
	"net"
	"sync"
	"time"
)

const (
	// wordless is how long a client that has not negotiated keeps its place while others wait.
	wordless = 10 * time.Second

	// Where they come faster than that lets go, as when one host opens thousands, wordless is halved
	// each time that as many have been closed as there are places, so often at most. A client across
	// an ocean still gets in then.
	haste = 5

	// telling is the time from one record of a client that was closed for what it said, or did not
	// say, to the next: whoever can connect could fill a host's log otherwise.
	telling = time.Second
)

// places bounds the clients of one call of Serve.
type places struct {
	most int
	log  *slog.Logger  // nil: nobody
	left chan struct{} // has an element if a client has left since it was empty

	mu     sync.Mutex
	taken  map[*place]struct{}
	closed int // of late for another, but for those that found a place at once
	told   time.Time
	untold int // closed since told, without a record
}

// place is the place that one client takes.
type place struct {
	in    *places
	conn  net.Conn
	since time.Time // when the client came
	stays bool      // it has negotiated, or was closed already; guarded by in.mu
}

func newPlaces(most int, log *slog.Logger) *places {
	return &places{most: most, log: log, left: make(chan struct{}, 1), taken: make(map[*place]struct{})}
}

// take waits for a place, and returns nil when ctx ends before. It is called by one goroutine at
// a time.
func (p *places) take(ctx context.Context, conn net.Conn) *place {
	for first := true; ; first = false {
		now := time.Now()
		p.mu.Lock()
		if len(p.taken) < p.most {
			if first && p.closed > 0 {
				p.closed--
			}
			in := &place{in: p, conn: conn, since: now}
			p.taken[in] = struct{}{}
			p.mu.Unlock()
			return in
		}
		next := p.clear(now)
		p.mu.Unlock()
		timer := time.NewTimer(next)
		select {
		case <-p.left:
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
		if ctx.Err() != nil {
			return nil
		}
	}
}

// clear closes the client that has been there longest, if it has had its time and has not
// negotiated. It returns when to look again. The caller holds mu.
func (p *places) clear(now time.Time) time.Duration {
	var first *place
	for c := range p.taken {
		if !c.stays && (first == nil || c.since.Before(first.since)) {
			first = c
		}
	}
	if first == nil {
		return wordless // until one leaves
	}
	patience := wordless >> min(p.closed/p.most, haste)
	if left := patience - now.Sub(first.since); left > 0 {
		return left
	}
	first.stays = true
	p.closed = min(p.closed+1, p.most*haste)
	first.conn.Close()
	p.tell(now, "a client of the monitor that has not negotiated was closed for another", first.conn)
	return wordless // it leaves before that
}

// tell logs that a client was closed, no more often than telling allows. The caller holds mu.
func (p *places) tell(now time.Time, what string, conn net.Conn) {
	switch {
	case p.log == nil:
	case now.Sub(p.told) < telling:
		p.untold++
	default:
		args := []any{"from", conn.RemoteAddr()}
		if p.untold > 0 {
			args = append(args, "not-told", p.untold)
		}
		p.log.Warn(what, args...)
		p.told, p.untold = now, 0
	}
}

// browses logs that the client is a browser, and is closed.
func (c *place) browses() {
	c.in.mu.Lock()
	defer c.in.mu.Unlock()
	c.in.tell(time.Now(), "a browser has asked the monitor for a page, and was closed", c.conn)
}

func (p *places) leave(c *place) {
	p.mu.Lock()
	delete(p.taken, c)
	p.mu.Unlock()
	select {
	case p.left <- struct{}{}:
	default:
	}
}

// stay is called when the client has negotiated, after which it may be silent.
func (c *place) stay() {
	c.in.mu.Lock()
	defer c.in.mu.Unlock()
	c.stays = true
}
