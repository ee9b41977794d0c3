package protect

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"time"
)

// Connections stay when the certificate with which they began has ended, and the next one is refused, which may be the
// one on which a guest depends: an operator is told of it before.

const (
	certificateLooks = 10 * time.Minute   // from one look at the certificate to the next
	warnsBefore      = 7 * 24 * time.Hour // its end, or a tenth of its time, if that is less
)

// watchCertificate keeps an error for Query, and logs it, when the certificate of this host is not of this time or ends soon,
// once for each time that this changes, until ctx ends.
func (j *Job) watchCertificate(ctx context.Context, t *tls.Config) {
	look := time.NewTicker(certificateLooks)
	defer look.Stop()
	for said := ""; ; {
		words := ofItsTime(ownCertificate(t), nowOf(t))
		if words != "" && words != said {
			err := errors.New("protect: the certificate of this host " + words)
			j.note(err)
			j.ownLog().Warn("a certificate has to be renewed", "error", err)
		}
		said = words
		select {
		case <-look.C:
		case <-ctx.Done():
			return
		}
	}
}

// ownCertificate returns the certificate that this host shows, of several the one that ends last; nil: none can be told.
func ownCertificate(t *tls.Config) (last *x509.Certificate) {
	all := t.Certificates
	if get := t.GetCertificate; get != nil {
		h := &tls.ClientHelloInfo{SignatureSchemes: []tls.SignatureScheme{tls.ECDSAWithP256AndSHA256, tls.Ed25519, tls.PSSWithSHA256}, SupportedVersions: []uint16{tls.VersionTLS13}}
		if c, err := get(h); c != nil && err == nil {
			all = []tls.Certificate{*c}
		}
	}
	for _, c := range all {
		leaf := c.Leaf
		if leaf == nil && len(c.Certificate) > 0 {
			leaf, _ = x509.ParseCertificate(c.Certificate[0]) // one that cannot be parsed is refused elsewhere
		}
		if leaf != nil && (last == nil || leaf.NotAfter.After(last.NotAfter)) {
			last = leaf
		}
	}
	return last
}

// ofItsTime says what is to be done about a certificate, "" for nothing.
func ofItsTime(c *x509.Certificate, now time.Time) string {
	if c == nil {
		return ""
	}
	soon := min(warnsBefore, c.NotAfter.Sub(c.NotBefore)/10)
	switch until := c.NotAfter.UTC().Format(time.RFC3339); {
	case now.Before(c.NotBefore):
		return "is not valid before " + c.NotBefore.UTC().Format(time.RFC3339) + ", by the clock of this host: the other one refuses each new connection"
	case now.After(c.NotAfter):
		return "was valid until " + until + ", by the clock of this host: the other one refuses each new connection"
	case now.After(c.NotAfter.Add(-soon)):
		return "is valid until " + until + ": the other one refuses each new connection after that"
	}
	return ""
}

// nowOf returns the time by which certificates are judged.
func nowOf(t *tls.Config) time.Time {
	if t.Time != nil {
		return t.Time()
	}
	return time.Now()
}
