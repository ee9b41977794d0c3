package heartbeat

import (
	"context"
	"io"
	"sync/atomic"
	"time"
)

// A Pulse is a heartbeat whose present state others can ask for: a session of
// package colo does (PrimaryConfig.Heartbeat), so that it waits for a peer that
// is slow as long as that peer beats. The zero Pulse has not been heard.
type Pulse struct {
	deadline atomic.Pointer[time.Time] // when the peer is lost if it stays silent; nil: no beat was heard, or Run has ended
}

// Run does what the function [Run] does, and keeps the state that Alive returns. One Run at
// a time; another may follow it, on a new connection.
func (p *Pulse) Run(ctx context.Context, conn io.ReadWriteCloser, interval, timeout time.Duration) error {
	return p.Watch(ctx, conn, Config{Interval: interval, Timeout: timeout})
}

// Watch does what Run does, with a Config.
func (p *Pulse) Watch(ctx context.Context, conn io.ReadWriteCloser, cfg Config) error {
	defer p.deadline.Store(nil)
	return run(ctx, conn, cfg, func(deadline time.Time) { p.deadline.Store(&deadline) })
}

// Alive reports whether the peer has been heard of within the timeout of the Run
// that is under way. It is false before the first beat and after the end of Run.
// Safe from any goroutine; it does not wait.
func (p *Pulse) Alive() bool {
	d := p.deadline.Load()
	return d != nil && time.Now().Before(*d)
}
