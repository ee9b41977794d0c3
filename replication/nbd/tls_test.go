package nbd

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"errors"
	"io"
	"math/big"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

func certificates(t *testing.T) (server, client *tls.Config) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "nbd"}, DNSNames: []string{"nbd"}, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	must(t, err)
	cert, err := x509.ParseCertificate(der)
	must(t, err)
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}, &tls.Config{RootCAs: pool, ServerName: "nbd"}
}

func TestSTARTTLS(t *testing.T) {
	ctx := context.Background()
	scfg, ccfg := certificates(t)
	disk := newRAM(1 << 20)
	_, _, path := serve(t, ServerConfig{TLS: scfg, RequireTLS: true}, ExportConfig{Name: "d", Disk: disk})
	_, err := Dial(ctx, "unix", path, ClientConfig{Export: "d"})
	wantErr(t, "in the clear", err, ErrTLSRequired)
	c := dial(t, path, ClientConfig{Export: "d", TLS: ccfg})
	p := bytes.Repeat([]byte{9}, 100_000)
	_, err = c.WriteAt(p, 0)
	must(t, err)
	canceled, cancel := context.WithTimeout(ctx, 5*time.Millisecond)
	defer cancel()
	wantErr(t, "progress", c.Progress(canceled), context.DeadlineExceeded)
	_, err = c.ReadAt(make([]byte, 100_000), 0) // the connection is whole after that
	must(t, err)
	if !bytes.Equal(disk.data[:len(p)], p) {
		t.Error("not written")
	}

	_, _, path = serve(t, ServerConfig{}, ExportConfig{Name: "d", Disk: disk})
	_, err = Dial(ctx, "unix", path, ClientConfig{Export: "d", TLS: ccfg})
	wantErr(t, "a server without TLS", err, ErrPolicy)
}

func TestSecretsOfTheClearDoNotPassForTLS(t *testing.T) {
	scfg, _ := certificates(t)
	_, _, path := serve(t, ServerConfig{TLS: scfg, RequireTLS: true}, ExportConfig{Disk: newRAM(512)})
	conn, err := net.Dial("unix", path)
	must(t, err)
	defer conn.Close()
	be := binary.BigEndian
	p := be.AppendUint32(nil, flagFixedNewstyle)
	for _, opt := range []uint32{optStartTLS, optList} {
		p = be.AppendUint64(p, magicOption)
		p = be.AppendUint32(p, opt)
		p = be.AppendUint32(p, 0)
	}
	conn.Write(p)
	all, _ := io.ReadAll(conn)
	if len(all) != 18 {
		t.Errorf("the server answered %d bytes to an option that was smuggled in", len(all)-18)
	}
}

func TestTLSFromTheFirstByteIsTheCallers(t *testing.T) {
	ctx := context.Background()
	scfg, ccfg := certificates(t)
	srv := NewServer(ServerConfig{})
	_, err := srv.Export(ExportConfig{Disk: newRAM(1 << 20)})
	must(t, err)
	a, b := net.Pipe()
	var wg sync.WaitGroup
	wg.Go(func() { srv.ServeConn(ctx, tls.Server(b, scfg)) })
	c, err := NewClient(ctx, tls.Client(a, ccfg), ClientConfig{})
	must(t, err)
	p := bytes.Repeat([]byte{3}, 100_000)
	_, err = c.WriteAt(p, 7)
	must(t, err)
	q := make([]byte, len(p))
	_, err = c.ReadAt(q, 7)
	must(t, err)
	if !bytes.Equal(p, q) {
		t.Error("what was read is not what was written")
	}
	a.Close()
	c.Close()
	wg.Wait()
}

// Not even which exports there are is told in the clear.
func TestNoOptionIsAnsweredBeforeTLSThatIsRequired(t *testing.T) {
	scfg, _ := certificates(t)
	_, _, path := serve(t, ServerConfig{TLS: scfg, RequireTLS: true}, ExportConfig{Name: "secret", Disk: newRAM(512)})
	be := binary.BigEndian
	for _, opt := range []uint32{optExportName, optList, optInfo, optGo, optStructured, optListMeta, optSetMeta, 99} {
		conn, err := net.Dial("unix", path)
		must(t, err)
		p := be.AppendUint32(nil, flagFixedNewstyle)
		for _, o := range []uint32{opt, optAbort} {
			p = be.AppendUint64(p, magicOption)
			p = be.AppendUint32(p, o)
			p = be.AppendUint32(p, 0)
		}
		_, err = conn.Write(p)
		must(t, err)
		all, _ := io.ReadAll(conn)
		conn.Close()
		if len(all) < 18 || bytes.Contains(all, []byte("secret")) {
			t.Fatalf("option %d: %q", opt, all)
		}
		all = all[18:] // the greeting
		if opt == optExportName {
			if len(all) != 0 {
				t.Errorf("an export is opened in the clear: %d bytes", len(all))
			}
			continue
		}
		if len(all) < 20 || be.Uint32(all[8:]) != opt || be.Uint32(all[12:]) != repErrTLSReqd {
			t.Errorf("option %d is answered by %x", opt, all)
		}
	}
}

// Who is in between could otherwise have the client take what it says for the server's.
func TestBytesBeforeTheTLSHandshakeAreRefused(t *testing.T) {
	_, ccfg := certificates(t)
	a, b := net.Pipe()
	var server sync.WaitGroup
	defer server.Wait()
	server.Go(func() {
		defer b.Close()
		be := binary.BigEndian
		p := be.AppendUint64(be.AppendUint64(nil, magicServer), magicOption)
		b.Write(be.AppendUint16(p, flagFixedNewstyle|flagNoZeroes))
		io.ReadFull(b, make([]byte, 4+16)) // the client's flags, and STARTTLS
		p = be.AppendUint32(be.AppendUint64(nil, magicOptReply), optStartTLS)
		b.Write(append(be.AppendUint32(be.AppendUint32(p, repAck), 0), "more"...))
	})
	_, err := NewClient(t.Context(), a, ClientConfig{TLS: ccfg})
	var refused *ProtocolError
	if !errors.As(err, &refused) || !strings.Contains(err.Error(), "bytes before the TLS handshake") {
		t.Errorf("it says %v", err)
	}
}
