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
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// ram is a Disk in memory, with all that a Disk may have.
type ram struct {
	mu           sync.Mutex
	data         []byte
	syncs, trims int
	hook         func(op string, off int64) error // without the lock
}

func newRAM(size int) *ram { return &ram{data: make([]byte, size)} }

func (d *ram) Size() int64 { return int64(len(d.data)) }

func (d *ram) call(op string, off int64) error {
	if d.hook != nil {
		return d.hook(op, off)
	}
	return nil
}

func (d *ram) ReadAt(p []byte, off int64) (int, error) {
	if err := d.call("read", off); err != nil {
		return 0, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return copy(p, d.data[off:]), nil
}

func (d *ram) WriteAt(p []byte, off int64) (int, error) {
	if err := d.call("write", off); err != nil {
		return 0, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return copy(d.data[off:], p), nil
}

func (d *ram) Sync() error {
	if err := d.call("sync", 0); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.syncs++
	return nil
}

func (d *ram) Trim(off, n int64) error {
	d.mu.Lock()
	d.trims++
	d.mu.Unlock()
	return d.WriteZeroes(off, n)
}

func (d *ram) WriteZeroes(off, n int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	clear(d.data[off : off+n])
	return nil
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantErr(t testing.TB, why string, err, target error) {
	t.Helper()
	if !errors.Is(err, target) {
		t.Fatalf("%s: error %v, want %v", why, err, target)
	}
}

// serve serves what configure exports on a Unix socket, and returns its path.
func serve(t testing.TB, cfg ServerConfig, exports ...ExportConfig) (*Server, []*Export, string) {
	t.Helper()
	srv := NewServer(cfg)
	var exps []*Export
	for _, ec := range exports {
		e, err := srv.Export(ec)
		must(t, err)
		exps = append(exps, e)
	}
	path := filepath.Join(t.TempDir(), "nbd")
	ln, err := net.Listen("unix", path)
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := srv.Serve(ctx, ln); err != ErrServerClosed {
			t.Errorf("serve: %v", err)
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
	return srv, exps, path
}

func dial(t testing.TB, path string, cfg ClientConfig) *Client {
	t.Helper()
	c, err := Dial(context.Background(), "unix", path, cfg)
	must(t, err)
	t.Cleanup(func() { c.Close() })
	return c
}

func TestClientAndServerAgreeOnEveryCommand(t *testing.T) {
	disk := newRAM(1<<20 + 512)
	_, _, path := serve(t, ServerConfig{MaxRequest: 64 << 10}, ExportConfig{Name: "d", Generation: 3, Disk: disk, Description: "a disk"})
	c := dial(t, path, ClientConfig{Export: "d@3"})
	if i := c.Info(); i.Size != disk.Size() || i.MaxBlock != 64<<10 || i.MinBlock != 1 || !i.Flush || !i.FUA || !i.Trim || !i.WriteZeroes || i.ReadOnly {
		t.Errorf("info %+v", i)
	}
	p := make([]byte, 300_000) // more than a request may have
	rand.Read(p)
	n, err := c.WriteAt(p, 1001)
	if n != len(p) {
		t.Errorf("wrote %d: %v", n, err)
	}
	q := make([]byte, len(p))
	_, err = c.ReadAt(q, 1001)
	must(t, err)
	if !bytes.Equal(p, q) {
		t.Error("what was read is not what was written")
	}
	must(t, c.WriteZeroes(2000, 100_000))
	must(t, c.Trim(200_000, 512))
	_, err = c.ReadAt(q, 1001)
	must(t, err)
	clear(p[999:][:100_000])
	clear(p[198_999:][:512])
	if !bytes.Equal(p, q) {
		t.Error("zeroes are not where they should be")
	}
	before := disk.syncs
	must(t, c.Sync())
	must(t, c.WriteFUA(p[:100], 0))
	if disk.syncs != before+2 || disk.trims != 1 {
		t.Errorf("%d syncs, %d trims", disk.syncs-before, disk.trims)
	}
	_, err = c.ReadAt(q, disk.Size()-1)
	wantErr(t, "read beyond the end", err, ErrRange)
	_, err = c.WriteAt(q, -1)
	wantErr(t, "write before the beginning", err, ErrRange)
	must(t, c.Close())
	_, err = c.ReadAt(q, 0)
	wantErr(t, "after the end", err, ErrClosed)
}

func TestRemoteMethodsTellWhenDone(t *testing.T) {
	ctx := context.Background()
	disk := newRAM(1 << 20)
	_, _, path := serve(t, ServerConfig{MaxRequest: 4096}, ExportConfig{Disk: disk})
	c := dial(t, path, ClientConfig{})
	left := 0
	done := func(err error) {
		if err != nil {
			t.Error(err)
		}
		left--
	}
	p := bytes.Repeat([]byte{7}, 100_000)
	left = 4
	c.StartWrite(p, 0, false, done) // in many parts, but done once
	clear(p)
	c.StartWrite([]byte{8}, 200_000, true, done)
	c.StartZeroes(300_000, 100_000, false, done)
	c.StartFlush(done)
	for left > 0 {
		must(t, c.Progress(ctx))
	}
	if disk.data[99_999] != 7 || disk.data[200_000] != 8 {
		t.Error("not written")
	}
	canceled, cancel := context.WithCancel(ctx)
	time.AfterFunc(10*time.Millisecond, cancel)
	wantErr(t, "nothing to come", c.Progress(canceled), context.Canceled)
	left = 1
	c.StartFlush(done)
	for left > 0 {
		must(t, c.Progress(ctx))
	}
	c.StartWrite(nil, 1<<21, false, func(err error) { wantErr(t, "beyond", err, ErrRange) })
}

func TestAnswersComeInAnyOrder(t *testing.T) {
	disk := newRAM(1 << 20)
	release := make(chan struct{})
	disk.hook = func(op string, off int64) error {
		if off == 0 {
			<-release
		}
		return nil
	}
	_, _, path := serve(t, ServerConfig{}, ExportConfig{Disk: disk})
	c := dial(t, path, ClientConfig{MaxRequests: 4})
	var wg sync.WaitGroup
	wg.Go(func() {
		_, err := c.WriteAt([]byte{1}, 0)
		must(t, err)
	})
	for i := range int64(50) {
		wg.Go(func() {
			_, err := c.WriteAt([]byte{1}, 4096+i)
			must(t, err)
			if i == 49 {
				close(release)
			}
		})
	}
	wg.Wait()
}

func TestManyGoroutinesShareAConnection(t *testing.T) {
	disk := newRAM(1 << 20)
	_, _, path := serve(t, ServerConfig{MaxRequests: 8}, ExportConfig{Disk: disk})
	c := dial(t, path, ClientConfig{MaxRequests: 16})
	ctx, cancel := context.WithCancel(context.Background())
	var run, wg sync.WaitGroup
	run.Go(func() {
		for c.Progress(ctx) == nil {
		}
	})
	for g := range int64(24) {
		wg.Go(func() {
			p, q := make([]byte, 30_000), make([]byte, 30_000)
			for i := range 30 {
				for j := range p {
					p[j] = byte(int(g) + i)
				}
				n := 1 + (i*7919)%len(p)
				if _, err := c.WriteAt(p[:n], g*40_000); err != nil {
					t.Error(err)
				}
				if _, err := c.ReadAt(q[:n], g*40_000); err != nil || !bytes.Equal(p[:n], q[:n]) {
					t.Errorf("goroutine %d reads something else: %v", g, err)
				}
			}
		})
	}
	wg.Wait()
	cancel()
	run.Wait()
}

func TestErrorsOfTheDiskReachTheClient(t *testing.T) {
	disk := newRAM(1 << 20)
	_, _, path := serve(t, ServerConfig{}, ExportConfig{Disk: disk})
	c := dial(t, path, ClientConfig{})
	for _, errno := range []syscall.Errno{syscall.ENOSPC, syscall.ESHUTDOWN, syscall.EPERM, syscall.EINVAL, syscall.EIO} {
		disk.hook = func(string, int64) error { return &net.OpError{Op: "x", Err: errno} }
		_, err := c.WriteAt([]byte{1}, 5)
		wantErr(t, "write", err, errno)
		var re *RequestError
		if !errors.As(err, &re) || re.Off != 5 || re.Len != 1 || re.Command != "write" {
			t.Errorf("error %v", err)
		}
	}
	disk.hook = func(string, int64) error { return errors.New("something else") }
	wantErr(t, "sync", c.Sync(), syscall.EIO)
	disk.hook = nil
	must(t, c.Sync())
}

func TestOldGenerationIsRefused(t *testing.T) {
	ctx := context.Background()
	_, exps, path := serve(t, ServerConfig{}, ExportConfig{Name: "d", Generation: 7, Disk: newRAM(4096)})
	for name, want := range map[string]error{"d@6": ErrPolicy, "d": ErrPolicy, "e": ErrUnknownExport, "d@07": ErrUnknownExport} {
		_, err := Dial(ctx, "unix", path, ClientConfig{Export: name})
		wantErr(t, name, err, want)
	}
	c := dial(t, path, ClientConfig{Export: exps[0].WireName()})
	_, err := Dial(ctx, "unix", path, ClientConfig{Export: "d@7"})
	wantErr(t, "a second client", err, ErrPolicy)
	must(t, c.Close())
	for exps[0].Clients() > 0 {
		time.Sleep(time.Millisecond)
	}
	dial(t, path, ClientConfig{Export: "d@7"})
}

func TestGatedExportIsDrainedAndRefusesChanges(t *testing.T) {
	ctx := context.Background()
	disk := newRAM(8192)
	entered, release := make(chan struct{}), make(chan struct{})
	disk.hook = func(op string, _ int64) error {
		if op == "write" {
			entered <- struct{}{}
			<-release
		}
		return nil
	}
	_, exps, path := serve(t, ServerConfig{}, ExportConfig{Disk: disk})
	e := exps[0]
	c := dial(t, path, ClientConfig{})
	wrote := make(chan error)
	go func() { _, err := c.WriteAt([]byte{1}, 0); wrote <- err }()
	<-entered
	short, cancel := context.WithTimeout(ctx, time.Millisecond)
	defer cancel()
	wantErr(t, "a write is under way", e.Gate(short), context.DeadlineExceeded)
	gated := make(chan error)
	go func() { gated <- e.Gate(ctx) }()
	_, err := c.WriteAt([]byte{1}, 1)
	wantErr(t, "a later write", err, syscall.ESHUTDOWN)
	wantErr(t, "later zeroes", c.WriteZeroes(0, 1), syscall.ESHUTDOWN)
	close(release)
	must(t, <-gated)
	must(t, <-wrote)
	must(t, c.Sync())
	_, err = c.ReadAt(make([]byte, 1), 0)
	must(t, err)
	disk.hook = nil
	e.Open()
	_, err = c.WriteAt([]byte{1}, 1)
	must(t, err)
	must(t, e.Close(ctx))
	_, err = c.ReadAt(make([]byte, 1), 0)
	if err == nil {
		t.Error("a closed export is read")
	}
	_, err = Dial(ctx, "unix", path, ClientConfig{})
	wantErr(t, "a closed export", err, ErrUnknownExport)
}

func TestReadOnlyExport(t *testing.T) {
	_, _, path := serve(t, ServerConfig{}, ExportConfig{Disk: newRAM(4096), ReadOnly: true})
	c := dial(t, path, ClientConfig{})
	_, err := c.WriteAt([]byte{1}, 0)
	wantErr(t, "write", err, ErrReadOnly)
	c.info.ReadOnly = false // a client that does not care
	_, err = c.WriteAt([]byte{1}, 0)
	wantErr(t, "write", err, syscall.EPERM)
}

func TestListNamesTheExports(t *testing.T) {
	_, _, path := serve(t, ServerConfig{}, ExportConfig{Name: "a", Disk: newRAM(512)}, ExportConfig{Name: "b", Generation: 2, Disk: newRAM(512)})
	conn, err := net.Dial("unix", path)
	must(t, err)
	names, err := List(context.Background(), conn, ClientConfig{})
	must(t, err)
	slices.Sort(names)
	if !slices.Equal(names, []string{"a", "b@2"}) {
		t.Errorf("names %q", names)
	}
}

func TestRequestsBeyondTheLimitsAreRefusedAndTheConnectionGoesOn(t *testing.T) {
	_, _, path := serve(t, ServerConfig{MaxRequest: 4096}, ExportConfig{Disk: newRAM(1 << 20)})
	c := dial(t, path, ClientConfig{})
	for _, tc := range []struct {
		req  request
		data int
		want syscall.Errno
	}{
		{request{cmd: cmdWrite, n: 8192}, 8192, syscall.EINVAL},
		{request{cmd: cmdRead, n: 1 << 31}, 0, syscall.EINVAL},
		{request{cmd: cmdRead, off: 1 << 63, n: 1}, 0, syscall.EINVAL},
		{request{cmd: cmdWrite, off: 1<<64 - 1, n: 512}, 512, syscall.ENOSPC},
		{request{cmd: cmdWriteZeroes, off: 1 << 20, n: 1}, 0, syscall.ENOSPC},
		{request{cmd: 5, n: 1}, 0, syscall.EINVAL},
		{request{cmd: cmdFlush, n: 1}, 0, syscall.EINVAL},
		{request{cmd: cmdWrite, flags: 1 << 9, n: 1}, 1, syscall.EINVAL},
	} {
		err := c.do(tc.req, make([]byte, tc.data), nil)
		wantErr(t, commandName(tc.req.cmd), err, tc.want)
	}
	must(t, c.Sync())
}

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

func TestSilentServerIsLostAfterTheTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := newRAM(4096)
		stuck := make(chan struct{})
		disk.hook = func(string, int64) error { <-stuck; return nil }
		srv := NewServer(ServerConfig{})
		_, err := srv.Export(ExportConfig{Disk: disk})
		must(t, err)
		a, b := net.Pipe()
		var wg sync.WaitGroup
		wg.Go(func() { srv.ServeConn(context.Background(), b) })
		c, err := NewClient(context.Background(), a, ClientConfig{Timeout: 5 * time.Second})
		must(t, err)
		ctx, cancel := context.WithCancel(context.Background())
		wg.Go(func() {
			for c.Progress(ctx) == nil {
			}
		})
		time.Sleep(time.Minute) // nothing is asked, so nothing is late
		must(t, c.Err())
		begin := time.Now()
		_, err = c.ReadAt(make([]byte, 1), 0)
		wantErr(t, "read", err, ErrTimeout)
		if d := time.Since(begin); d != 5*time.Second {
			t.Errorf("after %v", d)
		}
		cancel()
		close(stuck)
		wg.Wait()
	})
}

func TestNegotiationDoesNotTakeForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		_, err := NewClient(context.Background(), a, ClientConfig{Timeout: 5 * time.Second})
		wantErr(t, "a silent server", err, ErrTimeout)
		b.Close()
		a, b = net.Pipe()
		go io.Copy(io.Discard, a)
		err = NewServer(ServerConfig{Timeout: time.Second}).ServeConn(context.Background(), b)
		var ne net.Error
		if !errors.As(err, &ne) || !ne.Timeout() {
			t.Errorf("a silent client: %v", err)
		}
		a.Close()
		ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
		defer cancel()
		a, b = net.Pipe()
		_, err = NewClient(ctx, a, ClientConfig{})
		wantErr(t, "a caller without patience", err, context.DeadlineExceeded)
		b.Close()
	})
}

