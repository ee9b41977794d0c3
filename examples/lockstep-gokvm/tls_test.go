package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// certificates makes an authority, and the files of a host for each name.
func certificates(t *testing.T, names ...string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	var issuer *x509.Certificate
	var issuerKey *ecdsa.PrivateKey
	for i, name := range append([]string{"ca"}, names...) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		cert := &x509.Certificate{
			SerialNumber: big.NewInt(int64(i + 1)), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
			NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		}
		if issuer == nil {
			cert.IsCA, cert.BasicConstraintsValid, cert.KeyUsage, cert.ExtKeyUsage = true, true, x509.KeyUsageCertSign, nil
			issuer, issuerKey = cert, key
		}
		der, err := x509.CreateCertificate(rand.Reader, cert, issuer, &key.PublicKey, issuerKey)
		if err != nil {
			t.Fatal(err)
		}
		private, err := x509.MarshalECPrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(
			os.WriteFile(filepath.Join(dir, name+".pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600),
			os.WriteFile(filepath.Join(dir, name+".key"), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: private}), 0o600),
		); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestHostsShowEachOtherCertificates(t *testing.T) {
	w := newSimWorld(t)
	w.insecure = false
	dir := certificates(t, "a", "b", "c")
	of := func(host, peer string) []string {
		return []string{
			"-cert", filepath.Join(dir, host+".pem"), "-key", filepath.Join(dir, host+".key"), "-ca", filepath.Join(dir, "ca.pem"), "-peer-name", peer,
		}
	}
	stranger := w.start("b", modeSecondary, of("c", "a")...)
	a := w.start("a", modePrimary, of("a", "b")...)
	w.hears(a, phase("undecided")) // the host there is not b
	stranger.stop(nil)
	w.ended(stranger)
	b := w.start("b", modeSecondary, of("b", "a")...)
	w.inStep(a)
	w.moreLeaves(a)
	w.kill(a)
	w.hears(b, phase("alone"))
	w.moreLeaves(b)
	w.judge()
}
