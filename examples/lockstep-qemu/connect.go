package main

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/gocolo/lockstep/event/qmp"
	"github.com/gocolo/lockstep/internal/socket"
)

// listen opens addr. It returns the address as a QEMU's migrate command wants it.
func listen(addr string) (net.Listener, string, error) {
	network, address := qmp.Split(addr)
	l, err := socket.ListenPrivate(network, address)
	if err != nil {
		return nil, "", err
	}
	network, address = placeOf(network + ":" + l.Addr().String())
	return l, network + ":" + address, nil
}

// placeOf is qmp.Split for an address that a QEMU is given: the path of a Unix socket is an
// absolute one, since a QEMU that runs in the background is in another directory than this
// process.
func placeOf(addr string) (network, address string) {
	network, address = qmp.Split(addr)
	if network == "unix" && address != "" && address[0] != '@' { // @ begins a name that is no path
		if path, err := filepath.Abs(address); err == nil {
			address = path
		}
	}
	return network, address
}

// portless reports whether an address is one of TCP that lacks its port. The IP address of a host by itself would
// be the name of a socket in the working directory, which nobody means.
func portless(addr string) bool {
	network, address := qmp.Split(addr)
	if network == "unix" && address == addr && net.ParseIP(addr) != nil {
		return true
	}
	_, port, err := net.SplitHostPort(address)
	return addr != "" && network == "tcp" && (err != nil || port == "")
}

// watched is a connection that knows whether the peer has closed it: an end of
// data that a decoder meets may also be in what a living peer has sent.
type watched struct {
	net.Conn
	raw      syscall.RawConn // of the socket below; nil: unknown
	tcp      prober          // below; nil: another kind
	closed   atomic.Bool
	lost     atomic.Bool   // the network has given it up, from when on the socket looks as if the peer had closed it
	received atomic.Uint64 // bytes that the peer has sent
	first    []byte        // what was read of it before
}

func watch(conn net.Conn) *watched {
	w := &watched{Conn: conn}
	if t, ok := conn.(*tls.Conn); ok {
		conn = t.NetConn()
	}
	if s, ok := conn.(syscall.Conn); ok {
		w.raw, _ = s.SyscallConn()
	}
	w.tcp, _ = conn.(prober)
	return w
}

// prober is a TCP connection.
type prober interface {
	SetKeepAliveConfig(net.KeepAliveConfig) error
}

// probe has the kernel end the connection when the peer's has not answered it for so long: a QEMU may be
// silent for as long as it likes between two checkpoints, and the kernel below it may not. A host that
// has lost its power closes nothing.
func (w *watched) probe(within time.Duration) error {
	if w.tcp == nil || within <= 0 {
		return nil
	}
	every := max(within/10, time.Second)
	return w.tcp.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: max(within/2, time.Second), Interval: every, Count: 5})
}

func (w *watched) Read(p []byte) (int, error) {
	if len(w.first) > 0 {
		n := copy(p, w.first)
		w.first = w.first[n:]
		return n, nil
	}
	n, err := w.Conn.Read(p)
	w.received.Add(uint64(n))
	w.note(err)
	return n, err
}

func (w *watched) Write(p []byte) (int, error) {
	n, err := w.Conn.Write(p)
	w.note(err)
	return n, err
}

// gone reports whether the peer has closed the connection, when everything that
// it has sent was read: it looks, without reading.
func (w *watched) gone() bool {
	if !w.closed.Load() && !w.lost.Load() && w.raw != nil {
		w.raw.Control(func(fd uintptr) { w.note(peek(fd)) })
	}
	return w.closed.Load()
}

func (w *watched) note(err error) {
	for _, e := range []error{syscall.ETIMEDOUT, syscall.EHOSTUNREACH, syscall.ENETUNREACH} {
		if errors.Is(err, e) {
			w.lost.Store(true)
		}
	}
	if w.lost.Load() {
		return
	}
	for _, e := range []error{io.EOF, io.ErrUnexpectedEOF, syscall.ECONNRESET, syscall.EPIPE} {
		if errors.Is(err, e) {
			w.closed.Store(true)
		}
	}
}

// peer names the other end for people.
func peer(conn net.Conn) string {
	if a := conn.RemoteAddr(); a.Network() != "unix" {
		return a.String()
	}
	return "a process at " + conn.LocalAddr().String()
}

// hostOf returns the name that the certificate of a peer must have.
func hostOf(addr string) string {
	network, address := qmp.Split(addr)
	host, _, err := net.SplitHostPort(address)
	if network == "unix" || err != nil {
		return "localhost"
	}
	return host
}

// hostIn returns the host of a connection's other end, without its port, which is another one
// each time.
func hostIn(conn net.Conn) string {
	if host, _, err := net.SplitHostPort(conn.RemoteAddr().String()); err == nil {
		return host
	}
	return peer(conn)
}
