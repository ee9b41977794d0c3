package main

import (
	"io"
	"net"
	"sync"
	"testing"
)

// cable carries connections from one unix socket to another, and can be cut.
type cable struct {
	mu    sync.Mutex
	conns []net.Conn
	n     int // connections so far
}

func newCable(t *testing.T, from, to string) *cable {
	t.Helper()
	return carry(t, from, to, func(to, from net.Conn, _ bool) {
		io.Copy(to, from)
		to.Close()
		from.Close()
	})
}

// carry makes a cable on which each direction of a connection is carried by pass, which
// returns when either end is closed. Back is the direction from the socket to.
func carry(t *testing.T, from, to string, pass func(to, from net.Conn, back bool)) *cable {
	t.Helper()
	l, err := net.Listen("unix", from)
	if err != nil {
		t.Fatal(err)
	}
	c := new(cable)
	var all sync.WaitGroup
	all.Go(func() {
		for {
			a, err := l.Accept()
			if err != nil {
				return
			}
			b, err := net.Dial("unix", to)
			if err != nil {
				a.Close()
				continue
			}
			c.mu.Lock()
			c.conns, c.n = append(c.conns, a, b), c.n+1
			c.mu.Unlock()
			all.Go(func() { pass(b, a, false) })
			all.Go(func() { pass(a, b, true) })
		}
	})
	t.Cleanup(func() { l.Close(); c.cut(); all.Wait() })
	return c
}

// cut ends every connection. Others can be made.
func (c *cable) cut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, conn := range c.conns {
		conn.Close()
	}
	c.conns = nil
}

func (c *cable) connections() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n
}
