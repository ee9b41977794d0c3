package device

import (
	"context"
	"io"
	"log/slog"
	"sync"
)

// Console carries a serial port's output to a writer that may block.
type Console struct {
	w    io.Writer
	log  *slog.Logger
	wake worker

	mu  sync.Mutex // buf, and writing w
	buf []byte     // what the guest wrote and the writer has not begun with
}

// NewConsole returns a console that writes to w; nil discards. log may be nil.
func NewConsole(w io.Writer, log *slog.Logger) *Console {
	return &Console{w: w, log: logOr(log), wake: make(worker, 1), buf: make([]byte, 0, serialOutput)}
}

// put appends a byte if there is room.
func (c *Console) put(v byte) {
	c.mu.Lock()
	if c.w != nil && len(c.buf) < cap(c.buf) {
		c.buf = append(c.buf, v)
	}
	c.mu.Unlock()
	c.wake.kick()
}

func (c *Console) full() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.buf) == cap(c.buf)
}

// Work writes what the guest writes until ctx ends, and then what is left. An error
// of the writer ends the console: from then on output is discarded. The port is
// told of room inside the gate.
func (c *Console) Work(ctx context.Context, gate *Gate, port *Serial) {
	if gate.TryEnter() { // of room that an earlier Work has made at its end
		port.Kick()
		gate.Leave()
	}
	if c.w == nil {
		return
	}
	spare := make([]byte, 0, serialOutput)
	for {
		ended := false
		select {
		case <-ctx.Done():
			ended = true
		case <-c.wake:
		}
		c.mu.Lock()
		wasFull := len(c.buf) == cap(c.buf)
		c.buf, spare = spare[:0], c.buf
		c.mu.Unlock()
		if len(spare) > 0 {
			if _, err := c.w.Write(spare); err != nil {
				c.log.Warn("the console failed, and its output is discarded from now on", "err", err)
				c.mu.Lock()
				wasFull = wasFull || len(c.buf) == cap(c.buf)
				c.w, c.buf = nil, c.buf[:0] // with what came while it was being written to
				c.mu.Unlock()
			}
		}
		if ended {
			return
		}
		if wasFull && gate.Enter(ctx) {
			port.Kick()
			gate.Leave()
		}
	}
}
