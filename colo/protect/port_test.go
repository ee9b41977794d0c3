package protect

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/internal/socket"
)

// A sink is a job of a port that keeps what comes.
type sink struct {
	name string
	mu   sync.Mutex
	got  []hello

	strangers []error
}

func (s *sink) isStranger(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.strangers = append(s.strangers, err)
}

// told waits until so many strangers have come, or a minute.
func (s *sink) told(strangers int) {
	for range 60_000 {
		s.mu.Lock()
		n := len(s.strangers)
		s.mu.Unlock()
		if n >= strangers {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

func (s *sink) welcome(conn net.Conn, h hello) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.got = append(s.got, h)
	writeHello(conn, hello{Channel: h.Channel, Guest: h.Guest, Host: "b"})
	conn.Close()
}

func (s *sink) peerName() string { return s.name }

func (s *sink) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.got)
}

// served serves a port until the returned function is called.
func served(t *testing.T, p *Port) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- p.Serve(ctx) }()
	return func() {
		cancel()
		if err := <-done; err != context.Canceled {
			t.Errorf("Serve: %v", err)
		}
	}
}

func TestOnlyTheConfiguredHostGetsInByTLS(t *testing.T) {
	ours, theirs := newAuthority(t), newAuthority(t)
	p, err := Listen("127.0.0.1:0", PortConfig{TLS: ours.host(t, "b")})
	if err != nil {
		t.Fatal(err)
	}
	defer served(t, p)()
	job := &sink{name: "a"}
	if err := p.register("g", job); err != nil {
		t.Fatal(err)
	}
	if p.register("g", job) == nil {
		t.Error("two jobs of one guest at one port")
	}
	connect := func(cfg *tls.Config, name, guest string) error {
		c := Config{Peer: Peer{Dial: p.Addr().String(), Name: name, PortConfig: PortConfig{TLS: cfg, Insecure: cfg == nil}}}
		conn, _, err := dial(t.Context(), &c, hello{Channel: chControl, Guest: guest, Host: "a"})
		if err == nil {
			conn.Close()
		}
		return err
	}
	if err := connect(ours.host(t, "a"), "b", "g"); err != nil || job.count() != 1 {
		t.Fatalf("the other host: %v", err)
	}
	stranger := theirs.host(t, "a") // who trusts this host, and shows a certificate that nobody has asked for
	forged := stranger.Certificates[0]
	stranger.RootCAs = ours.pool
	stranger.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &forged, nil }
	for name, err := range map[string]error{
		"a stranger with that name":   connect(stranger, "b", "g"),
		"a host of another name":      connect(ours.host(t, "c"), "b", "g"),
		"a certificate of others":     connect(theirs.host(t, "a"), "b", "g"),
		"a host that expects another": connect(ours.host(t, "a"), "c", "g"),
		"a guest that is not here":    connect(ours.host(t, "a"), "b", "h"),
		"no certificate":              connect(&tls.Config{RootCAs: ours.pool, GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return nil, errors.New("none") }}, "b", "g"),
		"no TLS":                      connect(nil, "", "g"),
		"an old TLS":                  oldTLS(p.Addr().String(), ours.host(t, "a")),
	} {
		if err == nil || job.count() != 1 {
			t.Errorf("%s got in", name)
		}
	}
}

// The port of a host serves guests whose other hosts are not the same: each has its own guest, and
// no other.
func TestAHostGetsInForTheGuestThatIsItsOwn(t *testing.T) {
	ours := newAuthority(t)
	p, err := Listen("127.0.0.1:0", PortConfig{TLS: ours.host(t, "b")})
	if err != nil {
		t.Fatal(err)
	}
	defer served(t, p)()
	jobs := map[string]*sink{"a": {name: "a"}, "c": {name: "c"}} // by the other host, whose guest is called like it
	for guest, job := range jobs {
		if err := p.register(guest, job); err != nil {
			t.Fatal(err)
		}
	}
	for _, host := range []string{"a", "c"} {
		cfg := ours.host(t, host)
		for _, guest := range []string{"a", "c"} {
			c := Config{Peer: Peer{Dial: p.Addr().String(), Name: "b", PortConfig: PortConfig{TLS: cfg}}}
			before := jobs[guest].count()
			conn, _, err := dial(t.Context(), &c, hello{Channel: chControl, Guest: guest, Host: host})
			if err == nil {
				conn.Close()
			}
			if in := jobs[guest].count() > before; in != (host == guest) || in != (err == nil) {
				t.Errorf("host %s asks for the guest of %s: it got in: %t, %v", host, guest, in, err)
			}
		}
	}
}

