package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"runtime"
	"strings"
	"sync/atomic"
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
	g := newGuest()
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
		c.close() // the other host has the guest now
		c.Write([]byte("elsewhere"))
		c.start(nil)
		c.Write([]byte(", and back"))
		if here.String() != "after, and back" {
			t.Errorf("json %v: %q", json, here)
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

// What is typed while the guest is elsewhere must not reach the copy that is here.
func TestTheConsoleIsDeafWhileTheGuestIsElsewhere(t *testing.T) {
	r, w := io.Pipe()
	c := newConsole(stdio{r, io.Discard, io.Discard}, false, nil)
	h := &typist{}
	g := newGuest()
	g.machine = h
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.feed(context.Background(), g)
	}()
	key := func(s string) { // has been read, and what came of it, when the next one is
		if _, err := w.Write([]byte(s)); err != nil {
			t.Error(err)
		}
	}
	c.start(nil)
	key("one")
	key("")
	c.close()
	key("two")
	key("")
	c.start(nil)
	key("three")
	w.Close()
	<-done
	if got := h.took.String(); got != "onethree" {
		t.Errorf("the guest got %q", got)
	}
}

// brokenHost takes no input any more.
type brokenHost struct{ machine }

func (brokenHost) Input([]byte) (int, error) { return 0, errors.New("closed") }

func TestFeedingEndsWithTheMachine(t *testing.T) {
	c := newConsole(stdio{strings.NewReader("x"), io.Discard, io.Discard}, false, nil)
	g := newGuest()
	g.machine = brokenHost{}
	c.start(nil)
	c.feed(t.Context(), g) // returns
}

// slowPort is a serial port that takes a key when the console has been closed, and not
// at once then.
type slowPort struct {
	machine
	c     *console
	began chan struct{}
	took  atomic.Bool
}

func (p *slowPort) Input(typed []byte) (int, error) {
	close(p.began)
	for ours := true; ours; _, _, ours = p.c.mode() {
		runtime.Gosched()
	}
	for range 1000 {
		runtime.Gosched()
	}
	p.took.Store(true)
	return len(typed), nil
}

func TestAConsoleThatIsClosedGivesTheGuestNothingAnyMore(t *testing.T) {
	c := newConsole(stdio{strings.NewReader("x"), io.Discard, io.Discard}, false, nil)
	h := &slowPort{c: c, began: make(chan struct{})}
	g := newGuest()
	g.machine = h
	c.start(nil)
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.feed(context.Background(), g)
	}()
	<-h.began
	c.close()
	if !h.took.Load() {
		t.Error("the guest was still being given a key")
	}
	<-done
}

// What had no room is not for the guest that is here later.
func TestAKeyThatWaitsForRoomIsNobodysWhenTheConsoleIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newConsole(stdio{strings.NewReader("x"), io.Discard, io.Discard}, false, nil)
		h := &typist{full: 1}
		g := newGuest()
		g.machine = h
		c.start(nil)
		done := make(chan struct{})
		go func() {
			defer close(done)
			c.feed(context.Background(), g)
		}()
		synctest.Wait() // there was no room
		c.close()
		<-done
		if h.took.Len() != 0 || h.full != 0 {
			t.Errorf("the guest got %q", &h.took)
		}
	})
}

func TestAKeyThatComesAfterTheEndIsNobodys(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	h := &typist{}
	g := newGuest()
	g.machine = h
	c := newConsole(stdio{endsFirst{cancel}, io.Discard, io.Discard}, false, nil)
	c.start(nil)
	c.feed(ctx, g)
	if h.took.Len() != 0 {
		t.Errorf("the guest got %q", &h.took)
	}
}

// endsFirst is a key that is typed when something has ended.
type endsFirst struct{ end func() }

func (k endsFirst) Read(p []byte) (int, error) {
	k.end()
	return copy(p, "x"), nil
}
