package proxy_test

import (
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
)

// counted counts the bytes that are written to a connection.
type counted struct {
	net.Conn
	n atomic.Int64
}

func (c *counted) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.n.Add(int64(n))
	return n, err
}

func TestContinuousSendsNothingBetweenTheHostsAfterTheirHellos(t *testing.T) {
	for _, continuous := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			w := newContinuous(t, continuous)
			defer w.end()
			a, b := net.Pipe()
			p, s := &counted{Conn: a}, &counted{Conn: b}
			w.join(p, s)
			hellos := [2]int64{p.n.Load(), s.n.Load()}
			for range 3 {
				w.checkpoint()
				w.say(w.pg, "a")
				w.say(w.sg, "a")
				w.arrive("x")
				synctest.Wait()
			}
			sent := [2]int64{p.n.Load() - hellos[0], s.n.Load() - hellos[1]}
			if hellos[0] == 0 || hellos[1] == 0 || (sent[0] == 0) != continuous || (sent[1] == 0) != continuous {
				t.Errorf("continuous %v: the hellos have %v bytes, and %v bytes came after them", continuous, hellos, sent)
			}
		})
	}
}
