package watch

import (
	"net"
	"strings"
	"sync"
)

// maxConnections is the number of connections that Listen accepts at a time. Without a bound
// a client could use up the descriptors that the connections of the guest need.
const maxConnections = 128

// Listen listens for browsers at an address: HOST:PORT, or :PORT or PORT, which is
// on the loopback interface. It lets 128 connections in at a time; others wait until one
// ends.
func Listen(address string) (net.Listener, error) {
	if !strings.Contains(address, ":") {
		address = ":" + address
	}
	if strings.HasPrefix(address, ":") {
		address = "127.0.0.1" + address
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, err
	}
	return &listener{Listener: l, room: make(chan struct{}, maxConnections), closed: make(chan struct{})}, nil
}

// listener accepts as many connections at a time as room has places.
type listener struct {
	net.Listener
	room   chan struct{} // holds one value for each that is in
	once   sync.Once
	closed chan struct{}
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	select {
	case l.room <- struct{}{}:
	case <-l.closed:
		return nil, net.ErrClosed
	}
	conn, err := l.Listener.Accept()
	if err != nil {
		<-l.room
		return nil, err
	}
	return &visitor{Conn: conn, leave: func() { <-l.room }}, nil
}

// Close implements net.Listener.
func (l *listener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

// visitor is a connection that was accepted; Close gives its place back.
type visitor struct {
	net.Conn
	once  sync.Once
	leave func()
}

// Close implements net.Conn.
func (v *visitor) Close() error {
	defer v.once.Do(v.leave)
	return v.Conn.Close()
}