// A host that chooses its certificate for each connection asks no less of the other side.
func TestAConfigurationForEachClientLetsNobodyElseIn(t *testing.T) {
	ours, theirs := newAuthority(t), newAuthority(t)
	chosen := ours.host(t, "b")
	chosen.RootCAs = nil // those of the port
	cfg := ours.host(t, "old")
	var choice atomic.Pointer[tls.Config]
	choice.Store(chosen)
	cfg.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { return choice.Load(), nil }
	p, err := Listen("127.0.0.1:0", PortConfig{TLS: cfg})
	if err != nil {
		t.Fatal(err)
	}
	defer served(t, p)()
	job := &sink{name: "a"}
	if err := p.register("g", job); err != nil {
		t.Fatal(err)
	}
	connect := func(cfg *tls.Config) error {
		c := Config{Peer: Peer{Dial: p.Addr().String(), Name: "b", PortConfig: PortConfig{TLS: cfg}}}
		conn, _, err := dial(t.Context(), &c, hello{Channel: chControl, Guest: "g", Host: "a"})
		if err == nil {
			conn.Close()
		}
		return err
	}
	if err := connect(ours.host(t, "a")); err != nil || job.count() != 1 {
		t.Fatalf("the other host: %v", err)
	}
	for name, err := range map[string]error{
		"a host of another name":  connect(ours.host(t, "c")),
		"a certificate of others": connect(theirs.host(t, "a")),
		"no certificate":          connect(&tls.Config{RootCAs: ours.pool, Certificates: []tls.Certificate{{}}}),
		"an old TLS":              oldTLS(p.Addr().String(), ours.host(t, "a")),
	} {
		if err == nil || job.count() != 1 {
			t.Errorf("%s got in", name)
		}
	}
	shows := ours.host(t, "a") // by the function that TLS has for that
	certificate := shows.Certificates[0]
	shows.Certificates = nil
	shows.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return nil, errors.New("not asked by a host") }
	shows.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &certificate, nil }
	if err := connect(shows); err != nil {
		t.Errorf("a host with GetClientCertificate: %v", err)
	}
	choice.Store(nil) // the port's own
	if err := connect(ours.host(t, "a")); err == nil || !strings.Contains(err.Error(), "old") {
		t.Errorf("with the port's own certificate: %v", err)
	}
}

// A host whose certificate changes shows the one that it has now, in either direction and whether
// or not the other side can name it, and goes on with the connections that it has.
func TestACertificateThatChangesIsShownInBothDirections(t *testing.T) {
	for name, static := range map[string]bool{"GetCertificate alone": false, "with Certificates": true} {
		for _, as := range []string{"host", "127.0.0.1"} {
			t.Run(name+" as "+as, func(t *testing.T) {
				ours := newAuthority(t)
				var now atomic.Pointer[tls.Certificate]
				rotating := ours.host(t, as)
				old := rotating.Certificates[0]
				if !static {
					rotating.Certificates = nil
				}
				rotating.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return now.Load(), nil }
				other := ours.host(t, "other")
				shown := func(cert tls.Certificate, what string) {
					t.Helper()
					for direction, ends := range map[string][2]*tls.Config{
						"in":  {PortConfig{TLS: rotating}.server(), PortConfig{TLS: other}.client(as)},
						"out": {PortConfig{TLS: rotating}.client("other"), PortConfig{TLS: other}.server()},
					} {
						here, there := net.Pipe()
						a, b := tls.Server(here, ends[0]), tls.Client(there, ends[1])
						if direction == "out" {
							a, b = tls.Client(here, ends[0]), tls.Server(there, ends[1])
						}
						done := make(chan error, 1)
						go func() { done <- a.HandshakeContext(t.Context()) }()
						err := errors.Join(b.HandshakeContext(t.Context()), <-done)
						if err != nil {
							t.Fatalf("%s, %s: %v", what, direction, err)
						}
						if got := b.ConnectionState().PeerCertificates[0].Raw; !bytes.Equal(got, cert.Certificate[0]) {
							t.Errorf("%s, %s: another certificate is shown", what, direction)
						}
						here.Close()
						there.Close()
					}
				}
				for i := range 2 {
					next := ours.host(t, as).Certificates[0]
					now.Store(&next)
					shown(next, fmt.Sprint("certificate ", i))
				}
				now.Store(nil)
				if static {
					shown(old, "none of its own")
				}
			})
		}
	}
}

func oldTLS(address string, cfg *tls.Config) error {
	cfg = cfg.Clone()
	cfg.MaxVersion, cfg.ServerName = tls.VersionTLS12, "b"
	conn, err := tls.Dial("tcp", address, cfg)
	if err == nil {
		conn.Close()
	}
	return err
}

