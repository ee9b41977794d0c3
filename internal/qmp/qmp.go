// Package qmp is a small client of QEMU's monitor protocol: commands in turn,
// and the events that come in between.
package qmp

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/gocolo/lockstep/event"
)

// maxLine bounds what a monitor may say at once; the answer to
// query-qmp-schema is some 200 KB.
const maxLine = 16 << 20

// Error is what QEMU answered instead of a result.
type Error struct {
	Command string
	Class   string `json:"class"`
	Desc    string `json:"desc"`
}

func (e *Error) Error() string { return fmt.Sprintf("%s: %s", e.Command, e.Desc) }

// Client is a connection to a monitor. It belongs to one goroutine.
type Client struct {
	conn   net.Conn
	r      *bufio.Reader
	id     int
	events []event.Record

	// Version is QEMU's, as in "7.2.22".
	Version             string
	Major, Minor, Micro int
}

// Split takes an address as QEMU writes it, "unix:PATH" or "tcp:HOST:PORT", or
// without the scheme: with a slash it is a path.
func Split(addr string) (network, address string) {
	addr, _, _ = strings.Cut(addr, ",") // options such as server=on are the server's
	switch {
	case strings.HasPrefix(addr, "unix:"):
		return "unix", addr[5:]
	case strings.HasPrefix(addr, "tcp:"):
		return "tcp", addr[4:]
	case strings.Contains(addr, "/") || !strings.Contains(addr, ":"):
		return "unix", addr
	}
	return "tcp", addr
}

// Dial connects to a monitor and makes it ready for commands. A monitor serves
// one client at a time: while it has another, Dial waits until ctx ends.
func Dial(ctx context.Context, addr string) (*Client, error) {
	network, address := Split(addr)
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	c := &Client{conn: conn, r: bufio.NewReader(conn)}
	if err := c.negotiate(ctx); err != nil {
		conn.Close()
		return nil, fmt.Errorf("qmp %s: %w", addr, err)
	}
	return c, nil
}

func (c *Client) negotiate(ctx context.Context) error {
	var hello struct {
		QMP struct {
			Version struct {
				QEMU struct{ Major, Minor, Micro int } `json:"qemu"`
			} `json:"version"`
		}
	}
	line, err := c.line(ctx)
	if err != nil {
		return fmt.Errorf("no greeting (is another client connected?): %w", err)
	}
	if err := json.Unmarshal(line, &hello); err != nil {
		return fmt.Errorf("not a QMP monitor: %w", err)
	}
	v := hello.QMP.Version.QEMU
	c.Major, c.Minor, c.Micro = v.Major, v.Minor, v.Micro
	c.Version = fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Micro)
	return c.Do(ctx, "qmp_capabilities", nil, nil)
}

// Do executes a command and decodes its result into out, unless that is nil.
// What QEMU refuses is an [*Error].
func (c *Client) Do(ctx context.Context, command string, args, out any) error {
	c.id++
	req, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
		ID        int    `json:"id"`
	}{command, args, c.id})
	if err != nil {
		return err
	}
	stop := c.bound(ctx)
	_, err = c.conn.Write(append(req, '\n'))
	stop()
	if err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	for {
		line, err := c.line(ctx)
		if err != nil {
			return fmt.Errorf("%s: %w", command, err)
		}
		var reply struct {
			ID     *int            `json:"id"`
			Return json.RawMessage `json:"return"`
			Error  *Error          `json:"error"`
		}
		if err := json.Unmarshal(line, &reply); err != nil {
			return fmt.Errorf("%s: %w", command, err)
		}
		switch {
		case c.keep(line):
		case reply.Error != nil:
			reply.Error.Command = command
			return reply.Error
		case reply.ID == nil || *reply.ID != c.id:
			// The answer to a command whose caller has given up.
		case out != nil:
			return json.Unmarshal(reply.Return, out)
		default:
			return nil
		}
	}
}

// Wait returns the next event for which match says yes, of those that have come
// since the last Wait and those that come. Others before it are dropped.
func (c *Client) Wait(ctx context.Context, match func(event.Record) bool) (event.Record, error) {
	for {
		for len(c.events) > 0 {
			e := c.events[0]
			c.events = c.events[1:]
			if match(e) {
				return e, nil
			}
		}
		line, err := c.line(ctx)
		if err != nil {
			return event.Record{}, err
		}
		c.keep(line)
	}
}

// Pending reports whether there is an event that Wait has not returned or dropped
// yet, of those that came with the answers to commands, for which match says yes.
func (c *Client) Pending(match func(event.Record) bool) bool {
	return slices.ContainsFunc(c.events, match)
}

// keep reports whether a line is an event, which it keeps.
func (c *Client) keep(line []byte) bool {
	rec, err := event.Decode(line)
	if err == nil {
		c.events = append(c.events, rec)
	}
	return !errors.Is(err, event.ErrNotEvent)
}

func (c *Client) line(ctx context.Context) ([]byte, error) {
	defer c.bound(ctx)()
	var line []byte
	for {
		part, err := c.r.ReadSlice('\n')
		line = append(line, part...)
		switch {
		case err == nil:
			return line, nil
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case !errors.Is(err, bufio.ErrBufferFull):
			return nil, err
		case len(line) > maxLine:
			return nil, fmt.Errorf("a line of more than %d bytes", maxLine)
		}
	}
}

// bound ends reads and writes when ctx does, until the function that it returns
// is called.
func (c *Client) bound(ctx context.Context) func() {
	stop := context.AfterFunc(ctx, func() { c.conn.SetDeadline(time.Unix(1, 0)) })
	return func() {
		if !stop() {
			c.conn.SetDeadline(time.Time{})
		}
	}
}

// Close ends the connection; QEMU goes on.
func (c *Client) Close() error { return c.conn.Close() }
