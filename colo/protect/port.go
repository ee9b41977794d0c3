package protect

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/gocolo/lockstep/internal/plain"
	"github.com/gocolo/lockstep/internal/wait"
)

// greetTime is how long a connection may take to say what it is for, a TLS
// handshake included.
const greetTime = 5 * time.Second

// maxGreeting is how many connections may not yet have said what they are for, at one time. One
// more ends the one that has taken longest, so that strangers who say nothing keep nobody out.
const maxGreeting = 256

// PortConfig says on what terms a Port lets others in.
type PortConfig struct {
	// TLS is this host's certificate and the authorities that it trusts
	// (RootCAs, for both directions). Both sides show a certificate, by TLS 1.3, and the name
	// in it is checked against Peer.Name of the job that is asked for; a configuration that
	// GetConfigForClient returns is made to ask for the same, with these RootCAs if it has none.
	// A certificate that lists extended key usages must list those of servers and of clients.
	// Required, unless Insecure.
	//
	// A host whose certificate changes has GetCertificate, which is asked for each new
	// connection: for those that this host makes as well, unless there is a
	// GetClientCertificate, with a ClientHelloInfo that has only the schemes and the version.
	// Where it returns none, one of Certificates is shown.
	TLS *tls.Config
	// Insecure says that connections are neither encrypted nor authenticated:
	// whoever reaches the port can read and replace the guest. For one machine,
	// or a network that is trusted like one.
	Insecure bool
}

func (c PortConfig) check() error {
	switch {
	case c.Insecure && c.TLS != nil:
		return errors.New("protect: both TLS and Insecure are set")
	case c.Insecure:
	case c.TLS == nil:
		return errors.New("protect: TLS is not configured; a plain connection must be asked for with Insecure")
	case len(c.TLS.Certificates) == 0 && c.TLS.GetCertificate == nil:
		return errors.New("protect: TLS needs a certificate of this host")
	case c.TLS.RootCAs == nil:
		return errors.New("protect: TLS needs RootCAs, the authorities that sign the hosts' certificates")
	case c.TLS.InsecureSkipVerify:
		return errors.New("protect: TLS with InsecureSkipVerify")
	case c.TLS.MaxVersion != 0 && c.TLS.MaxVersion < tls.VersionTLS13:
		return errors.New("protect: TLS with a MaxVersion before 1.3, which both sides must speak")
	default:
		return bothWays(c.TLS)
	}
	return nil
}

// server returns the configuration for connections that come in. Which name they
// must show is known when they have said for which guest they are.
func (c PortConfig) server() *tls.Config {
	t := demanding(c.TLS, c.TLS.RootCAs)
	if choose := c.TLS.GetConfigForClient; choose != nil {
		t.GetConfigForClient = func(h *tls.ClientHelloInfo) (*tls.Config, error) {
			chosen, err := choose(h)
			if chosen == nil || err != nil {
				return nil, err
			}
			return demanding(chosen, cmp.Or(chosen.RootCAs, c.TLS.RootCAs)), nil
		}
	}
	return t
}

// demanding returns a configuration by which whoever connects must show a certificate that the
// authorities have signed.
func demanding(t *tls.Config, authorities *x509.CertPool) *tls.Config {
	t = t.Clone()
	t.MinVersion = tls.VersionTLS13
	t.ClientAuth = tls.RequireAndVerifyClientCert
	t.ClientCAs = authorities
	if get := t.GetCertificate; get != nil && len(t.Certificates) > 0 {
		// Else it would not be asked where the other side names no host, as for an address.
		all := t.Certificates
		t.Certificates = nil
		t.GetCertificate = func(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
			return oneOf(get, h, all, h.SupportsCertificate)
		}
	}
	return t
}

func (c PortConfig) client(name string) *tls.Config {
	t := c.TLS.Clone()
	t.MinVersion = tls.VersionTLS13
	t.ServerName = name
	if get := t.GetCertificate; get != nil && t.GetClientCertificate == nil {
		t.GetClientCertificate = func(r *tls.CertificateRequestInfo) (*tls.Certificate, error) {
			h := &tls.ClientHelloInfo{SignatureSchemes: r.SignatureSchemes, SupportedVersions: []uint16{r.Version}}
			return oneOf(get, h, t.Certificates, r.SupportsCertificate)
		}
	}
	return t
}