func TestServerThatBreaksTheProtocolIsLeft(t *testing.T) {
	_, _, path := serve(t, ServerConfig{}, ExportConfig{Disk: newRAM(4096), MaxClients: 9})
	for name, reply := range map[string][]byte{
		"magic":  make([]byte, 16),
		"handle": appendReply(nil, 0, 1<<40|99),
		"stale":  appendReply(nil, 0, 7<<32),
	} {
		real, err := net.Dial("unix", path)
		must(t, err)
		c, err := NewClient(context.Background(), &lyingConn{Conn: real, lie: reply}, ClientConfig{})
		must(t, err)
		c.conn.(*lyingConn).armed = true
		_, err = c.ReadAt(make([]byte, 1), 0)
		var pe *ProtocolError
		if !errors.As(err, &pe) {
			t.Errorf("%s: error %v", name, err)
		}
	}
}

// lyingConn returns lie instead of what the peer says, once armed.
type lyingConn struct {
	net.Conn
	armed bool
	lie   []byte
}

func (l *lyingConn) Read(p []byte) (int, error) {
	if l.armed {
		l.armed = false
		return copy(p, l.lie), nil
	}
	return l.Conn.Read(p)
}

func TestNamesWithGenerations(t *testing.T) {
	for _, tc := range []struct {
		wire, name string
		gen        uint64
	}{{"d", "d", 0}, {"d@5", "d", 5}, {"d@0", "d@0", 0}, {"d@05", "d@05", 0}, {"@1", "", 1}, {"a@b", "a@b", 0}, {"a@1@2", "a@1", 2}} {
		name, gen := SplitName(tc.wire)
		if name != tc.name || gen != tc.gen || Name(name, gen) != tc.wire {
			t.Errorf("%q splits into %q and %d", tc.wire, name, gen)
		}
	}
}

