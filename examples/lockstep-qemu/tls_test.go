package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
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
	a.issueInto(dir, role, func(*x509.Certificate) {})
	return dir
}

// issueInto writes another one into a directory, changed.
func (a *authority) issueInto(dir, role string, change func(*x509.Certificate)) {
	a.sign(dir, role, newKey(a.t), change)
}

// issueRSA writes one whose key is an RSA key into a new directory.
func (a *authority) issueRSA(role string) string {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		a.t.Fatal(err)
	}
	dir := qemutest.Dir(a.t)
	a.sign(dir, role, key, func(*x509.Certificate) {})
	return dir
}

// sign writes the certificate of a key into a directory, changed.
func (a *authority) sign(dir, role string, key crypto.Signer, change func(*x509.Certificate)) {
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: role},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{"localhost"},
	}
	change(tmpl)
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
}

func TestTLSWithAQEMUPrimary(t *testing.T) {
	t.Parallel()
	needsQEMU(t)
	ours, stranger := newAuthority(t), newAuthority(t)
	for _, c := range []struct {
		name   string
		client string
		status int
	}{
		{"a certificate of ours", ours.issue("client"), exitOK},
		{"one of ours with an RSA key", ours.issueRSA("client"), exitOK},
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
			if c.status != exitOK {
				s.object("refused", 0)
				s.cancel()
				s.ends(exitInterrupted)
				qemutest.AwaitSerial(t, v.Dir, len(qemutest.Serial(v.Dir))+5)
				return
			}
			s.ends(exitOK)
			qemutest.Start(t, back, append(qemutest.GuestArgs(t, back, "microvm", 16), "-incoming", "exec:cat "+s.summary().State)...)
			counts(t, back, seen[1])
		})
	}
}

func TestTLSWithAQEMUSecondary(t *testing.T) {
	t.Parallel()
	needsQEMU(t)
	ours, stranger := newAuthority(t), newAuthority(t)
	dir := qemutest.Dir(t)
	uri := "unix:" + filepath.Join(dir, "in")
	sec, m := monitored(t, "microvm", "-object", "tls-creds-x509,id=tls0,endpoint=server,verify-peer=on,dir="+ours.issue("server"), "-incoming", "defer")
	sec.Must("migrate-set-parameters", qemutest.Args{"tls-creds": "tls0"})
	sec.Must("migrate-incoming", qemutest.Args{"uri": uri})
	args := func(creds string) []string {
		return []string{"relay", "-json", "-listen", "unix:" + filepath.Join(dir, "out"), "-state", dir, "-to", uri, "-qmp", m, "-to-tls", creds}
	}

	r := start(t, args(stranger.issue("client"))...)
	p, _ := primary(t, "microvm")
	p.Protect(r.text("listening"), 20*time.Millisecond)
	r.object("error", 0) // the standby in it goes on
	r.checkpoints(3)
	r.cancel()
	r.ends(exitInterrupted)
	p.Must("x-colo-lost-heartbeat", nil)
	p.Kill()

	// A QEMU 7.2 that has refused a peer waits for the next one.
	r = start(t, args(ours.issue("client"))...)
	p, seen := primary(t, "microvm")
	p.Protect(r.text("listening"), 20*time.Millisecond)
	r.follow(uri, 10)
	p.Kill()
	r.ends(exitOK)
	goesOn(t, sec, seen[len(seen)-1])
}

func TestADiskOverTLS(t *testing.T) {
	t.Parallel()
	needsQEMU(t)
	ours := newAuthority(t)
	dir, pri := qemutest.Dir(t), qemutest.Dir(t)
	copied := emptyDisk(t, dir, "disk")
	s := start(t, "standby", "-json", "-listen", "127.0.0.1:0", "-state", dir, "-tls", ours.issue("server"), "-nbd", "127.0.0.1:0", "-disk", "d0="+copied)
	sock := "unix:" + filepath.Join(pri, "second")
	v := qemutest.Start(t, pri, append(diskGuest(t, pri, "format=raw,file="+emptyDisk(t, pri, "disk")),
		"-qmp", sock+",server=on,wait=off", "-object", "tls-creds-x509,id=tls0,endpoint=client,dir="+ours.issue("client"))...)
	qemutest.AwaitSerial(t, pri, 5)
	start(t, "protect", "-json", "-qmp", sock, "-to", s.text("listening"), "-delay", "20ms", "-tls-creds", "tls0",
		"-nbd", s.text("disks"), "-disk", "d0=d0").ends(exitOK)
	s.checkpoints(10)
	v.Kill()
	s.ends(exitOK)
	goesWith(t, copied, at(t, s.summary().State))
}
