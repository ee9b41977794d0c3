// Package slow has the links and readers of tests that are slower than whoever writes to them.
package slow

import (
	"net"
	"time"
)

// Gigabit is a connection over a link of 1 Gbit/s of its own, for benchmarks. One goroutine writes at a time.
type Gigabit struct {
	net.Conn
	free time.Time // when the link has carried what was written
}

// Write implements net.Conn. It returns when what is written has left, but for some milliseconds of it.
func (g *Gigabit) Write(p []byte) (int, error) {
	now := time.Now()
	if g.free.Before(now) {
		g.free = now
	}
	g.free = g.free.Add(time.Duration(len(p)) * time.Second / 125e6)
	if ahead := g.free.Sub(now); ahead > 2*time.Millisecond {
		time.Sleep(ahead)
	}
	return g.Conn.Write(p)
}
