package qmp_test

import (
	"bufio"
	"context"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// pipes is a listener whose clients come over a channel.
type pipes struct {
	come   chan net.Conn
	closed chan struct{}
}

func (p pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.come:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p pipes) Close() error {
	select {
	case <-p.closed:
	default:
		close(p.closed)
	}
	return nil
}

func (p pipes) Addr() net.Addr { return &net.UnixAddr{} }

// connect connects a client; greeted says when it has heard the greeting.
func (p pipes) connect(t *testing.T) (client net.Conn, r *bufio.Reader, greeted chan error) {
	t.Helper()
	client, server := net.Pipe()
	p.come <- server
	r, greeted = bufio.NewReader(client), make(chan error, 1)
	go func() {
		_, err := r.ReadString('\n')
		greeted <- err
	}()
	synctest.Wait()
	return client, r, greeted
}

// Clients that connect and say nothing do not keep an operator out; one that has negotiated may be
// silent for as long as it likes.
func TestAClientThatSaysNothingGivesWayToOneThatWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, s := newHost()
		s.MaxClients = 2
		l := pipes{make(chan net.Conn), make(chan struct{})}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- s.Serve(ctx, l) }()

		watcher, watches, greeted := l.connect(t)
		if err := <-greeted; err != nil {
			t.Fatal(err)
		}
		if got := say(t, watcher, watches, `{"execute":"qmp_capabilities"}`); !strings.Contains(got, "return") {
			t.Fatal(got)
		}
		idle, idles, greeted := l.connect(t)
		if err := <-greeted; err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour) // nobody waits
		if got := say(t, idle, idles, `{"execute":"query-status"}`); !strings.Contains(got, "CommandNotFound") {
			t.Fatalf("a client for whose place nobody waits hears %q", got)
		}

		operator, _, greeted := l.connect(t)
		if err := <-greeted; err != nil {
			t.Errorf("the operator hears %v", err)
		}
		if _, err := idles.ReadByte(); err != io.EOF {
			t.Errorf("the one that said nothing hears %v", err)
		}
		begun := time.Now()
		late, _, greetedLate := l.connect(t)
		time.Sleep(9 * time.Second)
		select {
		case err := <-greetedLate:
			t.Errorf("a client takes the place of one that has just come: %v", err)
		default:
		}
		if err := <-greetedLate; err != nil {
			t.Errorf("the next hears %v", err)
		}
		if d := time.Since(begun); d != 10*time.Second { // as the comment of MaxClients says
			t.Errorf("the next waits for %v", d)
		}
		if got := say(t, watcher, watches, `{"execute":"query-version"}`); !strings.Contains(got, "qemu") {
			t.Errorf("the watcher hears %q", got)
		}
		cancel()
		<-ended
		for _, c := range []net.Conn{watcher, idle, operator, late} {
			c.Close()
		}
	})
}
