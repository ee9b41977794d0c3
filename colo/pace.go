package colo

import (
	"fmt"
	"sync"
	"time"
)

// pace ends waits for a peer that sends something again and again, so that it is never silent for long, and so
// little that it comes to no end. What has come pays for the time in which it was waited for. The zero pace has
// no bound. Its methods may be called from any goroutine.
type pace struct {
	rate   uint64        // bytes that pay for a second; 0: no bound
	most   time.Duration // how long may be waited for what is not paid for
	beside *beside       // bytes that cross the channels pay as well; nil: none

	mu      sync.Mutex
	left    time.Duration // of most
	since   time.Time     // when the wait under way began, as far as it is not taken from left; zero: there is none
	crossed uint64        // bytes of the channels that have paid
}

// begin bounds the waits from now on.
func (p *pace) begin(rate uint64, most time.Duration, channels *beside) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rate, p.most, p.left = rate, most, most
	p.beside, p.crossed = channels, channels.bytes()
}

// end takes the bound away.
func (p *pace) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rate = 0
}

// wait begins a wait, which is to end at the earlier of at and what is returned; zero: never.
func (p *pace) wait(at time.Time) time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.rate == 0 {
		return at
	}
	p.since = time.Now()
	if end := p.since.Add(p.left); at.IsZero() || end.Before(at) {
		return end
	}
	return at
}

// came ends a wait, for which n bytes pay.
func (p *pace) came(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.rate == 0 {
		return
	}
	p.settle(uint64(n))
	p.since = time.Time{}
}

// slow returns an error that says of the peer that it is too slow, if nothing is left of the time.
func (p *pace) slow() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.rate == 0 {
		return nil
	}
	if p.settle(0); p.left > 0 {
		return nil
	}
	return fmt.Errorf("the peer sends less than %d bytes a second", p.rate)
}

// excuse gives a peer that is known to live all of the time anew.
func (p *pace) excuse() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.left = p.most
}

// settle takes what has been waited from left, and what n bytes and those of the channels pay. p.mu is held.
func (p *pace) settle(n uint64) {
	if now := time.Now(); !p.since.IsZero() {
		p.left -= now.Sub(p.since)
		p.since = now
	}
	all := p.beside.bytes()
	n += all - p.crossed
	p.crossed = all
	paid := float64(n) / float64(p.rate) * float64(time.Second) // which may be more than a Duration has
	p.left += time.Duration(min(paid, float64(p.most-p.left)))
}
