package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// certificates are those of a directory, named as for QEMU's tls-creds-x509. They are read
// again for each connection, so that they can be renewed while this process has a guest.
type certificates struct {
	flag, dir string
	load      func(dir string) (*tls.Config, error)
	warn      func(format string, args ...any)

	mu   sync.Mutex
	last *tls.Config // that could be read
	said string      // why they could not be read the last time; "": they could
}

// newCertificates reads the certificates of a flag's directory for the first time.
func newCertificates(flag, dir string, load func(string) (*tls.Config, error), p *printer) (*certificates, error) {
	c := &certificates{flag: flag, dir: dir, load: load, warn: p.warn}
	var err error
	if c.last, err = load(dir); err != nil {
		return nil, fmt.Errorf("%s: %w", flag, err)
	}
	return c, nil
}

// now returns the present ones. Where they cannot be read, as in the middle of a renewal, it
// returns the last that could, and says so once.
func (c *certificates) now() *tls.Config {
	t, err := c.load(c.dir)
	c.mu.Lock()
	defer c.mu.Unlock()
	if err == nil {
		c.last, c.said = t, ""
	} else if text := err.Error(); text != c.said {
		c.said = text
		c.warn("%s: the certificates cannot be read again, and those of before go on: %v", c.flag, err)
	}
	return c.last
}

// server returns a configuration for whoever listens for as long as this process lives; nil
// for nil.
func (c *certificates) server() *tls.Config {
	if c == nil {
		return nil
	}
	t := c.now().Clone()
	t.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { return c.now(), nil }
	return t
}

// keyPair reads the certificate of an endpoint, which is server or client, and its key. What
// is wrong with the content of a file, crypto/tls says without the file.
func keyPair(dir, endpoint string) (tls.Certificate, error) {
	cert, key := filepath.Join(dir, endpoint+"-cert.pem"), filepath.Join(dir, endpoint+"-key.pem")
	pair, err := tls.LoadX509KeyPair(cert, key)
	if named := new(fs.PathError); err != nil && !errors.As(err, &named) {
		err = fmt.Errorf("%s with %s: %w", cert, key, err)
	}
	return pair, err
}

// serverCreds reads a directory as QEMU's tls-creds-x509 with endpoint=server
// has it. Peers must show a certificate that ca-cert.pem has signed.
//
// The names of the authorities are not sent to peers: GnuTLS 3.7, with which QEMU speaks TLS, shows no
// certificate with an RSA key to a server of TLS 1.3 that names the authorities it trusts.
func serverCreds(dir string) (*tls.Config, error) {
	cert, err := keyPair(dir, "server")
	if err != nil {
		return nil, err
	}
	pool, err := authorities(dir)
	if err != nil {
		return nil, err
	}
	return &tls.Config{
		Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12,
		ClientAuth: tls.RequireAnyClientCert, VerifyConnection: signedBy(pool),
	}, nil
}

// signedBy returns a check of whether one of the authorities has signed the certificate that a client
// has shown, which tls.RequireAndVerifyClientCert makes of ClientCAs alone. It is made when a session is resumed, too.
func signedBy(pool *x509.CertPool) func(tls.ConnectionState) error {
	return func(s tls.ConnectionState) error {
		if len(s.PeerCertificates) == 0 {
			return errors.New("the other side has shown no certificate")
		}
		between := x509.NewCertPool()
		for _, c := range s.PeerCertificates[1:] {
			between.AddCert(c)
		}
		_, err := s.PeerCertificates[0].Verify(x509.VerifyOptions{
			Roots: pool, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		})
		return err
	}
}

// clientCreds returns what reads a directory as QEMU's tls-creds-x509 with endpoint=client has
// it, for a peer of that name.
func clientCreds(peer string) func(dir string) (*tls.Config, error) {
	return func(dir string) (*tls.Config, error) {
		cert, err := keyPair(dir, "client")
		if err != nil {
			return nil, err
		}
		pool, err := authorities(dir)
		if err != nil {
			return nil, err
		}
		return &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: pool, ServerName: peer, MinVersion: tls.VersionTLS12}, nil
	}
}

func authorities(dir string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(filepath.Join(dir, "ca-cert.pem"))
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, errors.New(filepath.Join(dir, "ca-cert.pem") + " holds no certificate")
	}
	return pool, nil
}

// handshake does the handshake of TLS. Its errors say whose certificate is not accepted, and
// why.
func handshake(ctx context.Context, t *tls.Conn) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if err := t.HandshakeContext(ctx); err != nil {
		if words := ofCertificates(err); words != "" {
			return fmt.Errorf("TLS: %s", words)
		}
		return fmt.Errorf("TLS: %w", err)
	}
	return nil
}

// ofCertificates returns err in words for an operator, in which there is no present time, if
// it is about a certificate; "" if it is not. Some of the other side's words come only when
// something is read, after the handshake.
func ofCertificates(err error) string {
	var invalid x509.CertificateInvalidError
	var name x509.HostnameError
	var authority x509.UnknownAuthorityError
	var alert *net.OpError
	switch {
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired && invalid.Cert != nil:
		if from := invalid.Cert.NotBefore; time.Now().Before(from) {
			return fmt.Sprintf("the other side's certificate is not valid before %s, by the clock of this host", from.UTC().Format(time.RFC3339))
		}
		return fmt.Sprintf("the other side's certificate was valid until %s, by the clock of this host", invalid.Cert.NotAfter.UTC().Format(time.RFC3339))
	case errors.As(err, &name) && name.Certificate != nil:
		names := append([]string{}, name.Certificate.DNSNames...)
		for _, ip := range name.Certificate.IPAddresses {
			names = append(names, ip.String())
		}
		return fmt.Sprintf("the other side's certificate is for %q, and %q was called", names, name.Host)
	case errors.As(err, &authority):
		return "the other side's certificate is not signed by an authority in ca-cert.pem here"
	case errors.As(err, &alert) && alert.Op == "remote error":
		if text := alert.Err.Error(); strings.Contains(text, "certificate") || strings.Contains(text, "authority") {
			return fmt.Sprintf("the other side does not accept the certificate of this one (%s)", strings.TrimPrefix(text, "tls: "))
		}
	}
	return ""
}

// maxTold bounds how many different texts once remembers.
const maxTold = 64

// once tells each text once, and no more than maxTold different ones, for whoever tries again and
// again, until again is called. It may be used from any goroutine.
type once struct {
	mu   sync.Mutex
	told map[string]bool
}

// first reports whether a text is to be told.
func (o *once) first(text string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.told[text] || len(o.told) >= maxTold {
		return false
	}
	if o.told == nil {
		o.told = make(map[string]bool)
	}
	o.told[text] = true
	return true
}

// again forgets what was told.
func (o *once) again() {
	o.mu.Lock()
	defer o.mu.Unlock()
	clear(o.told)
}