func TestRequestsAllocateNothing(t *testing.T) {
	_, _, path := serve(t, ServerConfig{}, ExportConfig{Disk: newRAM(1 << 20)})
	c := dial(t, path, ClientConfig{})
	p := make([]byte, 4096)
	q := make([]byte, 64<<10)
	if n := testing.AllocsPerRun(200, func() {
		c.WriteAt(p, 0)
		c.ReadAt(q, 0)
		c.WriteAt(q, 0)
	}); n > 0 {
		t.Errorf("%v allocations for three requests, both sides together", n)
	}
}

// answers is a net.Conn whose peer has said everything already.
type answers struct {
	io.Reader
	net.Conn
}

func (a answers) Read(p []byte) (int, error)       { return a.Reader.Read(p) }
func (a answers) Write(p []byte) (int, error)      { return len(p), nil }
func (a answers) Close() error                     { return nil }
func (a answers) SetDeadline(time.Time) error      { return nil }
func (a answers) SetReadDeadline(time.Time) error  { return nil }
func (a answers) SetWriteDeadline(time.Time) error { return nil }

func FuzzServer(f *testing.F) {
	be := binary.BigEndian
	opt := func(p []byte, opt uint32, data ...byte) []byte {
		p = be.AppendUint64(p, magicOption)
		p = be.AppendUint32(p, opt)
		p = be.AppendUint32(p, uint32(len(data)))
		return append(p, data...)
	}
	hello := be.AppendUint32(nil, 3)
	f.Add(opt(opt(hello, optList), optAbort))
	f.Add(opt(opt(hello, optInfo, 0, 0, 0, 1, 'd', 0, 1, 0, 3), optGo, 0, 0, 0, 1, 'd', 0, 2, 0, 1, 0, 2))
	s := opt(hello, optExportName, 'd')
	for _, r := range []request{{cmd: cmdWrite, n: 3}, {cmd: cmdRead, n: 5}, {cmd: cmdFlush}, {cmd: cmdTrim, n: 512}, {cmd: cmdWriteZeroes, flags: 3, n: 512}, {cmd: cmdDisc}} {
		s = r.append(s)
		if r.cmd == cmdWrite {
			s = append(s, 1, 2, 3)
		}
	}
	f.Add(s)
	f.Fuzz(func(t *testing.T, p []byte) {
		srv := NewServer(ServerConfig{MaxRequest: 64 << 10, MaxRequests: 4})
		e, err := srv.Export(ExportConfig{Name: "d", Disk: newRAM(8192)})
		must(t, err)
		srv.ServeConn(context.Background(), answers{Reader: bytes.NewReader(p)})
		if e.Clients() != 0 {
			t.Error("a client is left")
		}
	})
}

