package etcd_test

import (
	"net"
	"sync"
	"testing"
)

// A relay is a host's way to one member, which can be cut, or fall silent in one of its
// directions: what is sent there waits, and arrives when the way is mended.
type relay struct {
	l  net.Listener
	to string

	mu     sync.Mutex
	cond   sync.Cond
	cut    bool
	silent [2]bool
	conns  map[net.Conn]bool
}

// The directions of a relay.
const (
	there = iota // what the host asks
	back         // what it is answered
)

func newRelay(t *testing.T, to string) *relay {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Skip(err)
	}
	r := &relay{l: l, to: to, conns: map[net.Conn]bool{}}
	r.cond.L = &r.mu
	var group sync.WaitGroup
	group.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			group.Go(func() { r.carry(conn) })
		}
	})
	t.Cleanup(func() { l.Close(); r.set(true); group.Wait() })
	return r
}

// newRelays returns a host's ways to all members, and their addresses.
func newRelays(t *testing.T, c *cluster) (ways []*relay, through []string) {
	t.Helper()
	for _, to := range c.clients {
		r := newRelay(t, to)
		ways, through = append(ways, r), append(through, r.l.Addr().String())
	}
	return ways, through
}

// set cuts the way, or mends it.
func (r *relay) set(cut bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cut = cut
	if cut {
		for c := range r.conns {
			c.Close()
		}
	}
	r.cond.Broadcast()
}

// silence has nothing arrive in a direction, or all that waits.
func (r *relay) silence(direction int, silent bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.silent[direction] = silent
	r.cond.Broadcast()
}

func (r *relay) carry(conn net.Conn) {
	defer conn.Close()
	member, err := net.Dial("tcp", r.to)
	if err != nil {
		return
	}
	defer member.Close()
	r.mu.Lock()
	if r.cut {
		r.mu.Unlock()
		return
	}
	r.conns[conn], r.conns[member] = true, true
	r.mu.Unlock()
	var group sync.WaitGroup
	group.Go(func() { r.pass(there, member, conn) })
	r.pass(back, conn, member)
	group.Wait()
	r.mu.Lock()
	delete(r.conns, conn)
	delete(r.conns, member)
	r.mu.Unlock()
}

// pass carries one direction of a connection, and ends both with it.
func (r *relay) pass(direction int, to, from net.Conn) {
	defer to.Close()
	defer from.Close()
	b := make([]byte, 32<<10)
	for {
		n, err := from.Read(b)
		if n > 0 {
			r.mu.Lock()
			for r.silent[direction] && !r.cut {
				r.cond.Wait()
			}
			r.mu.Unlock()
			if _, err := to.Write(b[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}
