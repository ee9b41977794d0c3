package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/gocolo/lockstep/colo/quickack"
	"github.com/gocolo/lockstep/internal/qmp"
)

// listen opens addr. It returns the address as a QEMU's migrate command wants it.
func listen(addr string) (net.Listener, string, error) {
	network, address := qmp.Split(addr)
	l, err := net.Listen(network, address)
	if err != nil {
		return nil, "", err
	}
	return l, network + ":" + l.Addr().String(), nil
}

// accept takes one connection and closes the listener: there is one primary.
func accept(ctx context.Context, l net.Listener, creds *tls.Config) (net.Conn, error) {
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	defer l.Close()
	conn, err := l.Accept()
	if err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, err
	}
	conn = quickack.Conn(conn)
	if creds == nil {
		return conn, nil
	}
	t := tls.Server(conn, creds)
	hs, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if err := t.HandshakeContext(hs); err != nil {
		conn.Close()
		return nil, fmt.Errorf("TLS with %v: %w", conn.RemoteAddr(), err)
	}
	return t, nil
}

// watched is a connection that knows whether the peer has closed it: an end of
// data that a decoder meets may also be in what a living peer has sent.
type watched struct {
	net.Conn
	closed atomic.Bool
}

func (w *watched) Read(p []byte) (int, error) {
	n, err := w.Conn.Read(p)
	w.note(err)
	return n, err
}

func (w *watched) Write(p []byte) (int, error) {
	n, err := w.Conn.Write(p)
	w.note(err)
	return n, err
}

func (w *watched) note(err error) {
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
	return "over " + conn.LocalAddr().String()
}

// serverCreds reads a directory as QEMU's tls-creds-x509 with endpoint=server
// has it. Peers must show a certificate that ca-cert.pem has signed.
func serverCreds(dir string) (*tls.Config, error) {
	cert, err := tls.LoadX509KeyPair(filepath.Join(dir, "server-cert.pem"), filepath.Join(dir, "server-key.pem"))
	if err != nil {
		return nil, err
	}
	pem, err := os.ReadFile(filepath.Join(dir, "ca-cert.pem"))
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, errors.New(filepath.Join(dir, "ca-cert.pem") + " holds no certificate")
	}
	return &tls.Config{
		Certificates: []tls.Certificate{cert}, ClientCAs: pool,
		ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS12,
	}, nil
}
