package main

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"
)

// The two processes speak NBD, and beside that one line per checkpoint over a
// connection of their own, where a protected VM would have its checkpoint
// protocol: the primary says "checkpoint 7", the secondary answers "loaded 7"
// or "error" and why. Before that the primary says "hello", is told the names of its two
// exports, has the disk adopt its identity through one of them, and says "start" when it
// has synchronised the disk through the other. The secondary listens at the address of the NBD server with
// ".control" appended, or the next port.

func controlAddr(addr string) (string, error) {
	if network(addr) == "unix" {
		return addr + ".control", nil
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return "", err
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		return "", err
	}
	return net.JoinHostPort(host, strconv.Itoa(n+1)), nil
}

// control is the connection for checkpoints.
type control struct {
	conn net.Conn
	r    *bufio.Reader
}

const controlTimeout = 30 * time.Second

func dialControl(ctx context.Context, addr string) (*control, error) {
	at, err := controlAddr(addr)
	if err != nil {
		return nil, err
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, network(addr), at)
	if err != nil {
		return nil, fmt.Errorf("no secondary answers at %s (start it first, with -listen): %w", addr, err)
	}
	return &control{conn, bufio.NewReaderSize(conn, 256)}, nil
}

// ask sends a line and wants the answer to begin with answer; it returns what
// follows.
func (c *control) ask(line, answer string) (string, error) {
	c.conn.SetDeadline(time.Now().Add(controlTimeout))
	if _, err := fmt.Fprintln(c.conn, line); err != nil {
		return "", err
	}
	got, err := c.r.ReadSlice('\n')
	if err != nil {
		return "", err
	}
	rest, ok := strings.CutPrefix(strings.TrimSpace(string(got)), answer)
	if !ok {
		return "", fmt.Errorf("the secondary says %q", strings.TrimSpace(string(got)))
	}
	return strings.TrimSpace(rest), nil
}

// serveControl answers a primary's lines until the connection ends.
func serveControl(ctx context.Context, conn net.Conn, answer func(words []string) (string, error)) {
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	defer conn.Close()
	r := bufio.NewReaderSize(conn, 256)
	for {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return
		}
		reply, err := answer(strings.Fields(string(line)))
		if err != nil {
			reply = "error " + strings.ReplaceAll(err.Error(), "\n", "; ")
		}
		conn.SetWriteDeadline(time.Now().Add(controlTimeout))
		if _, err := fmt.Fprintln(conn, reply); err != nil {
			return
		}
	}
}
