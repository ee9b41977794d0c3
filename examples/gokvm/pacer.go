package main

import (
	"sync"
	"time"

	"github.com/gocolo/lockstep/event"
)

// A pacer keeps checkpoints that are asked for apart: two guests that always
// differ would otherwise do nothing but make checkpoints.
type pacer struct {
	least   time.Duration
	request func(event.Cause)

	mu    sync.Mutex
	last  time.Time   // when the last checkpoint was complete
	timer *time.Timer // a request waits
	ended bool
}

// ask asks for a checkpoint, soon. One for want of memory is not put off.
func (p *pacer) ask(c event.Cause) {
	p.mu.Lock()
	wait := p.least - time.Since(p.last)
	if wait > 0 && c != event.CauseLimit {
		if p.timer == nil && !p.ended {
			p.timer = time.AfterFunc(wait, func() {
				p.mu.Lock()
				p.timer = nil
				p.mu.Unlock()
				p.request(c)
			})
		}
		p.mu.Unlock()
		return
	}
	p.mu.Unlock()
	p.request(c)
}

// committed is told that a checkpoint is complete.
func (p *pacer) committed(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.last = now
}

// close forgets a request that waits, and those that come.
func (p *pacer) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended = true
	if p.timer != nil {
		p.timer.Stop()
	}
}