// oneOf returns the certificate that get has for h, and if that is none the first of all that the
// other side supports, or the first.
func oneOf(get func(*tls.ClientHelloInfo) (*tls.Certificate, error), h *tls.ClientHelloInfo, all []tls.Certificate, supports func(*tls.Certificate) error) (*tls.Certificate, error) {
	if cert, err := get(h); cert != nil || err != nil {
		return cert, err
	}
	for i := range all {
		if supports(&all[i]) == nil {
			return &all[i], nil
		}
	}
	if len(all) == 0 {
		return nil, errors.New("protect: TLS has no certificate of this host at the moment")
	}
	return &all[0], nil
}

// A Port is where the jobs of a process are reached: one address for any number
// of guests and for all of their connections. A job makes its own
// (Peer.Listen) or is given one that others use too (Peer.Port).
type Port struct {
	l   net.Listener
	cfg PortConfig

	mu       sync.Mutex
	jobs     map[string]welcomer
	greeting []*line // oldest first

	dialling chan struct{} // room for connections that its jobs make beside one of each
}

// A welcomer takes a connection that has said hello, and owns it.
type welcomer interface {
	welcome(conn net.Conn, h hello)
	peerName() string
	// isStranger is told of a host whose certificate, which the authorities have signed, is for
	// another name.
	isStranger(err error)
}

// Listen opens a Port. It lets nobody in before Serve is called.
func Listen(address string, cfg PortConfig) (*Port, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, err
	}
	return NewPort(l, cfg)
}

// NewPort makes a Port of a listener, which it owns from now on, also if it fails.
func NewPort(l net.Listener, cfg PortConfig) (*Port, error) {
	if err := cfg.check(); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return &Port{l: l, cfg: cfg, jobs: map[string]welcomer{}, dialling: make(chan struct{}, maxMore)}, nil
}

// Addr returns the address that the port listens at.
func (p *Port) Addr() net.Addr { return p.l.Addr() }

// Close ends a port that is not served.
func (p *Port) Close() error { return p.l.Close() }

// Serve lets connections in until ctx ends, and returns the context's cause or
// what the listener said. It closes the listener, and everything that has not yet
// said what it is for. Its goroutines have ended when it returns.
func (p *Port) Serve(ctx context.Context) error {
	var group sync.WaitGroup
	stop := wait.AtEnd(ctx, func() { p.l.Close() })
	defer func() {
		stop()
		p.l.Close()
		p.mu.Lock()
		for _, conn := range p.greeting {
			conn.Close()
		}
		p.mu.Unlock()
		group.Wait()
	}()
	for pause := time.Millisecond; ; {
		conn, err := p.l.Accept()
		switch {
		case err == nil:
			pause = time.Millisecond
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, net.ErrClosed):
			return err
		default: // out of descriptors, say, which passes
			if err := wait.For(ctx, pause); err != nil {
				return err
			}
			pause = min(2*pause, time.Second)
			continue
		}
		l := p.enter(conn)
		if ctx.Err() != nil {
			conn.Close()
		}
		group.Go(func() { p.greet(ctx, l) })
	}
}

// An abrupt connection is a TLS connection that is closed without the message that
// TLS sends at the end. TLS would send its closing message, and would wait some
// seconds for a peer that takes nothing any more, just when a takeover is due. The
// protocols over the connection mark their own ends.
type abrupt struct {
	*tls.Conn
	raw net.Conn
}

func (c abrupt) Close() error { return c.raw.Close() }

func (p *Port) enter(conn net.Conn) *line {
	l := &line{conn}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.greeting) == maxGreeting {
		p.greeting[0].Close()
		p.greeting = p.greeting[1:]
	}
	p.greeting = append(p.greeting, l)
	return l
}

func (p *Port) leave(l *line) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if i := slices.Index(p.greeting, l); i >= 0 {
		p.greeting = slices.Delete(p.greeting, i, i+1)
	}
}

