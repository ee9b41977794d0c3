package main

import (
	"context"
	"errors"
	"io"
	"os"
	"sync"
	"time"

	"github.com/gocolo/lockstep/kvm/gokvmhost"
)

// escape is the key that begins an order to the program: Ctrl-A.
const escape = 0x01

const consoleHelp = `
Ctrl-A x  end the guest, on both sides
Ctrl-A c  make a checkpoint now
Ctrl-A s  hand the guest over to the other host, or move it there
Ctrl-A g  let a guest go on here of which the other host does not say whether it has it
Ctrl-A w  save the guest to the file of -save, which ends it here
Ctrl-A i  say how things stand
Ctrl-A a  send Ctrl-A to the guest
Ctrl-A h  this
`

// A console is the guest's serial line at the program's standard input and output. On a
// terminal, which is in raw mode while the guest has it, Ctrl-A begins an order;
// otherwise every byte goes to the guest.
type console struct {
	in   io.Reader
	quit func() // Ctrl-A x

	typing sync.Mutex // held while the guest is given a key, taken before mu

	mu      sync.Mutex
	out     io.Writer
	show    bool // what the guest says is shown
	order   func(key byte)
	restore func() error // of a terminal in raw mode; nil: there is none
}

// newConsole makes the console, which does nothing yet. With JSON on standard
// output, the guest is on standard error. quit is called for Ctrl-A x.
func newConsole(std stdio, json bool, quit func()) *console {
	c := &console{in: std.in, out: std.out, quit: quit}
	if json {
		c.out = std.err
	}
	return c
}

// start gives the guest the terminal, if it is one, and shows what it says from
// now on. order is called for a key after Ctrl-A, but for x, h and a. It may be
// started again after close.
func (c *console) start(order func(key byte)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.show, c.order = true, order
	if in, ok := c.in.(*os.File); ok && c.restore == nil {
		if restore, err := makeRaw(in); err == nil {
			c.restore = restore
		}
	}
}

// close restores the terminal, and shows nothing any more: what is typed is dropped. When it
// returns no byte is being given to the guest, and none will be unless the console is started
// again.
func (c *console) close() {
	c.hide()
	c.typing.Lock() // whoever gives a key to the guest has done so
	defer c.typing.Unlock()
}

func (c *console) hide() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.show = false
	if c.restore != nil {
		c.restore()
		c.restore = nil
	}
}

// raw reports whether the guest has a terminal.
func (c *console) raw() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.restore != nil
}

// mode returns whether Ctrl-A begins an order, the function that takes orders, and whether the
// guest has the console at all.
func (c *console) mode() (orders bool, order func(key byte), ours bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.restore != nil, c.order, c.show
}

// Write shows the output of the guest. It never fails: a guest whose output cannot be
// shown goes on. (An io.Writer for gokvmhost.Config.Console.)
func (c *console) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.show {
		c.out.Write(p)
	}
	return len(p), nil
}

// say writes lines of the program's own to w, whatever state the terminal is in.
func (c *console) say(w io.Writer, text string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.restore != nil { // raw: a line feed does not return the carriage
		b := make([]byte, 0, len(text)+2)
		for i := range len(text) {
			if text[i] == '\n' {
				b = append(b, '\r')
			}
			b = append(b, text[i])
		}
		text = string(b)
	}
	io.WriteString(w, text)
}

// inputRetry is how soon a byte is offered again to a guest that does not read.
const inputRetry = 10 * time.Millisecond

// give offers the guest the bytes that were typed, and returns how many need not be offered
// again: all of them if the guest does not have the console any more.
func (c *console) give(guest *guest, typed []byte) (int, error) {
	c.typing.Lock()
	defer c.typing.Unlock()
	if _, _, ours := c.mode(); !ours {
		return len(typed), nil
	}
	return guest.Input(typed)
}

// feed passes on what is typed until the input or ctx ends. It may be reading
// when ctx ends, and then lives as long as the program.
func (c *console) feed(ctx context.Context, guest *guest) {
	buf := make([]byte, 256)
	escaped := false
	for ctx.Err() == nil {
		n, err := c.in.Read(buf)
		if ctx.Err() != nil {
			return
		}
		orders, order, ours := c.mode()
		if !ours {
			n = 0
		}
		typed := make([]byte, 0, 2*n)
		for _, b := range buf[:n] {
			switch {
			case !orders || !escaped && b != escape:
				typed = append(typed, b)
			case !escaped:
				escaped = true
			default:
				escaped = false
				switch b {
				case 'a', escape:
					typed = append(typed, escape)
				case 'x':
					c.quit()
				case 'h', '?':
					c.say(c.out, consoleHelp)
				default:
					order(b)
				}
			}
		}
		for len(typed) > 0 {
			n, full := c.give(guest, typed)
			typed = typed[n:]
			if full == nil {
				continue
			}
			if !errors.Is(full, gokvmhost.ErrFull) {
				return
			}
			select {
			case <-time.After(inputRetry):
			case <-ctx.Done():
				return
			}
		}
		if err != nil {
			return
		}
	}
}
