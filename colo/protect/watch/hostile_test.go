package watch

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/colo/protect"
)

// visit connects to a listener on p, which accepts the connection.
func (p *pipes) visit(t *testing.T, l net.Listener) (there, here net.Conn) {
	t.Helper()
	dialled := make(chan net.Conn, 1)
	go func() {
		conn, err := p.dial(t.Context(), "", "")
		if err != nil {
			t.Error(err)
		}
		dialled <- conn
	}()
	here, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return <-dialled, here
}

// Whoever takes all places and says nothing keeps others out for a second and no longer; one that
// is told something, or says something, keeps its place.
func TestThoseWhoSayNothingGiveTheirPlacesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in := &pipes{conns: make(chan net.Conn), closed: make(chan struct{})}
		l := newListener(in, 3)
		accept := func() (there, here net.Conn) {
			t.Helper()
			return in.visit(t, l)
		}
		silent, _ := accept()
		says, hears := accept()
		listens, tells := accept()
		begun := time.Now()
		go func() {
			for wait := time.Duration(0); wait < 10*time.Minute; wait += time.Minute {
				time.Sleep(min(wait, time.Minute))
				says.Write([]byte("x"))
				hears.Read(make([]byte, 1))
				go listens.Read(make([]byte, 1))
				tells.Write([]byte("y"))
			}
		}()
		late, _ := accept()                           // when one has left
		if d := time.Since(begun); d != time.Second { // as the comment of Listen says
			t.Errorf("a newcomer waits for %v", d)
		}
		if _, err := silent.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("the silent one: %v", err)
		}
		time.Sleep(time.Hour) // and all others when they fall silent
		if n := l.inside(); n != 0 {
			t.Errorf("%d places are taken", n)
		}
		for _, c := range []net.Conn{silent, says, listens, late} {
			c.Close()
		}
		l.Close()
	})
}

// A thousand connections that say nothing, or never come to an end, keep a browser out for some seconds.
func TestAThousandConnectionsThatAskForNothingKeepABrowserOutForSeconds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in := &pipes{conns: make(chan net.Conn), closed: make(chan struct{})}
		l := newListener(in, maxConnections)
		begun := time.Now()
		var all []net.Conn
		for range 1001 {
			there, here := in.visit(t, l)
			go func() { // as a server does that is told nothing whole
				defer here.Close()
				for err := error(nil); err == nil; {
					_, err = here.Read(make([]byte, 1))
				}
			}()
			if len(all)%2 == 0 {
				there.Write([]byte("GET / HTTP/1.1"))
			}
			all = append(all, there)
		}
		if d := time.Since(begun); d > 5*time.Second {
			t.Errorf("it took %v", d)
		}
		if n := l.inside(); n > maxConnections {
			t.Errorf("%d are in", n)
		}
		for _, c := range all {
			c.Close()
		}
		synctest.Wait()
		if n := l.inside(); n != 0 {
			t.Errorf("%d are in when all have left", n)
		}
		l.Close()
	})
}

// Whoever announces an order and does not send it does not keep its connection for ever.
func TestAnOrderThatDoesNotComeIsNotWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := newJob(protect.Protected)
		s := serveInMemory(t, Config{Job: j, Control: true})
		conn, err := s.srv.Client().Transport.(*http.Transport).DialContext(t.Context(), "", "")
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		begun := time.Now()
		go io.WriteString(conn, "POST /act HTTP/1.1\r\nHost: localhost\r\nX-Lockstep-Token: "+s.page.token+
			"\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 15\r\n\r\nverb=")
		answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil || answer.StatusCode != http.StatusBadRequest {
			t.Errorf("%+v, %v", answer, err)
		}
		if d := time.Since(begun); d > stalling {
			t.Errorf("it took %v", d)
		}
		if o := j.ordered(); len(o) != 0 {
			t.Errorf("it was carried out: %q", o)
		}
		s.stop()
		s.srv.Close()
	})
}

// A stuck is a job whose arbiter never answers.
type stuck struct{ *job }

func (j stuck) Pause(ctx context.Context, _ string) error {
	<-ctx.Done()
	return ctx.Err()
}

func (j stuck) Switchover(ctx context.Context) error { return j.Pause(ctx, "") }

// An order that cannot be carried out since nobody answers ends, and says so, though its browser
// has left: the job has one turn for all of them.
func TestAnOrderThatIsNotAnsweredEnds(t *testing.T) {
	for verb, limit := range map[string]time.Duration{"pause": asking, "switchover": moving} {
		synctest.Test(t, func(t *testing.T) {
			p := New(Config{Job: stuck{newJob(protect.Protected)}, Control: true})
			ctx, cancel := context.WithCancel(t.Context())
			cancel() // the browser has left
			r := httptest.NewRequestWithContext(ctx, "POST", "http://localhost/act", strings.NewReader("verb="+verb))
			r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
			r.Header.Set("X-Lockstep-Token", p.token)
			w := httptest.NewRecorder()
			begun := time.Now()
			p.ServeHTTP(w, r)
			if d := time.Since(begun); d != limit {
				t.Errorf("%s ends after %v", verb, d)
			}
			if w.Code != http.StatusConflict || !strings.Contains(w.Body.String(), context.DeadlineExceeded.Error()) {
				t.Errorf("%s: %d %s", verb, w.Code, w.Body)
			}
		})
	}
}

// A request that only asks for the header of what is sent for ever is answered with that.
func TestTheHeaderOfWhatIsSentForEverIsAnAnswer(t *testing.T) {
	p := New(Config{Job: newJob(protect.Protected)})
	ctx, cancel := context.WithTimeoutCause(t.Context(), 10*time.Second, errors.New("it was watched"))
	defer cancel()
	w := httptest.NewRecorder()
	p.ServeHTTP(w, httptest.NewRequestWithContext(ctx, "HEAD", "http://localhost/live", nil))
	if ctx.Err() != nil || w.Code != http.StatusOK || w.Header().Get("Content-Type") != "text/event-stream" || len(p.viewers) != 0 {
		t.Errorf("%v: %d %v", context.Cause(ctx), w.Code, w.Header())
	}
}

// failing is a listener that fails before its connection.
type failing struct {
	net.Listener
	with []error
}

func (l *failing) Accept() (net.Conn, error) {
	if len(l.with) > 0 {
		err := l.with[0]
		l.with = l.with[1:]
		return nil, os.NewSyscallError("accept4", err)
	}
	return l.Listener.Accept()
}

func TestAPageOutlivesWhatAcceptingFailsWith(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in := &pipes{conns: make(chan net.Conn), closed: make(chan struct{})}
		l := newListener(&failing{in, []error{syscall.EMFILE, syscall.ENOBUFS, syscall.EPERM}}, 1)
		go func() {
			conn, err := in.dial(t.Context(), "", "")
			if err != nil {
				t.Error(err)
			}
			conn.Close()
		}()
		conn, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		conn.Close()
		l.Close()
	})
}