// greet hears what a connection is for and hands it to its job. A connection that
// does not say it is told nothing.
func (p *Port) greet(ctx context.Context, l *line) {
	defer p.leave(l)
	raw := l.Conn
	conn := raw
	raw.SetDeadline(time.Now().Add(greetTime))
	var secure *tls.Conn
	if p.cfg.TLS != nil {
		secure = tls.Server(raw, p.cfg.server())
		conn = abrupt{secure, raw}
		if secure.HandshakeContext(ctx) != nil {
			raw.Close()
			return
		}
	}
	h, err := readHello(conn)
	var other *versionError
	switch {
	case errors.As(err, &other):
		turnAwayVersion(conn, other)
		return
	case err != nil:
		conn.Close()
		return
	}
	p.mu.Lock()
	job := p.jobs[h.Guest]
	p.mu.Unlock()
	if secure != nil {
		// A stranger to this guest is not told whether it is here.
		if job == nil {
			conn.Close()
			return
		}
		if err := secure.ConnectionState().PeerCertificates[0].VerifyHostname(job.peerName()); err != nil {
			conn.Close()
			job.isStranger(err)
			return
		}
	}
	if job == nil {
		turnAway(conn, "there is no guest %q here", h.Guest)
		return
	}
	job.welcome(conn, h)
}

// turnAway tells a connection why it is refused, and ends it.
func turnAway(conn net.Conn, format string, args ...any) {
	writeHello(conn, hello{Refused: plain.Text(fmt.Sprintf(format, args...), maxNote)})
	conn.Close()
}

// turnAwayVersion tells a host of another version what is spoken here, in the form in which every
// version can tell that. What it has sent besides is read, since a connection that is closed
// before that would lose the answer.
func turnAwayVersion(conn net.Conn, other *versionError) {
	defer conn.Close()
	why := fmt.Sprintf("this host speaks version %d of the protocol, and not version %d", helloVersion, other.there)
	if writeHello(conn, hello{Refused: why}) == nil {
		io.Copy(io.Discard, io.LimitReader(conn, maxHello))
	}
}

// register makes a guest known at the port.
func (p *Port) register(guest string, w welcomer) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.jobs[guest] != nil {
		return fmt.Errorf("protect: guest %q is at this port already", guest)
	}
	p.jobs[guest] = w
	return nil
}

func (p *Port) unregister(guest string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.jobs, guest)
}

// dial connects to the other side, says h, and returns its answer.
func dial(ctx context.Context, cfg *Config, h hello) (net.Conn, hello, error) {
	ctx, cancel := context.WithTimeout(ctx, greetTime)
	defer cancel()
	raw, err := cfg.Peer.dial(ctx)
	if err != nil {
		return nil, hello{}, err
	}
	stop := wait.AtEnd(ctx, func() { raw.Close() })
	defer stop()
	conn := raw
	if cfg.Peer.TLS != nil {
		secure := tls.Client(raw, cfg.Peer.port().client(cfg.Peer.Name))
		conn = abrupt{secure, raw}
		if err := secure.HandshakeContext(ctx); err != nil {
			if isEnd(err) {
				err = fmt.Errorf("protect: the other side has ended the TLS handshake, as a host without TLS does, or a relay that does not reach it: %w", err)
			}
			err = inItsTime(cfg.Peer.TLS, err)
			return nil, hello{}, errors.Join(err, raw.Close())
		}
	}
	answer, err := exchange(conn, h)
	if stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		conn.Close()
		if isOfCertificate(err) {
			err = fmt.Errorf("protect: the other host does not take the certificate of this one: %w", err)
		}
		if isEnd(err) {
			why := "as a host does that wants TLS"
			if cfg.Peer.TLS != nil {
				why = "as a host does whose Peer.Name is not the name in the certificate here, or that does not have the guest"
			}
			err = fmt.Errorf("protect: the other side has ended the connection before its answer, %s: %w", why, err)
		}
		return nil, hello{}, err
	}
	return conn, answer, nil
}

func exchange(conn net.Conn, h hello) (hello, error) {
	if err := writeHello(conn, h); err != nil {
		return hello{}, err
	}
	answer, err := readHello(conn)
	if err != nil {
		return hello{}, err
	}
	if answer.Refused != "" {
		return hello{}, &RefusedError{Reason: answer.Refused, There: true}
	}
	if answer.Guest != h.Guest || answer.Channel != h.Channel {
		return hello{}, fmt.Errorf("%w: the answer is for %q of %q", ErrHello, answer.Channel, answer.Guest)
	}
	return answer, nil
}