func FuzzClient(f *testing.F) {
	be := binary.BigEndian
	hello := be.AppendUint16(be.AppendUint64(be.AppendUint64(nil, magicServer), magicOption), 3)
	rep := func(p []byte, typ uint32, data ...byte) []byte {
		p = be.AppendUint64(p, magicOptReply)
		p = be.AppendUint32(p, optGo)
		p = be.AppendUint32(p, typ)
		p = be.AppendUint32(p, uint32(len(data)))
		return append(p, data...)
	}
	info := rep(hello, repInfo, 0, 0, 0, 0, 0, 0, 0, 0, 0x10, 0, 1, 0xff)
	info = rep(info, repInfo, 0, 3, 0, 0, 0, 1, 0, 0, 0x10, 0, 0, 0, 0x10, 0)
	info = rep(info, repAck)
	f.Add(append(appendReply(info, 0, 1<<32), make([]byte, 512)...))
	f.Add(rep(hello, repErrUnknown, 'n', 'o'))
	f.Add(append(rep(hello, repErrUnsup), make([]byte, 200)...))
	f.Fuzz(func(t *testing.T, p []byte) {
		c, err := NewClient(context.Background(), answers{Reader: bytes.NewReader(p)}, ClientConfig{MaxRequests: 2})
		if err != nil {
			return
		}
		q := make([]byte, 512)
		c.ReadAt(q, 0)
		c.StartFlush(func(error) {})
		c.Progress(context.Background())
		c.WriteAt(q, 0)
		c.Close()
	})
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

func TestEXPORTNAMEForClientsThatKnowNothingElse(t *testing.T) {
	disk := newRAM(8192)
	disk.data[4096] = 5
	_, _, path := serve(t, ServerConfig{}, ExportConfig{Name: "d", Generation: 2, Disk: disk, MaxClients: 4})
	for _, brief := range []bool{true, false} {
		conn, err := net.Dial("unix", path)
		must(t, err)
		cfg := ClientConfig{}
		cfg.setDefaults()
		if !brief {
			conn = &plainHello{Conn: conn}
		}
		err = handshake(context.Background(), conn, cfg, func(d *dialogue) error {
			d.fixed = false
			info, err := d.choose("d@2")
			if err != nil {
				return err
			}
			c := newClient(d.conn, d.r, info, cfg)
			defer c.Close()
			p := make([]byte, 1)
			if _, err := c.ReadAt(p, 4096); err != nil || p[0] != 5 || c.Size() != 8192 {
				t.Errorf("read %d of %d: %v", p[0], c.Size(), err)
			}
			return err
		})
		must(t, err)
	}
	conn, err := net.Dial("unix", path)
	must(t, err)
	cfg := ClientConfig{}
	cfg.setDefaults()
	err = handshake(context.Background(), conn, cfg, func(d *dialogue) error {
		d.fixed = false
		_, err := d.choose("d@1")
		return err
	})
	wantErr(t, "another generation", err, io.ErrUnexpectedEOF) // it can only hang up
}

// plainHello clears NO_ZEROES in what the server offers.
type plainHello struct {
	net.Conn
	seen int
}

func (p *plainHello) Read(b []byte) (int, error) {
	n, err := p.Conn.Read(b)
	if i := 17 - p.seen; i >= 0 && i < n {
		b[i] &^= flagNoZeroes
	}
	p.seen += n
	return n, err
}
