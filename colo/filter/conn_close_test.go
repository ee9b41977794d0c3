package filter_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"testing"
	"testing/synctest"

	"github.com/gocolo/lockstep/colo/filter"
)

// wantClosed checks that a call has failed because of Close.
func wantClosed(t *testing.T, what string, err error) {
	t.Helper()
	var e *filter.Error
	if !errors.Is(err, net.ErrClosed) || !errors.As(err, &e) {
		t.Errorf("%s: %v, want a filter.Error with %v", what, err, net.ErrClosed)
	}
}

func TestCloseEndsCallsThatAreBlocked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		here, there := net.Pipe()
		c := filter.NewConn(here, filter.ConnConfig{Marks: true})
		read, write := make(chan error, 1), make(chan error, 1)
		go func() {
			_, err := c.ReadPacket()
			read <- err
		}()
		go func() { write <- c.WritePacket([]byte("nobody takes it")) }()
		synctest.Wait()
		if len(read)+len(write) > 0 {
			t.Error("a call was not blocked")
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		wantClosed(t, "a blocked read", <-read)
		wantClosed(t, "a blocked write", <-write)
		if n, err := there.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("the other end reads %d bytes, %v", n, err)
		}
		if err := c.Close(); err != nil {
			t.Errorf("again: %v", err)
		}
		_, err := c.ReadPacket()
		wantClosed(t, "a later read", err)
		wantClosed(t, "a later write", c.WritePacket([]byte("x")))
		wantClosed(t, "a later marker", c.WriteMark(1))
		there.Close()
	})
}

func TestNothingIsReadOrWrittenAfterClose(t *testing.T) {
	var out bytes.Buffer
	c := filter.NewConn(rw{bytes.NewReader([]byte("\x00\x00\x00\x01a\x00\x00\x00\x01b")), &out}, filter.ConnConfig{})
	if p, err := c.ReadPacket(); string(p) != "a" || err != nil {
		t.Fatalf("%q, %v", p, err)
	}
	if err := c.Close(); err != nil {
		t.Errorf("the connection cannot be closed: %v", err)
	}
	_, err := c.ReadPacket()
	wantClosed(t, "a frame that was read ahead", err)
	if wantClosed(t, "a write", c.WritePacket([]byte("x"))); out.Len() > 0 {
		t.Errorf("%q was written", out.String())
	}
}

// A reluctant connection cannot be closed without an error.
type reluctant struct {
	rw
	closed int
	err    error
}

func (f *reluctant) Close() error {
	f.closed++
	return f.err
}

func TestAConnectionIsClosedOnce(t *testing.T) {
	f := &reluctant{rw: rw{bytes.NewReader(nil), io.Discard}, err: errors.New("its last bytes are lost")}
	c := filter.NewConn(f, filter.ConnConfig{})
	if err := c.Close(); err != f.err {
		t.Errorf("%v, want %v", err, f.err)
	}
	if err := c.Close(); err != nil || f.closed != 1 {
		t.Errorf("%v, and it was closed %d times", err, f.closed)
	}
}

func TestAMarkerMayEndTheConnection(t *testing.T) {
	wire := []byte("COLO\x00\x00\x00\x00\x00\x00\x00\x07\x00\x00\x00\x01a")
	var c *filter.Conn
	c = filter.NewConn(rw{bytes.NewReader(wire), io.Discard}, filter.ConnConfig{Marks: true, OnMark: func(uint64) error { return c.Close() }})
	p, err := c.ReadPacket()
	if wantClosed(t, "the frame behind the marker", err); p != nil {
		t.Errorf("%q was read", p)
	}
}
