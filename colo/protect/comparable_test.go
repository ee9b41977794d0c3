package protect

import (
	"net"
	"testing"
	"time"
)

// byValue is a connection that cannot be compared with another.
type byValue struct {
	net.Conn
	_ []byte
}

// What a caller's Dialer or listener returns is a connection, and need be no more.
func TestConnectionsNeedNotBeComparable(t *testing.T) {
	bubble(t, "dialed", func(t *testing.T, w *world) {
		b := w.boot("b", false, nil)
		a := w.boot("a", true, func(c *Config) {
			dialBy(c, func(conn net.Conn) net.Conn { return byValue{Conn: conn} })
		})
		a.is(Protected)
		b.is(Following)
		session := a.job.session()
		control(a).Close() // it is made again
		time.Sleep(5 * a.job.cfg.Lost)
		goesOn(t, a, b, session)
	})
	t.Run("accepted", func(t *testing.T) {
		p, l := new(Port), listenerOf{make(chan net.Conn, 1), make(chan struct{})}
		p.l = l
		here, there := net.Pipe()
		l.in <- byValue{Conn: there}
		done := make(chan error)
		go func() { done <- p.Serve(t.Context()) }()
		here.Write([]byte("a stranger"))
		here.Close()
		for n := 1; n > 0; time.Sleep(time.Millisecond) {
			p.mu.Lock()
			n = len(p.greeting) + len(l.in)
			p.mu.Unlock()
		}
		l.Close()
		<-done
	})
}

// listenerOf accepts what it is given.
type listenerOf struct {
	in     chan net.Conn
	closed chan struct{}
}

func (l listenerOf) Accept() (net.Conn, error) {
	select {
	case c := <-l.in:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l listenerOf) Close() error {
	select {
	case <-l.closed:
	default:
		close(l.closed)
	}
	return nil
}

func (l listenerOf) Addr() net.Addr { return addr("") }