// Strangers who say nothing, too little or nonsense cost no more than their
// connections, for a bounded time, and keep nobody out.
func TestStrangersKeepNobodyOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFabric()
		p, err := NewPort(f.listen("b"), PortConfig{Insecure: true})
		if err != nil {
			t.Fatal(err)
		}
		stop := served(t, p)
		job := new(sink)
		p.register("g", job)
		var silent []net.Conn
		for range 3 * maxGreeting {
			conn, err := f.dial(t.Context(), "x", "b")
			if err != nil {
				t.Fatal(err)
			}
			conn.Write([]byte("LOCK"))
			silent = append(silent, conn)
			synctest.Wait()
			p.mu.Lock()
			if n := len(p.greeting); n > maxGreeting {
				t.Fatalf("%d strangers are listened to", n)
			}
			p.mu.Unlock()
		}
		c := Config{Peer: Peer{PortConfig: PortConfig{Insecure: true}, Dialer: func(ctx context.Context) (net.Conn, error) { return f.dial(ctx, "a", "b") }}}
		conn, _, err := dial(t.Context(), &c, hello{Channel: chControl, Guest: "g"})
		if err != nil {
			t.Fatal(err)
		}
		conn.Close()
		begin := time.Now()
		for _, s := range silent { // all are given up in the end
			if _, err := s.Read(make([]byte, 1)); err == nil {
				t.Error("a stranger was answered")
			}
			s.Close()
		}
		if d := time.Since(begin); d > greetTime {
			t.Errorf("after %v", d)
		}
		stop()
	})
}

func TestUnknownGuestIsRefusedInWords(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFabric()
		p, _ := NewPort(f.listen("b"), PortConfig{Insecure: true})
		stop := served(t, p)
		c := Config{Peer: Peer{PortConfig: PortConfig{Insecure: true}, Dialer: func(ctx context.Context) (net.Conn, error) { return f.dial(ctx, "a", "b") }}}
		_, _, err := dial(t.Context(), &c, hello{Channel: chControl, Guest: "g"})
		var r *RefusedError
		if !errors.As(err, &r) || !r.There || !strings.Contains(r.Reason, `"g"`) {
			t.Errorf("%v", err)
		}
		stop()
	})
}

// A host of a later version, which may begin with more than this one reads, is told why it is turned
// away, also over TCP, where an answer is lost if what was sent is not read.
func TestAHostOfAnotherVersionIsToldWhichOneIsSpokenHere(t *testing.T) {
	p, err := Listen("127.0.0.1:0", PortConfig{Insecure: true})
	if err != nil {
		t.Fatal(err)
	}
	defer served(t, p)()
	conn, err := net.Dial("tcp", p.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write(raw(helloVersion+1, 1<<20, strings.Repeat("x", maxHello/2))); err != nil {
		t.Fatal(err)
	}
	answer, err := readHello(conn)
	if want := "this host speaks version 1 of the protocol, and not version 2"; err != nil || answer.Refused != want {
		t.Errorf("%q, %v, want %q", answer.Refused, err, want)
	}
}

func TestServeEndsWhatIsGreeted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFabric()
		p, _ := NewPort(f.listen("b"), PortConfig{Insecure: true})
		stop := served(t, p)
		conn, err := f.dial(t.Context(), "x", "b")
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		stop()
		if _, err := conn.Read(make([]byte, 1)); err != io.EOF {
			t.Error(err)
		}
		conn.Close()
	})
}

// A peer that takes nothing any more does not keep a connection from being closed.
func TestTLSIsClosedAtOnce(t *testing.T) {
	ours := newAuthority(t)
	synctest.Test(t, func(t *testing.T) {
		f := newFabric()
		p, err := NewPort(f.listen("b"), PortConfig{TLS: ours.host(t, "b")})
		if err != nil {
			t.Fatal(err)
		}
		stop := served(t, p)
		job := &keeps{sink: sink{name: "a"}}
		p.register("g", job)
		c := Config{Peer: Peer{Name: "b", PortConfig: PortConfig{TLS: ours.host(t, "a")}, Dialer: func(ctx context.Context) (net.Conn, error) { return f.dial(ctx, "a", "b") }}}
		conn, _, err := dial(t.Context(), &c, hello{Channel: chControl, Guest: "g"})
		if err != nil {
			t.Fatal(err)
		}
		for _, end := range []net.Conn{conn, job.conn} {
			go func() {
				for b := make([]byte, 16<<10); ; { // nobody reads
					if _, err := end.Write(b); err != nil {
						return
					}
				}
			}()
			time.Sleep(time.Second)
			begin := time.Now()
			end.Close()
			if d := time.Since(begin); d != 0 {
				t.Errorf("closed after %v", d)
			}
		}
		stop()
	})
}

// keeps is a sink that keeps the last connection.
type keeps struct {
	sink
	conn net.Conn
}

func (k *keeps) welcome(conn net.Conn, h hello) {
	k.conn = conn
	writeHello(conn, hello{Channel: h.Channel, Guest: h.Guest, Host: "b"})
	conn.SetDeadline(time.Time{})
}

// A listener whose Close takes its time is closed when Serve returns.
func TestServeReturnsWhenItsListenerIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		l := socket.NewLingering()
		time.AfterFunc(time.Minute, cancel)
		port, err := NewPort(l, PortConfig{Insecure: true})
		if err != nil {
			t.Fatal(err)
		}
		if err := port.Serve(ctx); err == nil || !l.Closed() {
			t.Errorf("%v; closed: %v", err, l.Closed())
		}
	})
}
