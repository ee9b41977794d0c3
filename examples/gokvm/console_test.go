package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/gocolo/lockstep/kvm/gokvmhost"
)

// typist is a guest whose serial port takes a few bytes at a time.
type typist struct {
	machine
	took bytes.Buffer
	full int // how often it has no room
}

func (h *typist) Input(p []byte) (int, error) {
	if h.full > 0 {
		h.full--
		return 0, gokvmhost.ErrFull
	}
	n := min(len(p), 3)
	h.took.Write(p[:n])
	if n < len(p) {
		return n, gokvmhost.ErrFull
	}
	return n, nil
}

// typed feeds a console and returns what the guest got, and the orders.
func typed(t *testing.T, terminal bool, text string, full int) (guestGot, orders string, quits int) {
	t.Helper()
	c := newConsole(stdio{strings.NewReader(text), io.Discard, io.Discard}, false, func() { quits++ })
	c.start(func(key byte) { orders += string(key) })
	if terminal {
		c.restore = func() error { return nil }
	}
	h := &typist{full: full}
	g := newGuest(options{mode: modeBoot})
	g.machine = h
	synctest.Test(t, func(t *testing.T) { c.feed(context.Background(), g) })
	return h.took.String(), orders, quits
}

func TestOnATerminalCtrlABeginsAnOrder(t *testing.T) {
	got, orders, quits := typed(t, true, "ls\r\x01c\x01i-\x01a-\x01\x01\x01hx\x01x", 2)
	if got != "ls\r-\x01-\x01x" || orders != "ci" || quits != 1 {
		t.Errorf("the guest got %q, orders %q, %d times the end", got, orders, quits)
	}
}

func TestWithoutATerminalEveryByteIsTheGuests(t *testing.T) {
	const text = "\x00\x01x\x03\x1b[A\xff end of input is no order"
	got, orders, quits := typed(t, false, text, 1)
	if got != text || orders != "" || quits != 0 {
		t.Errorf("the guest got %q, orders %q, %d times the end", got, orders, quits)
	}
}

func TestTheConsoleIsSilentUntilTheGuestIsOurs(t *testing.T) {
	var out, errs bytes.Buffer
	for _, json := range []bool{false, true} {
		out.Reset()
		errs.Reset()
		c := newConsole(stdio{strings.NewReader(""), &out, &errs}, json, nil)
		if n, err := c.Write([]byte("before")); n != 6 || err != nil {
			t.Error(n, err)
		}
		c.start(nil)
		c.Write([]byte("after"))
		here, there := &out, &errs
		if json {
			here, there = there, here
		}
		if here.String() != "after" || there.Len() != 0 {
			t.Errorf("json %v: out %q, errors %q", json, &out, &errs)
		}
	}
}

func TestInRawModeLinesReturnTheCarriage(t *testing.T) {
	var out bytes.Buffer
	c := &console{restore: func() error { return nil }}
	c.say(&out, "one\ntwo\n")
	if out.String() != "one\r\ntwo\r\n" {
		t.Errorf("%q", &out)
	}
}

// brokenHost takes no input any more.
type brokenHost struct{ machine }

func (brokenHost) Input([]byte) (int, error) { return 0, errors.New("closed") }

func TestFeedingEndsWithTheMachine(t *testing.T) {
	c := newConsole(stdio{strings.NewReader("x"), io.Discard, io.Discard}, false, nil)
	g := newGuest(options{mode: modeBoot})
	g.machine = brokenHost{}
	c.feed(t.Context(), g) // returns
}
