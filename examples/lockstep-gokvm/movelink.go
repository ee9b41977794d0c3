package main

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"github.com/gocolo/lockstep/colo/protect"
)

// A connection between the hosts of a guest that moves begins with a moveHello of the
// source and a moveAnswer, each as JSON behind its length (4 bytes, big endian). Then it is
// that of package migrate.

// moveVersion is the version of what is said on a connection.
const moveVersion = 1

// maxMoveHello bounds a moveHello and a moveAnswer.
const maxMoveHello = 256 << 10

const (
	// greetTime is how long a connection may take to say what it is for, and one that is
	// made to be there.
	greetTime = 10 * time.Second
	// answerTime is how long the answer may take of a host that makes a machine first, and
	// fills all of its memory. If the host dies meanwhile, linkAlive notices.
	answerTime = 2 * time.Minute
	// writeTime is how long a write may take to which the other host does not listen.
	writeTime = 30 * time.Second
	// silentTime is how long the other host may say nothing whose guest is to come, and still runs there. It may
	// have to make the guest's disk stable meanwhile.
	silentTime = 2 * time.Minute
)

// linkAlive finds out that the other host is gone from which nothing is expected.
var linkAlive = net.KeepAliveConfig{Enable: true, Idle: 5 * time.Second, Interval: 5 * time.Second, Count: 5}

// A moveHello says what a connection is for.
type moveHello struct {
	Version int    `json:"version"`
	Guest   string `json:"guest"`
	Move    string `json:"move"`            // names the move: all its connections have the same
	Again   bool   `json:"again,omitempty"` // a connection of it has broken

	Machine  string `json:"machine"`
	Memory   uint64 `json:"memory"`
	VCPUs    int    `json:"vcpus"`
	Card     bool   `json:"card,omitempty"`   // the guest has a network card
	Header   int    `json:"header,omitempty"` // length of the virtio-net header before each frame
	Disk     int64  `json:"disk,omitempty"`   // bytes, 0 for none
	CPU      []byte `json:"cpu,omitempty"`
	Postcopy bool   `json:"postcopy,omitempty"`
}

// A moveAnswer is the answer of the other host to a moveHello.
type moveAnswer struct {
	State   string `json:"state"`
	Refused string `json:"refused,omitempty"` // why, of movedNot
}

// The states of a moveAnswer.
const (
	moveGoesOn  = "go on"   // over this connection
	movedHere   = "here"    // the guest runs there, and has all its memory
	movedNot    = "not"     // it has not run there, and will not: it is the source's
	moveUnknown = "unknown" // nothing is known there of this move
)

func writeMessage(w io.Writer, v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = w.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(text))), text...))
	return err
}

// errLanguage is the error of a message that is none.
var errLanguage = errors.New("the other host speaks another language")

// readMessage reads one message, and nothing after it. It takes no memory for one that is longer than maxMoveHello.
// io.EOF: the connection has ended before it.
func readMessage(r io.Reader, v any) error {
	var n [4]byte
	if _, err := io.ReadFull(r, n[:]); err != nil {
		return err
	}
	size := binary.BigEndian.Uint32(n[:])
	if size > maxMoveHello {
		return fmt.Errorf("%w: a message of %d bytes, of at most %d", errLanguage, size, maxMoveHello)
	}
	text := make([]byte, size)
	if read, err := io.ReadFull(r, text); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("byte %d of a message of %d: %w", read, size, err)
	}
	if err := json.Unmarshal(text, v); err != nil {
		return fmt.Errorf("%w: %w", errLanguage, err)
	}
	return nil
}

// A link is a connection to the other host. A write that nobody takes breaks it.
type link struct {
	net.Conn
	raw net.Conn // below TLS; the same without

	silence func() time.Duration // how long the next read may wait, 0 for ever; nil: never bounded
}

