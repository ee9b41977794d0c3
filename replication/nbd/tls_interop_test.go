package nbd_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	crand "crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/internal/socket"
	"github.com/gocolo/lockstep/replication/nbd"
)

// authority makes a directory as QEMU and libnbd have them, with a
// certification authority and a certificate by it for the host "nbd", and what
// the two sides of a TLS connection need of it here.
func authority(t *testing.T) (dir string, server, client *tls.Config) {
	t.Helper()
	dir = t.TempDir()
	newKey := func() *ecdsa.PrivateKey {
		k, err := ecdsa.GenerateKey(elliptic.P256(), crand.Reader)
		must(t, err)
		return k
	}
	sign := func(c, by *x509.Certificate, key, byKey *ecdsa.PrivateKey) []byte {
		c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
		der, err := x509.CreateCertificate(crand.Reader, c, by, &key.PublicKey, byKey)
		must(t, err)
		return der
	}
	save := func(name, kind string, der []byte) {
		must(t, os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
	}
	caKey, key := newKey(), newKey()
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	caDER := sign(ca, ca, caKey, caKey)
	ca, err := x509.ParseCertificate(caDER)
	must(t, err)
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "nbd"}, DNSNames: []string{"nbd"},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	leafDER := sign(leaf, ca, key, caKey)
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	must(t, err)
	save("ca-cert.pem", "CERTIFICATE", caDER)
	save("server-cert.pem", "CERTIFICATE", leafDER)
	save("server-key.pem", "PRIVATE KEY", keyDER)
	pool := x509.NewCertPool()
	pool.AddCert(ca)
	return dir, &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{leafDER}, PrivateKey: key}}}, &tls.Config{RootCAs: pool, ServerName: "nbd"}
}

func TestQEMUSpeaksTLSWithTheServer(t *testing.T) {
	const size = 1 << 20
	dir, server, _ := authority(t)
	disk, want := image(t, "disk", size)
	srv := nbd.NewServer(nbd.ServerConfig{TLS: server, RequireTLS: true})
	_, err := srv.Export(nbd.ExportConfig{Name: "d", Disk: disk, MaxClients: 4})
	must(t, err)
	socket := serveAt(t, srv, filepath.Join(socket.Dir(t), "nbd"))
	back := filepath.Join(t.TempDir(), "back")
	tool(t, require.QEMU, "qemu-img", "convert", "--object", "tls-creds-x509,id=creds,endpoint=client,dir="+dir, "--image-opts",
		"driver=raw,file.driver=nbd,file.server.type=unix,file.server.path="+socket+",file.export=d,file.tls-creds=creds,file.tls-hostname=nbd", "-O", "raw", back)
	got, err := os.ReadFile(back)
	must(t, err)
	if !bytes.Equal(got, want) {
		t.Error("the copy differs")
	}
}

func TestClientSpeaksTLSWithRealServers(t *testing.T) {
	ctx := context.Background()
	dir, _, client := authority(t)
	for _, s := range []struct {
		what, name string
		args       []string
	}{
		{require.QEMU, "qemu-nbd", []string{"-t", "-f", "raw", "-x", "d", "-e", "4",
			"--object", "tls-creds-x509,id=creds,endpoint=server,verify-peer=no,dir=" + dir, "--tls-creds", "creds", "-k"}},
		{require.NBD, "nbdkit", []string{"-f", "--tls=require", "--tls-certificates=" + dir, "file", "-U"}},
	} {
		t.Run(s.name, func(t *testing.T) {
			disk := filepath.Join(t.TempDir(), "disk")
			must(t, os.WriteFile(disk, make([]byte, 1<<20), 0o600))
			socket := filepath.Join(socket.Dir(t), "s")
			background(t, s.what, socket, s.name, append(s.args, socket, disk)...)
			_, err := nbd.Dial(ctx, "unix", socket, nbd.ClientConfig{Export: "d"})
			if !errors.Is(err, nbd.ErrTLSRequired) {
				t.Errorf("in the clear: %v", err)
			}
			c, err := nbd.Dial(ctx, "unix", socket, nbd.ClientConfig{Export: "d", TLS: client})
			must(t, err)
			defer c.Close()
			p := bytes.Repeat([]byte{7}, 300_000)
			_, err = c.WriteAt(p, 4096)
			must(t, err)
			must(t, c.Sync())
			if !bytes.Equal(contents(t, c, 400_000)[4096:][:len(p)], p) {
				t.Error("what was read is not what was written")
			}
		})
	}
}
