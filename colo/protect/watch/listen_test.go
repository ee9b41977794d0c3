package watch

import (
	"errors"
	"net"
	"testing"
)

func (l *listener) inside() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.in)
}

// Whoever connects as often as he can waits, and takes no descriptors from the guest.
func TestNoMoreConnectionsAreLetInThanThereMayBe(t *testing.T) {
	l, err := Listen("0")
	if err != nil {
		t.Fatal(err)
	}
	in := make(chan net.Conn)
	ended := make(chan error)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				ended <- err
				return
			}
			conn.Write([]byte("x")) // one that was told nothing could be closed for another
			in <- conn
		}
	}()
	enters := func() net.Conn {
		t.Helper()
		select {
		case conn := <-in:
			return conn
		case err := <-ended:
			t.Fatal(err)
			return nil
		}
	}
	var strangers, visitors []net.Conn
	for range maxConnections + 2 {
		conn, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		strangers = append(strangers, conn)
	}
	for range maxConnections {
		visitors = append(visitors, enters())
	}
	if n := l.(*listener).inside(); n != maxConnections {
		t.Errorf("%d are in", n)
	}
	select {
	case <-in:
		t.Error("one more was let in")
	default:
	}
	visitors[7].Close()
	visitors[7].Close() // which leaves once
	visitors[7] = enters()
	if n := l.(*listener).inside(); n != maxConnections {
		t.Errorf("%d are in when another has come for one that left", n)
	}
	l.Close() // while it is full
	if err := <-ended; !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
	for _, conn := range append(strangers, visitors...) {
		conn.Close()
	}
	if n := l.(*listener).inside(); n != 0 {
		t.Errorf("%d are in when all have left", n)
	}
}
