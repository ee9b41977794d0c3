package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/gocolo/lockstep/examples/internal/strangers"
)

// The two processes speak NBD, and beside that one line per checkpoint over a
// connection of their own, where a protected VM would have its checkpoint
// protocol: the primary says "checkpoint 7", the secondary answers "loaded 7"
// or "error" and why. Before that the primary says "hello", is told the names of its two
// exports, has the disk adopt its identity through one of them, and says "start" when it
// has synchronised the disk through the other. The secondary listens at the address of the NBD server with
// ".control" appended, or the next port.

// controlAddr returns the address of the control connections of a secondary whose NBD server
// is at addr.
func controlAddr(addr string) (string, error) {
	if network(addr) == "unix" {
		return addr + ".control", nil
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return "", err
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return "", fmt.Errorf("%q is no port", port)
	}
	if n == 0 || n == 1<<16-1 {
		return "", fmt.Errorf("a secondary uses the next port, too: want 1 to %d", 1<<16-2)
	}
	return net.JoinHostPort(host, strconv.FormatUint(n+1, 10)), nil
}

// control is the connection for checkpoints.
type control struct {
	conn net.Conn
	r    *bufio.Reader
}

const (
	controlTimeout = 30 * time.Second
	// helloTimeout is how long a primary that the disk has not adopted may stay. One that was
	// adopted may be silent for as long as nobody asks it for a checkpoint.
	helloTimeout = 10 * time.Second
	// maxControlLine bounds a line and its line break, in bytes. An error that does not fit is cut.
	maxControlLine = 4 << 10
	// maxVisits bounds the control connections; who comes later waits until one has ended.
	maxVisits = 8
)

func dialControl(ctx context.Context, addr string) (*control, error) {
	at, err := controlAddr(addr)
	if err != nil {
		return nil, err
	}
	d := net.Dialer{Timeout: controlTimeout}
	conn, err := d.DialContext(ctx, network(addr), at)
	if err != nil {
		return nil, fmt.Errorf("no secondary answers at %s (start it first, with -listen; checkpoints go to %s): %w", addr, at, err)
	}
	return newControl(conn), nil
}

func newControl(conn net.Conn) *control {
	return &control{conn, bufio.NewReaderSize(conn, maxControlLine)}
}

// ask sends a line and wants the words of answer to come first in what is answered; it returns what
// follows. The connection cannot be used any more if ctx ends meanwhile.
func (c *control) ask(ctx context.Context, line, answer string) (string, error) {
	c.conn.SetDeadline(time.Now().Add(controlTimeout))
	stop := context.AfterFunc(ctx, func() { c.conn.Close() })
	defer stop()
	_, err := fmt.Fprintln(c.conn, line)
	var got []byte
	if err == nil {
		got, err = c.r.ReadSlice('\n')
	}
	switch {
	case err != nil && ctx.Err() != nil:
		return "", ctx.Err()
	case errors.Is(err, os.ErrDeadlineExceeded):
		return "", fmt.Errorf("the secondary at %v has not answered %q for %v", c.conn.RemoteAddr(), line, controlTimeout)
	case err != nil:
		return "", fmt.Errorf("the control connection to the secondary at %v is lost, after %q: %w", c.conn.RemoteAddr(), line, err)
	}
	said := strings.TrimSpace(string(got))
	rest, ok := strings.CutPrefix(said+" ", answer+" ") // "loaded 12" does not answer "checkpoint 1"
	if !ok {
		return "", fmt.Errorf("the secondary says %q", said)
	}
	return strings.TrimSpace(rest), nil
}

// parseCheckpoint reads the number of a checkpoint that the other side names.
func parseCheckpoint(text string) (uint64, error) {
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("the other side names %q as a checkpoint, want a number", text)
	}
	return n, nil
}

// serveVisits serves each connection to ln by serve, on a goroutine of its own and no more
// than maxVisits at a time. It returns when ln is closed, or ctx ends, and all of them have
// ended. A lack of descriptors, which passes, does not end it.
func serveVisits(ctx context.Context, ln net.Listener, serve func(net.Conn)) {
	var wg sync.WaitGroup
	defer wg.Wait()
	door := strangers.Room{Max: 1} // in which nobody stays
	for room := make(chan struct{}, maxVisits); ; {
		select {
		case room <- struct{}{}:
		case <-ctx.Done():
			return
		}
		conn, err := door.Accept(ctx, ln)
		if err != nil {
			return
		}
		door.Leave(conn)
		wg.Go(func() {
			serve(conn)
			<-room
		})
	}
}

// serveControl answers a primary's lines until the connection ends. arm is called before
// each line, to give the connection the deadline for it.
func serveControl(ctx context.Context, conn net.Conn, arm func(), answer func(words []string) (string, error)) {
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	defer conn.Close()
	r := bufio.NewReaderSize(conn, maxControlLine)
	for {
		arm()
		line, err := r.ReadSlice('\n')
		if err != nil {
			return
		}
		reply, err := answer(strings.Fields(string(line)))
		if err != nil {
			reply = "error " + strings.ReplaceAll(err.Error(), "\n", "; ")
			reply = reply[:min(len(reply), maxControlLine-1)]
		}
		conn.SetWriteDeadline(time.Now().Add(controlTimeout))
		if _, err := fmt.Fprintln(conn, reply); err != nil {
			return
		}
	}
}
