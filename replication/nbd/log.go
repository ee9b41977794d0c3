package nbd

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"syscall"
)

// clientLog logs what happens to one client of a server, at the levels that
// ServerConfig.Logger documents.
type clientLog struct {
	log     *slog.Logger
	chosen  bool // the client has chosen an export
	refused bool // the refusal is logged already
}

func newClientLog(log *slog.Logger, conn net.Conn) *clientLog {
	if log == nil {
		return &clientLog{log: slog.New(slog.DiscardHandler)}
	}
	name := ""
	if a := conn.RemoteAddr(); a != nil {
		name = a.String()
	}
	return &clientLog{log: log.With("from", name)}
}

// uses tells that the client has chosen an export.
func (c *clientLog) uses(e *Export) {
	c.chosen = true
	c.log = c.log.With("export", e.cfg.Name)
	if e.cfg.Generation > 0 {
		c.log = c.log.With("generation", e.cfg.Generation)
	}
	c.log.Debug("a client of a disk has come")
}

// refuse logs an option that is refused, the first of each client with level
// Warn. An option that the server does not know is no refusal: clients ask for
// what a server may not have.
func (c *clientLog) refuse(asked string, e *OptionError) {
	if c == nil || e.Code == repErrUnsup {
		return
	}
	level := slog.LevelWarn
	if c.refused {
		level = slog.LevelDebug
	}
	c.refused = true
	c.log.Log(context.Background(), level, "a client of a disk was refused", "asked", shortened(asked), "error", e)
}

// shortened bounds what a client has made up.
func shortened(name string) string {
	if len(name) > 100 {
		return name[:100] + "..."
	}
	return name
}

// end tells why the connection has ended: err is what ServeConn returns, pushed says
// that it was closed to make room for another.
func (c *clientLog) end(ctx context.Context, err error, pushed bool) {
	var refused *OptionError
	switch {
	case pushed:
		c.log.Warn("a client that did not choose a disk was closed to make room for another")
	case err == nil, ctx.Err() != nil, errors.Is(err, net.ErrClosed):
		c.log.Debug("a client of a disk has gone", "error", err)
	case !c.chosen && left(err):
		c.log.Debug("a client of a disk has gone before it had chosen one")
	case errors.As(err, &refused): // the server has refused it, and has logged that
	default:
		c.log.Warn("the connection of a client of a disk has failed", "error", err)
	}
}

// left reports whether an error says no more than that the other side has gone,
// which may have said nothing at all: so does a program that checks whether a port
// is open.
func left(err error) bool {
	for _, gone := range []error{io.EOF, io.ErrUnexpectedEOF, io.ErrClosedPipe, syscall.ECONNRESET, syscall.EPIPE} {
		if errors.Is(err, gone) {
			return true
		}
	}
	return isTimeout(err)
}

// logLost tells that a client's connection has failed with so many requests under
// way.
func (c *Client) logLost(err error, requests int) {
	if c.cfg.Logger == nil || errors.Is(err, ErrClosed) {
		return
	}
	to := ""
	if a := c.conn.RemoteAddr(); a != nil {
		to = a.String()
	}
	c.cfg.Logger.Warn("the connection to a disk's server has failed", "to", to, "export", c.cfg.Export, "requests", requests, "error", err)
}
