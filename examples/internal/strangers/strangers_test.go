package strangers

import (
	"context"
	"errors"
	"net"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// conn only knows whether it was closed.
type conn struct {
	net.Conn
	closed bool
}

func (c *conn) Close() error {
	c.closed = true
	return nil
}

func enter(t *testing.T, r *Room, n int) (list []*conn) {
	t.Helper()
	for range n {
		c := new(conn)
		if !r.Enter(c) {
			t.Fatal("it was not let in")
		}
		list = append(list, c)
	}
	return list
}

func closed(list []*conn) (n int) {
	for _, c := range list {
		if c.closed {
			n++
		}
	}
	return n
}

func TestOneMoreEndsTheOldest(t *testing.T) {
	r := &Room{Max: 3}
	list := enter(t, r, 3)
	if n := closed(list); n > 0 {
		t.Fatalf("%d of %d were ended, and there was room", n, r.Max)
	}
	for i := range 5 {
		list = append(list, enter(t, r, 1)...)
		if closed(list) != i+1 || !list[i].closed {
			t.Errorf("after %d connections %d were ended, and the oldest of those here: %v", len(list), closed(list), list[i].closed)
		}
	}
	for i, c := range list {
		if stays := i >= 5; r.Leave(c) != stays || c.closed == stays {
			t.Errorf("connection %d: it is to stay: %v, and is closed: %v", i, stays, c.closed)
		}
	}
}

func TestWhoHasLeftIsEndedForNobody(t *testing.T) {
	r := &Room{Max: 2}
	known := enter(t, r, 2)
	if !r.Leave(known[0]) || r.Leave(known[0]) {
		t.Error("a connection leaves once")
	}
	list := enter(t, r, 10)
	if known[0].closed || !known[1].closed || closed(list) != 8 {
		t.Errorf("it was ended: %v; the silent one that came after it: %v; of ten later ones %d", known[0].closed, known[1].closed, closed(list))
	}
	r.Shut()
	if known[0].closed || closed(list) != 10 {
		t.Errorf("the room is shut: it was ended: %v; of ten strangers %d", known[0].closed, closed(list))
	}
	if r.Leave(list[9]) {
		t.Error("a stranger that was ended is taken for one that has come")
	}
}

func TestARoomThatIsShutLetsNobodyInUntilItIsOpened(t *testing.T) {
	r := &Room{Max: 2}
	r.Shut()
	c := new(conn)
	if r.Enter(c) || !c.closed {
		t.Error("it was let in, or not closed")
	}
	r.Open()
	if list := enter(t, r, 2); closed(list) > 0 {
		t.Error("it was opened, and ends those who come")
	}
}

// listener returns connections and errors in turn, and then that it is closed.
type listener struct {
	net.Listener
	next []any
}

func (l *listener) Accept() (net.Conn, error) {
	if len(l.next) == 0 {
		return nil, &net.OpError{Op: "accept", Err: net.ErrClosed}
	}
	next := l.next[0]
	l.next = l.next[1:]
	if err, ok := next.(error); ok {
		return nil, &net.OpError{Op: "accept", Err: err}
	}
	return next.(net.Conn), nil
}

func TestErrorsThatPassEndNoAcceptingAndAreToldOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first, second := new(conn), new(conn)
		l := &listener{next: []any{first, syscall.EMFILE, syscall.ENOBUFS, syscall.EMFILE, second, syscall.ECONNABORTED}}
		var told []error
		r := &Room{Max: 3, Warn: func(err error) { told = append(told, err) }}
		for _, want := range []*conn{first, second} {
			if got, err := r.Accept(t.Context(), l); err != nil || got != want {
				t.Fatalf("%v, %v", got, err)
			}
		}
		if c, err := r.Accept(t.Context(), l); c != nil || !errors.Is(err, net.ErrClosed) {
			t.Errorf("%v, %v", c, err)
		}
		if len(told) != 2 || !errors.Is(told[0], syscall.EMFILE) || !errors.Is(told[1], syscall.ECONNABORTED) {
			t.Errorf("told: %v", told)
		}
		if !r.Leave(first) || !r.Leave(second) {
			t.Error("whoever was accepted is not in the room")
		}
	})
}

func TestAcceptingPausesForASecondAtMostAndEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &listener{}
		for range 100 {
			l.next = append(l.next, syscall.EMFILE)
		}
		why := errors.New("the host leaves")
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(time.Minute, func() { cancel(why) })
		begin := time.Now()
		c, err := (&Room{Max: 1}).Accept(ctx, l)
		if c != nil || !errors.Is(err, why) || time.Since(begin) != time.Minute {
			t.Errorf("after %v: %v, %v", time.Since(begin), c, err)
		}
		if n := 100 - len(l.next); n < 60 || n > 70 { // 8 in the first second, then one a second
			t.Errorf("%d attempts in a minute", n)
		}
	})
}
