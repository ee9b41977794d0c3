package watch

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/colo/protect"
	"github.com/gocolo/lockstep/event"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// job is a job that says what it is told to say, and notes what it is ordered.
type job struct {
	mu     sync.Mutex
	info   protect.Info
	orders []string
	refuse error
}

func newJob(s protect.State) *job {
	j := &job{info: protect.Info{Guest: "db1", Host: "a", Peer: "b", State: s, Role: event.ModePrimary, Generation: 3, Open: true, Until: time.Now().Add(3 * time.Second), Since: time.Now()}}
	j.info.Session = &colo.Info{State: colo.StateProtected, Mode: event.ModePrimary, LastMode: event.ModePrimary, Epoch: 12}
	return j
}

func (j *job) Query() protect.Info {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.info
}

func (j *job) order(s string) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.orders = append(j.orders, s)
	return j.refuse
}

func (j *job) ordered() []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Clone(j.orders)
}

func (j *job) Pause(_ context.Context, reason string) error { return j.order("pause " + reason) }

func (j *job) Resume() error { return j.order("resume") }

func (j *job) Checkpoint() error { return j.order("checkpoint") }

func (j *job) Failover() error { return j.order("failover") }

func (j *job) Fenced() error { return j.order("fenced") }

func (j *job) Switchover(ctx context.Context) error {
	if ctx.Err() != nil {
		return errors.New("a browser that leaves takes its order with it")
	}
	return j.order("switchover")
}

// A site is a page and its server.
type site struct {
	t    *testing.T
	page *Page
	srv  *httptest.Server
	bus  event.Bus
	stop func()
}

func serve(t *testing.T, cfg Config) *site {
	return serveOn(t, cfg, httptest.NewUnstartedServer(nil))
}

// pipes is a listener in memory, for a site in a bubble of testing/synctest, whose time stands
// still while anybody waits for a socket.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error { p.once.Do(func() { close(p.closed) }); return nil }

func (p *pipes) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 80} }

func (p *pipes) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	here, there := net.Pipe()
	select {
	case p.conns <- there:
		return here, nil
	case <-p.closed:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func serveInMemory(t *testing.T, cfg Config) *site {
	p := &pipes{conns: make(chan net.Conn), closed: make(chan struct{})}
	s := serveOn(t, cfg, &httptest.Server{Listener: p, Config: new(http.Server)})
	s.srv.Client().Transport.(*http.Transport).DialContext = p.dial
	return s
}

func serveOn(t *testing.T, cfg Config, srv *httptest.Server) *site {
	s := &site{t: t, srv: srv}
	cfg.Events = &s.bus
	s.page = New(cfg)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { s.page.Run(ctx) })
	srv.Config.Handler = s.page
	srv.Start()
	s.stop = sync.OnceFunc(func() { cancel(); wg.Wait() })
	t.Cleanup(func() { s.stop(); s.srv.Close() })
	hears := func() bool { // Run has subscribed before it looks at the job
		s.page.mu.Lock()
		defer s.page.mu.Unlock()
		return len(s.page.rec.samples) > 0
	}
	for end := time.Now().Add(time.Minute); !hears(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the page never looks at its job")
		}
	}
	return s
}

// request is one of a browser, or of somebody who pretends to be one.
func (s *site) request(method, path string, body url.Values, header ...string) (int, string, http.Header) {
	s.t.Helper()
	r, err := http.NewRequestWithContext(s.t.Context(), method, s.srv.URL+path, strings.NewReader(body.Encode()))
	if err != nil {
		s.t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	for i := 0; i < len(header); i += 2 {
		if header[i] == "Host" {
			r.Host = header[i+1]
		}
		r.Header.Set(header[i], header[i+1])
	}
	a, err := s.srv.Client().Do(r)
	if err != nil {
		s.t.Fatal(err)
	}
	defer a.Body.Close()
	b, err := io.ReadAll(a.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return a.StatusCode, string(b), a.Header
}

// A stream reads the events that the page sends to a browser.
type stream struct {
	t    *testing.T
	body io.ReadCloser
	r    *bufio.Reader
}

func (s *site) live(path string) *stream {
	s.t.Helper()
	a, err := s.srv.Client().Get(s.srv.URL + path)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { a.Body.Close() })
	if a.StatusCode != http.StatusOK {
		s.t.Fatal(a.Status)
	}
	return &stream{s.t, a.Body, bufio.NewReader(a.Body)}
}

func (s *stream) next() (snap snapshot, err error) {
	for {
		l, err := s.r.ReadString('\n')
		if err != nil {
			return snap, err
		}
		if data, ok := strings.CutPrefix(l, "data: "); ok {
			return snap, json.Unmarshal([]byte(data), &snap)
		}
	}
}

// until reads until there is what is looked for.
func (s *stream) until(what string, ok func(snapshot) bool) snapshot {
	s.t.Helper()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); {
		snap, err := s.next()
		if err != nil {
			s.t.Fatalf("%s: %v", what, err)
		}
		if ok(snap) {
			return snap
		}
	}
	s.t.Fatalf("%s never comes", what)
	return snapshot{}
}
