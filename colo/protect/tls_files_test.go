package protect

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestLoadTLSNamesTheFilesThatAreWrong(t *testing.T) {
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "a.pem"), filepath.Join(dir, "a.key")
	if _, err := LoadTLS(cert, key, "ca.pem"); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "protect: certificate "+cert) {
		t.Errorf("there is no file: %v", err)
	}
	for _, name := range []string{cert, key} {
		if err := os.WriteFile(name, []byte("hello"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, names := range [][3]string{{}, {cert, key, ""}, {cert, "", "ca.pem"}, {"", key, "ca.pem"}} {
		if _, err := LoadTLS(names[0], names[1], names[2]); err == nil || !strings.Contains(err.Error(), "are needed, a file each") {
			t.Errorf("of %q: %v", names, err)
		}
	}
	if _, err := LoadTLS(cert, key, "ca.pem"); err == nil || !strings.Contains(err.Error(), "key "+key) {
		t.Errorf("the files have no certificate: %v", err)
	}
}

// A host has its guest for longer than a certificate lasts.
func TestLoadTLSShowsTheCertificateThatTheFilesHaveNow(t *testing.T) {
	ours, dir := newAuthority(t), t.TempDir()
	cert, key, ca := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"), filepath.Join(dir, "ca.pem")
	at := time.Now().Add(-time.Hour)
	write := func(path, kind string, b []byte) {
		t.Helper()
		at = at.Add(time.Second) // whatever the resolution of the file system
		if err := errors.Join(os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: b}), 0o600), os.Chtimes(path, at, at)); err != nil {
			t.Fatal(err)
		}
	}
	issue := func(change func(*x509.Certificate)) (der, private []byte) {
		t.Helper()
		c := ours.hostWith(t, "b", change).Certificates[0]
		private, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
		if err != nil {
			t.Fatal(err)
		}
		return c.Certificate[0], private
	}
	asIs := func(*x509.Certificate) {}
	old, private := issue(asIs)
	write(cert, "CERTIFICATE", old)
	write(key, "PRIVATE KEY", private)
	write(ca, "CERTIFICATE", ours.cert.Raw)
	host, err := LoadTLS(cert, key, ca)
	if err != nil {
		t.Fatal(err)
	}
	other := ours.host(t, "b")
	shows := func(want []byte, when string) {
		t.Helper()
		for direction, ends := range map[string][2]*tls.Config{
			"in":  {PortConfig{TLS: host}.server(), PortConfig{TLS: other}.client("b")},
			"out": {PortConfig{TLS: other}.server(), PortConfig{TLS: host}.client("b")},
		} {
			here, there := net.Pipe()
			server, client := tls.Server(here, ends[0]), tls.Client(there, ends[1])
			done := make(chan error, 1)
			meet := func(conn *tls.Conn, end net.Conn) error {
				err := conn.HandshakeContext(t.Context())
				if err != nil {
					end.Close() // or the other end waits for it
				}
				return err
			}
			go func() { done <- meet(server, here) }()
			if err := errors.Join(meet(client, there), <-done); err != nil {
				t.Fatalf("%s, %s: %v", when, direction, err)
			}
			seen := client
			if direction == "out" {
				seen = server
			}
			if !bytes.Equal(seen.ConnectionState().PeerCertificates[0].Raw, want) {
				t.Errorf("%s, %s: another certificate is shown", when, direction)
			}
			here.Close()
			there.Close()
		}
	}
	shows(old, "as it was")
	renewed, private := issue(asIs)
	write(cert, "CERTIFICATE", renewed)
	shows(old, "half renewed")
	write(key, "PRIVATE KEY", private)
	shows(renewed, "renewed")
	last := renewed
	// A certificate often has as many bytes as the one before, and a copy keeps the time if it is asked to.
	for size := len(renewed); bytes.Equal(renewed, last) || len(renewed) != size; {
		renewed, private = issue(asIs)
	}
	at = at.Add(-2 * time.Second) // write adds a second for each file
	write(cert, "CERTIFICATE", renewed)
	write(key, "PRIVATE KEY", private)
	shows(renewed, "renewed with the size and the time of the files before")
	half, private := issue(func(x *x509.Certificate) { x.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} })
	write(cert, "CERTIFICATE", half)
	write(key, "PRIVATE KEY", private)
	shows(renewed, "renewed for one direction")
	if err := os.Remove(cert); err != nil {
		t.Fatal(err)
	}
	shows(renewed, "gone")
}
