package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/gocolo/lockstep/internal/qemutest"
)

// authority makes certificates, named as QEMU's tls-creds-x509 wants them.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	a := &authority{t: t}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "lockstep test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	a.key = newKey(t)
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, a.key.Public(), a.key)
	if err == nil {
		a.cert, err = x509.ParseCertificate(der)
	}
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// issue writes the certificate of a role, "server" or "client", into a directory.
func (a *authority) issue(role string) string {
	dir := qemutest.Dir(a.t)
	key := newKey(a.t)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: role},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, key.Public(), a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{
		"ca-cert.pem":      {Type: "CERTIFICATE", Bytes: a.cert.Raw},
		role + "-cert.pem": {Type: "CERTIFICATE", Bytes: der},
		role + "-key.pem":  {Type: "PRIVATE KEY", Bytes: private},
	} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			a.t.Fatal(err)
		}
	}
	return dir
}

func TestTLSWithAQEMUPrimary(t *testing.T) {
	qemutest.KVM(t)
	ours, stranger := newAuthority(t), newAuthority(t)
	for _, c := range []struct {
		name   string
		client string
		status int
	}{
		{"a certificate of ours", ours.issue("client"), exitOK},
		{"a stranger's", stranger.issue("client"), exitFailed},
	} {
		t.Run(c.name, func(t *testing.T) {
			back := qemutest.Dir(t)
			s := start(t, "standby", "-json", "-listen", "127.0.0.1:0", "-state", back, "-tls", ours.issue("server"))
			v, sock := monitored(t, "microvm", "-object", "tls-creds-x509,id=tls0,endpoint=client,dir="+c.client)
			seen := qemutest.AwaitSerial(t, v.Dir, 2)
			p := start(t, "protect", "-json", "-qmp", sock, "-to", s.text("listening"), "-delay", "20ms", "-tls-creds", "tls0", "-timeout", "20s")
			p.ends(c.status)
			if c.status == exitOK {
				s.checkpoints(10)
				v.Kill()
			}
			s.ends(c.status)
			if c.status != exitOK {
				qemutest.AwaitSerial(t, v.Dir, len(qemutest.Serial(v.Dir))+5)
				return
			}
			qemutest.Start(t, back, append(qemutest.GuestArgs(t, back, "microvm", 16), "-incoming", "exec:cat "+s.summary().State)...)
			counts(t, back, seen[1])
		})
	}
}
