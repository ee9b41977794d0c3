package protect

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"strings"
	"testing"
	"time"
)

// A host that follows with a certificate for servers alone would be let in, and could not connect
// after its takeover.
func TestACertificateThatIsForOneDirectionIsRefusedBeforeAnythingBegins(t *testing.T) {
	a := newAuthority(t)
	for _, c := range []struct {
		name string
		uses []x509.ExtKeyUsage
		want string // "": it is taken
	}{
		{"servers alone", []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, "not for clients"},
		{"clients alone", []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, "not for servers"},
		{"mail", []x509.ExtKeyUsage{x509.ExtKeyUsageEmailProtection}, "not for servers"},
		{"both", []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}, ""},
		{"anything", []x509.ExtKeyUsage{x509.ExtKeyUsageAny}, ""},
		{"nothing in particular", nil, ""},
	} {
		cfg := a.hostWith(t, "b", func(x *x509.Certificate) { x.ExtKeyUsage = c.uses })
		err := PortConfig{TLS: cfg}.check()
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
	// Another one is for what this host connects with.
	cfg := a.hostWith(t, "b", func(x *x509.Certificate) { x.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} })
	cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		return &a.host(t, "b").Certificates[0], nil
	}
	if err := (PortConfig{TLS: cfg}).check(); err != nil {
		t.Errorf("with a certificate for each direction: %v", err)
	}
	for _, broken := range [][][]byte{nil, {[]byte("no certificate")}} {
		cfg := &tls.Config{Certificates: []tls.Certificate{{Certificate: broken}}, RootCAs: a.pool}
		if err := (PortConfig{TLS: cfg}).check(); err == nil {
			t.Errorf("%q is taken for a certificate", broken)
		}
	}
}

func TestACertificateThatIsNotOfThisTimeIsToldInTheSameWordsEachTime(t *testing.T) {
	a := newAuthority(t)
	over := time.Date(2001, 2, 3, 4, 5, 6, 0, time.UTC)
	coming := time.Now().AddDate(1, 0, 0).UTC().Truncate(time.Second)
	for _, c := range []struct {
		name   string
		change func(*x509.Certificate)
		want   string
	}{
		{"over", func(x *x509.Certificate) { x.NotAfter = over }, "was valid until 2001-02-03T04:05:06Z"},
		{"not yet", func(x *x509.Certificate) { x.NotBefore = coming }, "is not valid before " + coming.Format(time.RFC3339)},
	} {
		t.Run(c.name, func(t *testing.T) {
			bad := a.hostWith(t, "b", c.change)
			dialTo := func(there, here *tls.Config) error {
				p, err := Listen("127.0.0.1:0", PortConfig{TLS: there})
				if err != nil {
					t.Fatal(err)
				}
				defer served(t, p)()
				if err := p.register("g", &sink{name: "b"}); err != nil {
					t.Fatal(err)
				}
				_, _, err = dial(t.Context(), &Config{Peer: Peer{Dial: p.Addr().String(), Name: "b", PortConfig: PortConfig{TLS: here}}},
					hello{Channel: chControl, Guest: "g", Host: "a"})
				if err == nil {
					t.Fatal("it gets in")
				}
				return err
			}
			here := a.host(t, "b")
			err := dialTo(bad, here)
			here.Time = func() time.Time { return time.Now().Add(time.Hour) }
			again := dialTo(bad, here)
			var invalid x509.CertificateInvalidError
			if err.Error() != again.Error() || !strings.Contains(err.Error(), c.want) || !errors.As(err, &invalid) || !isRefusal(err) {
				t.Errorf("%v, and an hour later %v; want a refusal that %s", err, again, c.want)
			}
			// The host whose certificate it is hears whose it is, too.
			err = dialTo(a.host(t, "b"), bad)
			if !strings.Contains(err.Error(), "does not take the certificate of this one") || !isRefusal(err) {
				t.Errorf("the host whose certificate it is: %v", err)
			}
		})
	}
}
