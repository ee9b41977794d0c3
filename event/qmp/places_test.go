package qmp_test

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"syscall"
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

// Whoever opens a thousand connections and says nothing must not keep an operator from the monitor
// for a quarter of an hour, in which a guest may stand still, nor fill the log.
func TestAThousandClientsThatSayNothingKeepAnOperatorOutForLessThanTwoMinutes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, s := newHost()
		var log bytes.Buffer
		s.Log = slog.New(slog.NewTextHandler(&log, nil))
		l := pipes{make(chan net.Conn), make(chan struct{})}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- s.Serve(ctx, l) }()

		begun := time.Now()
		var silent []net.Conn
		for range 1000 {
			c, _, _ := l.connect(t)
			silent = append(silent, c)
		}
		operator, hears, greeted := l.connect(t)
		if err := <-greeted; err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begun); took > 2*time.Minute {
			t.Errorf("it took %v", took)
		}
		if got := say(t, operator, hears, `{"execute":"qmp_capabilities"}`); !strings.Contains(got, "return") {
			t.Error(got)
		}
		time.Sleep(time.Hour)
		if got := say(t, operator, hears, `{"execute":"query-version"}`); !strings.Contains(got, "qemu") {
			t.Errorf("the operator hears %q", got)
		}
		for range 1000 {
			browser, _, _ := l.connect(t)
			browser.Write([]byte("GET "))
			browser.Close()
		}
		cancel()
		<-ended
		if told := strings.Count(log.String(), "level=WARN"); told == 0 || told > 130 { // two minutes, and a moment
			t.Errorf("%d records of them", told)
		}
		for _, c := range append(silent, operator) {
			c.Close()
		}
	})
}

// failing is a listener that fails before each connection.
type failing struct {
	pipes
	with []error
}

func (l *failing) Accept() (net.Conn, error) {
	if len(l.with) > 0 {
		err := l.with[0]
		l.with = l.with[1:]
		return nil, &net.OpError{Op: "accept", Err: os.NewSyscallError("accept4", err)}
	}
	return l.pipes.Accept()
}

// A monitor that has ended cannot be told who goes on with a guest.
func TestAMonitorOutlivesWhatAcceptingFailsWith(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, s := newHost()
		l := &failing{pipes{make(chan net.Conn), make(chan struct{})}, []error{syscall.EMFILE, syscall.ENOBUFS, syscall.EPERM, syscall.ECONNABORTED}}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- s.Serve(ctx, l) }()
		time.Sleep(time.Minute)
		select {
		case err := <-ended:
			t.Fatal(err)
		default:
		}
		c, r, greeted := l.connect(t)
		if err := <-greeted; err != nil {
			t.Fatal(err)
		}
		if got := say(t, c, r, `{"execute":"qmp_capabilities"}`); !strings.Contains(got, "return") {
			t.Error(got)
		}
		cancel()
		<-ended
		c.Close()
	})
}
