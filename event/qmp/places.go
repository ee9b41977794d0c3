package qmp

import (
	"context"
	"log/slog"
	"net"
	"sync"
	"time"
)

// wordless is how long a client that has not negotiated keeps its place while others wait.
const wordless = 10 * time.Second

// places bounds the clients of one call of Serve.
type places struct {
	most int
	log  *slog.Logger  // nil: nobody
	left chan struct{} // has an element if a client has left since it was empty

	mu    sync.Mutex
	taken map[*place]struct{}
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
	for {
		now := time.Now()
		p.mu.Lock()
		if len(p.taken) < p.most {
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
	if left := wordless - now.Sub(first.since); left > 0 {
		return left
	}
	first.stays = true
	first.conn.Close()
	if p.log != nil {
		p.log.Warn("a client of the monitor that has not negotiated was closed for another", "from", first.conn.RemoteAddr())
	}
	return wordless // it leaves before that
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
	if c != nil {
		c.in.mu.Lock()
		defer c.in.mu.Unlock()
		c.stays = true
	}
}
