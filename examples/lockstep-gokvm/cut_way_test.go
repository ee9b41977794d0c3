package main

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"syscall"
	"testing"
)

// A way leads to a host, whichever process that is, and can be cut.
type way struct {
	group sync.WaitGroup

	mu    sync.Mutex
	to    string // "": there is nobody yet
	open  bool
	conns map[net.Conn]struct{}
}

func newWay(t *testing.T) *way {
	t.Helper()
	w := &way{conns: map[net.Conn]struct{}{}}
	t.Cleanup(func() {
		w.cut(false)
		w.group.Wait()
	})
	return w
}

// dial connects by the way, or finds nobody, as where a host has lost its power.
func (w *way) dial(ctx context.Context, _ string) (net.Conn, error) {
	nobody := &net.OpError{Op: "dial", Net: "tcp", Err: syscall.EHOSTUNREACH}
	w.mu.Lock()
	to, open := w.to, w.open
	w.mu.Unlock()
	if to == "" || !open {
		return nil, nobody
	}
	back, err := new(net.Dialer).DialContext(ctx, "tcp", to)
	if err != nil {
		return nil, err
	}
	front, middle, err := connect()
	if err != nil {
		return nil, errors.Join(err, back.Close())
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.open || w.to != to {
		return nil, errors.Join(nobody, back.Close(), middle.Close(), front.Close())
	}
	w.conns[back], w.conns[middle] = struct{}{}, struct{}{}
	w.group.Go(func() { w.pass(middle, back) })
	return front, nil
}

// connect returns both ends of a connection.
func connect() (a, b net.Conn, err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, nil, err
	}
	defer l.Close()
	if a, err = net.Dial("tcp", l.Addr().String()); err != nil {
		return nil, nil, err
	}
	if b, err = l.Accept(); err != nil {
		return nil, nil, errors.Join(err, a.Close())
	}
	return a, b, nil
}

func (w *way) lead(to string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.to, w.open = to, true
}

// cut breaks what is under way. With open, new connections get through.
func (w *way) cut(open bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.open = open
	for c := range w.conns {
		c.Close()
	}
}

// end lets nobody find who was there: the port may be another world's now. What is under
// way is not broken, since it may hold what was said last.
func (w *way) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.open = false
}

func (w *way) mend() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.open = true
}

func (w *way) pass(a, b net.Conn) {
	defer func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.conns, a)
		delete(w.conns, b)
	}()
	// What one end has said before it left is read by the other, as it is without this
	// way between them: one direction may end before the other.
	var back sync.WaitGroup
	back.Go(func() {
		io.Copy(a, b)
		a.(*net.TCPConn).CloseWrite()
	})
	io.Copy(b, a)
	b.(*net.TCPConn).CloseWrite()
	back.Wait()
	a.Close()
	b.Close()
}
