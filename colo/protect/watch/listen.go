package watch

import (
	"net"
	"strings"
	"sync"
	"time"
)

// maxConnections is the number of connections that Listen accepts at a time. Without a bound
// a client could use up the descriptors that the connections of the guest need.
const maxConnections = 128

// lurking is how long a connection keeps its place though no byte goes either way.
const lurking = 2 * time.Minute

// Listen listens for browsers at an address: HOST:PORT, or :PORT or PORT, which is
// on the loopback interface. It lets 128 connections in at a time; others wait until one
// ends. One over which no byte goes for two minutes is closed, so that those who connect and
// say nothing keep nobody out.
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
	v := &visitor{Conn: conn, leave: func() { <-l.room }}
	v.bored = time.AfterFunc(lurking, func() { v.end() })
	return v, nil
}

// Close implements net.Listener.
func (l *listener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

// visitor is a connection that was accepted; Close gives its place back.
type visitor struct {
	net.Conn
	bored *time.Timer // closes it
	once  sync.Once
	leave func()
}

// Read implements net.Conn.
func (v *visitor) Read(p []byte) (int, error) {
	n, err := v.Conn.Read(p)
	v.moved(n)
	return n, err
}

// Write implements net.Conn.
func (v *visitor) Write(p []byte) (int, error) {
	n, err := v.Conn.Write(p)
	v.moved(n)
	return n, err
}

// moved notes that n bytes went one way. It does not wake a timer that Close has stopped.
func (v *visitor) moved(n int) {
	if n > 0 && v.bored.Stop() {
		v.bored.Reset(lurking)
	}
}

// Close implements net.Conn.
func (v *visitor) Close() error {
	v.bored.Stop()
	return v.end()
}

// end closes the connection and gives its place back.
func (v *visitor) end() error {
	defer v.once.Do(v.leave)
	return v.Conn.Close()
}
