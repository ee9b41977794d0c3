package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo/standby"
	"github.com/gocolo/lockstep/internal/qemutest"
)

// meet is a handshake and a byte back, in which a client hears that it was not let in.
func meet(t *testing.T, server, client *tls.Config) (there, here error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	done := make(chan error, 1)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			done <- err
			return
		}
		defer conn.Close()
		s := tls.Server(conn, server)
		if err = handshake(t.Context(), s); err == nil {
			_, err = s.Write([]byte{1})
		}
		done <- err
	}()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	c := tls.Client(conn, client)
	if here = handshake(t.Context(), c); here == nil {
		if _, here = io.ReadFull(c, make([]byte, 1)); here != nil {
			here = errors.New(ofCertificates(here)) // as a guardian does with what it reads
		}
	}
	conn.Close()
	return <-done, here
}

// A standby has a guest for longer than a certificate lasts, and would lose its copy if it had
// to be started again for another one.
func TestRenewedCertificatesAreTakenWithoutAnotherStart(t *testing.T) {
	old, renewed := newAuthority(t), newAuthority(t)
	var said bytes.Buffer
	p := &printer{terminal: terminal{out: io.Discard, err: &said}}
	dirs := map[string]string{"server": old.issue("server"), "client": old.issue("client")}
	s, err1 := newCertificates("-tls", dirs["server"], serverCreds, p)
	c, err2 := newCertificates("-control-tls", dirs["client"], clientCreds("localhost"), p)
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	server := s.server() // one for as long as the process lives
	passes := func(what string) {
		t.Helper()
		if there, here := meet(t, server, c.now()); there != nil || here != nil {
			t.Errorf("%s: %v, %v", what, there, here)
		}
	}
	passes("as they were")
	before := c.now()
	for role, dir := range dirs {
		renewed.issueInto(dir, role, func(*x509.Certificate) {})
	}
	passes("renewed, by another authority")
	if there, here := meet(t, server, before); there == nil || here == nil {
		t.Errorf("whom the old authority has signed gets in")
	}
	if said.Len() > 0 {
		t.Errorf("it said %q", &said)
	}
	// In the middle of a renewal.
	if err := os.WriteFile(filepath.Join(dirs["server"], "server-key.pem"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	passes("half renewed")
	passes("half renewed")
	if n := strings.Count(said.String(), "-tls: the certificates cannot be read again, and those of before go on: "); n != 1 {
		t.Errorf("said %d times: %s", n, &said)
	}
	renewed.issueInto(dirs["server"], "server", func(*x509.Certificate) {})
	passes("renewed again")
}

// What an operator reads says whose certificate it is, and has no time and no port in it, so that
// it is told once.
func TestWhoseCertificateIsNotAcceptedIsSaid(t *testing.T) {
	ours, stranger := newAuthority(t), newAuthority(t)
	over := time.Date(2001, 2, 3, 4, 5, 6, 0, time.UTC)
	coming := time.Now().AddDate(1, 0, 0).UTC().Truncate(time.Second)
	of := func(a *authority, role string, change func(*x509.Certificate)) *tls.Config {
		dir := qemutest.Dir(t)
		a.issueInto(dir, role, change)
		load := serverCreds
		if role == "client" {
			load = clientCreds("localhost")
		}
		cfg, err := load(dir)
		if err != nil {
			t.Fatal(err)
		}
		return cfg
	}
	asIs := func(*x509.Certificate) {}
	server, client := of(ours, "server", asIs), of(ours, "client", asIs)
	for _, c := range []struct {
		name       string
		a          *authority
		change     func(*x509.Certificate)
		words      string // of who refuses it
		serverOnly bool
	}{
		{"over", ours, func(x *x509.Certificate) { x.NotBefore, x.NotAfter = over.AddDate(-1, 0, 0), over }, "the other side's certificate was valid until 2001-02-03T04:05:06Z", false},
		{"not yet", ours, func(x *x509.Certificate) { x.NotBefore, x.NotAfter = coming, coming.AddDate(1, 0, 0) }, "the other side's certificate is not valid before " + coming.Format(time.RFC3339), false},
		{"a stranger's", stranger, asIs, "the other side's certificate is not signed by an authority in ca-cert.pem here", false},
		{"another name", ours, func(x *x509.Certificate) { x.DNSNames, x.IPAddresses = []string{"elsewhere"}, nil }, `the other side's certificate is for ["elsewhere"], and "localhost" was called`, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			there, here := meet(t, of(c.a, "server", c.change), client)
			check(t, "the client", here, c.words)
			check(t, "the server", there, "the other side does not accept the certificate of this one (")
			if c.serverOnly {
				return
			}
			there, here = meet(t, server, of(c.a, "client", c.change))
			if c.a == ours { // a client that trusts others hears nothing of this
				check(t, "the server", there, c.words)
				check(t, "the client", here, "the other side does not accept the certificate of this one (")
			} else {
				check(t, "the client", here, c.words)
			}
		})
	}
	if words := ofCertificates(io.EOF); words != "" {
		t.Errorf("EOF: %s", words)
	}
}

// GnuTLS 3.7 shows no certificate with an RSA key where it is told over TLS 1.3 which authorities count.
func TestAServerNamesNoAuthorities(t *testing.T) {
	ours := newAuthority(t)
	server, err := serverCreds(ours.issue("server"))
	if err != nil {
		t.Fatal(err)
	}
	client, err := clientCreds("localhost")(ours.issue("client"))
	if err != nil {
		t.Fatal(err)
	}
	var asked [][]byte
	client.GetClientCertificate = func(r *tls.CertificateRequestInfo) (*tls.Certificate, error) {
		asked = r.AcceptableCAs
		return &client.Certificates[0], nil
	}
	there, here := meet(t, server, client)
	if there != nil || here != nil || len(asked) != 0 {
		t.Errorf("%v, %v; %d authorities are named", there, here, len(asked))
	}
	client.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return new(tls.Certificate), nil }
	if there, _ := meet(t, server, client); there == nil {
		t.Error("a client without a certificate is let in")
	}
}