// Read breaks the link if nothing comes for as long as silence says. What has no such bound is left to linkAlive.
func (l *link) Read(p []byte) (int, error) {
	if l.silence == nil {
		return l.Conn.Read(p)
	}
	bound, until := l.silence(), time.Time{}
	if bound > 0 {
		until = time.Now().Add(bound)
	}
	if err := l.raw.SetReadDeadline(until); err != nil {
		return 0, err
	}
	n, err := l.Conn.Read(p)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = fmt.Errorf("the other host has sent nothing for %v: %w", bound, err)
	}
	return n, err
}

func (l *link) Write(p []byte) (int, error) {
	if err := l.raw.SetWriteDeadline(time.Now().Add(writeTime)); err != nil {
		return 0, err
	}
	return l.Conn.Write(p)
}

// Close does not say goodbye, for which TLS would wait.
func (l *link) Close() error { return l.raw.Close() }

// security returns the TLS of both directions, nil with -insecure.
func security(o options) (*tls.Config, error) {
	if o.cert == "" {
		return nil, nil
	}
	t, err := protect.LoadTLS(o.cert, o.key, o.ca)
	if err != nil {
		return nil, err
	}
	t.MinVersion, t.ServerName = tls.VersionTLS13, o.peerName
	t.ClientAuth, t.ClientCAs = tls.RequireAndVerifyClientCert, t.RootCAs
	return t, nil
}

// greet calls fn on a new connection, and allows greetTime for that, a handshake included.
func greet(ctx context.Context, raw net.Conn, conn net.Conn, fn func(*link) error) (*link, error) {
	stop := context.AfterFunc(ctx, func() { raw.Close() })
	defer stop()
	raw.SetDeadline(time.Now().Add(greetTime))
	l := &link{Conn: conn, raw: raw}
	var err error
	if t, ok := conn.(*tls.Conn); ok {
		err = t.HandshakeContext(ctx)
	}
	if err == nil {
		err = fn(l)
	}
	if err == nil {
		err = raw.SetDeadline(time.Time{})
	}
	if err == nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, raw.Close())
	}
	return l, nil
}

// callPeer connects to -peer, says what it is for, and returns the answer, with the
// connection if that is to go on.
func callPeer(ctx context.Context, o options, secure *tls.Config, hello moveHello) (*link, moveAnswer, error) {
	var answer moveAnswer
	within, cancel := context.WithTimeout(ctx, greetTime)
	defer cancel()
	dial := o.hw.dial
	if dial == nil {
		dial = func(ctx context.Context, address string) (net.Conn, error) {
			return (&net.Dialer{KeepAliveConfig: linkAlive}).DialContext(ctx, "tcp", address)
		}
	}
	raw, err := dial(within, o.peer)
	if err != nil {
		return nil, answer, err
	}
	conn := raw
	if secure != nil {
		conn = tls.Client(raw, secure)
	}
	l, err := greet(ctx, raw, conn, func(l *link) error {
		err := writeMessage(l.Conn, hello)
		if err == nil {
			l.raw.SetReadDeadline(time.Now().Add(answerTime))
			err = readMessage(l.Conn, &answer)
		}
		if err != nil {
			return fmt.Errorf("no answer from the other host at %s: %w", o.peer, err)
		}
		return nil
	})
	if err == nil && answer.State != moveGoesOn {
		return nil, answer, l.Close()
	}
	return l, answer, err
}

// visited reads the moveHello of a connection that the other host has made.
func visited(ctx context.Context, o options, secure *tls.Config, raw net.Conn) (*link, moveHello, error) {
	var hello moveHello
	conn := raw
	if secure != nil {
		conn = tls.Server(raw, secure)
	}
	l, err := greet(ctx, raw, conn, func(l *link) error {
		if t, ok := conn.(*tls.Conn); ok {
			if err := t.ConnectionState().PeerCertificates[0].VerifyHostname(o.peerName); err != nil {
				return err
			}
		}
		return readMessage(l.Conn, &hello)
	})
	return l, hello, err
}