// A certificate of a server does not make a client, whoever has signed it.
func TestAClientShowsACertificateOfAClient(t *testing.T) {
	ours := newAuthority(t)
	server, err := serverCreds(ours.issue("server"))
	if err != nil {
		t.Fatal(err)
	}
	dir := qemutest.Dir(t)
	ours.issueInto(dir, "client", func(x *x509.Certificate) { x.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} })
	client, err := clientCreds("localhost")(dir)
	if err != nil {
		t.Fatal(err)
	}
	if there, _ := meet(t, server, client); there == nil {
		t.Error("it is let in")
	}
}

func check(t *testing.T, who string, err error, want string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("%s: %v, want %q", who, err, want)
	}
}

// A guardian tries again five times a second.
func TestAGuardianThatIsNotLetInIsToldOnce(t *testing.T) {
	var said bytes.Buffer
	h := newHeard(&printer{terminal: terminal{out: io.Discard, err: &said}})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	all.Go(func() { h.serve(ctx, l, nil) })
	say := func(m standby.ControlMessage, wants string) {
		t.Helper()
		conn, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		c := standby.NewControl(conn)
		if err := c.Send(m, time.Minute); err != nil {
			t.Fatal(err)
		}
		if m, err := c.Receive(time.Minute); fmt.Sprint(m.Say, " ", err != nil) != wants {
			t.Errorf("%+v, %v, want %s", m, err, wants)
		}
	}
	for range 3 {
		say(standby.ControlMessage{Say: standby.SaidBeat}, " true")
	}
	say(standby.ControlMessage{Say: standby.SaidHello, Version: standby.ControlVersion}, "hello false")
	for range 3 {
		say(standby.ControlMessage{Say: standby.SaidBeat}, " true")
	}
	cancel()
	all.Wait()
	if n := strings.Count(said.String(), "control channel of 127.0.0.1: "); n < 2 || n > 3 || strings.Count(said.String(), "comes first") != 2 {
		t.Errorf("want it before and after a guardian that was let in:\n%s", &said)
	}
}

func TestWhatIsToldOnceIsBounded(t *testing.T) {
	var o once
	told := 0
	for i := range 10 * maxTold {
		if o.first(fmt.Sprint(i)) {
			told++
		}
	}
	if told != maxTold || o.first("0") {
		t.Errorf("%d texts", told)
	}
	if o.again(); !o.first("0") {
		t.Error("nothing is told any more")
	}
}

// Which of a dozen files is meant, an operator must not have to find out.
func TestACertificateThatIsNoneIsNamed(t *testing.T) {
	dir := t.TempDir()
	for _, c := range []struct {
		endpoint string
		load     func(string) (*tls.Config, error)
	}{{"server", serverCreds}, {"client", clientCreds("localhost")}} {
		for _, file := range []string{c.endpoint + "-cert.pem", c.endpoint + "-key.pem"} {
			if _, err := c.load(dir); !errors.Is(err, fs.ErrNotExist) || strings.Count(err.Error(), file) != 1 {
				t.Errorf("without %s: %v", file, err)
			}
			if err := os.WriteFile(filepath.Join(dir, file), []byte("none"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := c.load(dir); err == nil || !strings.Contains(err.Error(), filepath.Join(dir, c.endpoint+"-cert.pem")) {
			t.Errorf("%v", err)
		}
	}
}
