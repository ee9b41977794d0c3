package nbd

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/internal/socket"
)

// pipes is a listener whose connections are pipes, and which fails as told.
type pipes struct {
	conns chan net.Conn
	errs  chan error
	done  chan struct{}
	once  sync.Once
}

func newPipes() *pipes {
	return &pipes{conns: make(chan net.Conn), errs: make(chan error, 100), done: make(chan struct{})}
}

func (l *pipes) Accept() (net.Conn, error) {
	fails := func(err error) (net.Conn, error) {
		return nil, &net.OpError{Op: "accept", Err: os.NewSyscallError("accept4", err)}
	}
	select {
	case err := <-l.errs: // before any connection
		return fails(err)
	default:
	}
	select {
	case err := <-l.errs:
		return fails(err)
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *pipes) Close() error   { l.once.Do(func() { close(l.done) }); return nil }
func (l *pipes) Addr() net.Addr { return &net.UnixAddr{} }

// connect returns the client's end of a new connection.
func (l *pipes) connect() net.Conn {
	a, b := net.Pipe()
	go func() {
		select {
		case l.conns <- b:
		case <-l.done:
			b.Close()
		}
	}()
	return a
}

// servePipes runs f with a server of one export that serves pipes.
func servePipes(t *testing.T, cfg ServerConfig, want error, f func(l *pipes)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		srv := NewServer(cfg)
		_, err := srv.Export(ExportConfig{Disk: newRAM(4096), MaxClients: 100})
		must(t, err)
		l := newPipes()
		ctx, cancel := context.WithCancel(context.Background())
		served := make(chan error, 1)
		go func() { served <- srv.Serve(ctx, l) }()
		f(l)
		cancel()
		wantErr(t, "Serve", <-served, want)
	})
}

func TestErrorsOfAcceptThatPassDoNotEndService(t *testing.T) {
	servePipes(t, ServerConfig{}, ErrServerClosed, func(l *pipes) {
		for _, err := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED, os.ErrDeadlineExceeded} {
			l.errs <- err
		}
		c, err := NewClient(context.Background(), l.connect(), ClientConfig{})
		must(t, err)
		must(t, c.Sync())
		must(t, c.Close())
	})
}

func TestServiceWithoutDescriptorsIsTriedAgainEverMoreSlowly(t *testing.T) {
	servePipes(t, ServerConfig{}, ErrServerClosed, func(l *pipes) {
		for range 100 {
			l.errs <- syscall.EMFILE
		}
		time.Sleep(time.Minute)
		if n := 100 - len(l.errs); n < 60 || n > 70 { // 8 at first, then one a second
			t.Errorf("%d attempts in a minute", n)
		}
	})
}

// There may be no descriptor for the next client because of it.
func TestWhereDescriptorsAreShortASilentConnectionEnds(t *testing.T) {
	servePipes(t, ServerConfig{MaxConns: 8}, ErrServerClosed, func(l *pipes) {
		silent := l.connect()
		_, err := io.ReadFull(silent, make([]byte, 18)) // what the server says first
		must(t, err)
		time.Sleep(2 * silence)
		begin := time.Now()
		l.errs <- syscall.EMFILE
		if _, err := silent.Read(make([]byte, 1)); err == nil || time.Since(begin) != 0 {
			t.Errorf("after %v: %v", time.Since(begin), err)
		}
	})
}

// Nobody waits for its place when a client has left before it was accepted.
func TestAClientThatIsSilentForLongStaysThoughOthersLeaveBeforeTheyAreAccepted(t *testing.T) {
	servePipes(t, ServerConfig{MaxConns: 8}, ErrServerClosed, func(l *pipes) {
		slow := l.connect()
		_, err := io.ReadFull(slow, make([]byte, 18))
		must(t, err)
		for _, err := range []error{syscall.ECONNABORTED, syscall.EPERM, os.ErrDeadlineExceeded} {
			time.Sleep(2 * silence)
			l.errs <- err
		}
		time.Sleep(2 * silence)
		_, err = slow.Write([]byte{0, 0, 0, flagFixedNewstyle | flagNoZeroes})
		must(t, err)
		must(t, (&dialogue{conn: slow}).send(optList, nil))
		_, err = io.ReadFull(slow, make([]byte, 20))
		must(t, err)
		must(t, slow.Close())
	})
}

func TestOtherErrorsOfAcceptEndService(t *testing.T) {
	servePipes(t, ServerConfig{}, syscall.EBADF, func(l *pipes) {
		l.errs <- syscall.EBADF
		synctest.Wait()
	})
}

func TestSilentConnectionsGiveWay(t *testing.T) {
	servePipes(t, ServerConfig{MaxConns: 8}, ErrServerClosed, func(l *pipes) {
		c, err := NewClient(context.Background(), l.connect(), ClientConfig{})
		must(t, err)
		var silent []net.Conn
		for range 7 {
			silent = append(silent, l.connect())
		}
		time.Sleep(10 * time.Second)
		begin := time.Now()
		other, err := NewClient(context.Background(), l.connect(), ClientConfig{})
		must(t, err)
		if d := time.Since(begin); d > silence {
			t.Errorf("a client got in after %v", d)
		}
		time.Sleep(time.Hour)
		must(t, c.Sync()) // who has negotiated may be silent for ever
		must(t, other.Close())
		must(t, c.Close())
		for _, s := range silent {
			s.Close()
		}
	})
}

func TestConnectionsThatOnlyTalkGiveWayToo(t *testing.T) {
	servePipes(t, ServerConfig{MaxConns: 1, Timeout: 40 * time.Second}, ErrServerClosed, func(l *pipes) {
		talker := l.connect()
		var wg sync.WaitGroup
		wg.Go(func() {
			p := make([]byte, 100)
			for {
				if _, err := talker.Read(p); err != nil {
					return
				}
			}
		})
		wg.Go(func() { // asks what is not there, twice a second
			d := &dialogue{conn: talker}
			talker.Write([]byte{0, 0, 0, flagFixedNewstyle | flagNoZeroes})
			for d.send(99, nil) == nil {
				time.Sleep(500 * time.Millisecond)
			}
		})
		time.Sleep(100 * time.Millisecond)
		begin := time.Now()
		c, err := NewClient(context.Background(), l.connect(), ClientConfig{})
		must(t, err)
		if d := time.Since(begin); d > 40*time.Second/patience {
			t.Errorf("a client got in after %v", d)
		}
		must(t, c.Close())
		talker.Close()
		wg.Wait()
	})
}

func TestFullServerLetsInWhoComesNextWhenSomebodyLeaves(t *testing.T) {
	servePipes(t, ServerConfig{MaxConns: 1}, ErrServerClosed, func(l *pipes) {
		c, err := NewClient(context.Background(), l.connect(), ClientConfig{})
		must(t, err)
		_, err = NewClient(context.Background(), l.connect(), ClientConfig{Timeout: time.Minute})
		wantErr(t, "all have negotiated", err, ErrTimeout)
		go func() { time.Sleep(time.Second); c.Close() }()
		o, err := NewClient(context.Background(), l.connect(), ClientConfig{})
		must(t, err)
		must(t, o.Close())
	})
}

func TestMemoryIsBoundedOverAllConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := &crowd{ram: newRAM(1 << 20), release: make(chan struct{})}
		srv := NewServer(ServerConfig{MaxTotalBytes: 1 << 20, MaxRequest: 128 << 10})
		_, err := srv.Export(ExportConfig{Disk: disk, MaxClients: 8})
		must(t, err)
		var wg, reads sync.WaitGroup
		var clients []*Client
		for range 4 {
			a, b := net.Pipe()
			wg.Go(func() { srv.ServeConn(context.Background(), b) })
			c, err := NewClient(context.Background(), a, ClientConfig{})
			must(t, err)
			clients = append(clients, c)
			for range 8 {
				reads.Go(func() {
					if _, err := c.ReadAt(make([]byte, 128<<10), 0); err != nil {
						t.Error(err)
					}
				})
			}
		}
		time.Sleep(time.Second)
		if n := disk.seen(); n != 8 {
			t.Errorf("%d reads of 128 KiB are under way, want 1 MiB of them", n)
		}
		close(disk.release)
		reads.Wait()
		if n := disk.seen(); n > 8 {
			t.Errorf("%d reads at a time", n)
		}
		for _, c := range clients {
			c.Close()
		}
		wg.Wait()
		if srv.memory.used != 0 {
			t.Errorf("%d bytes are used by nobody", srv.memory.used)
		}
	})
}

func TestRefusedWritesDoNotWidenTheBoundOfAConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const size = 64 << 10
		disk := &crowd{ram: newRAM(1 << 20), release: make(chan struct{})}
		srv := NewServer(ServerConfig{MaxBytes: size, MaxRequest: size})
		_, err := srv.Export(ExportConfig{Disk: disk})
		must(t, err)
		a, b := net.Pipe()
		var wg, reads sync.WaitGroup
		wg.Go(func() { srv.ServeConn(context.Background(), b) })
		c, err := NewClient(context.Background(), a, ClientConfig{})
		must(t, err)
		for range 4 {
			beyond := request{cmd: cmdWrite, off: 1 << 20, n: size}
			wantErr(t, "a write beyond the end", c.do(beyond, make([]byte, size), nil), syscall.ENOSPC)
		}
		for range 4 {
			reads.Go(func() {
				if _, err := c.ReadAt(make([]byte, size), 0); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		if n := disk.seen(); n != 1 {
			t.Errorf("%d reads are under way, want as many as the bound has room for, 1", n)
		}
		close(disk.release)
		reads.Wait()
		c.Close()
		wg.Wait()
	})
}

func TestAConnectionThatWaitsForMemoryCanBeClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := &crowd{ram: newRAM(1 << 20), release: make(chan struct{})}
		srv := NewServer(ServerConfig{MaxTotalBytes: 1 << 20, MaxRequest: 1 << 20})
		first, err := srv.Export(ExportConfig{Name: "a", Disk: disk})
		must(t, err)
		second, err := srv.Export(ExportConfig{Name: "b", Disk: disk})
		must(t, err)
		var wg sync.WaitGroup
		for _, e := range []*Export{first, second} {
			a, b := net.Pipe()
			wg.Go(func() { srv.ServeConn(context.Background(), b) })
			c, err := NewClient(context.Background(), a, ClientConfig{Export: e.WireName()})
			must(t, err)
			wg.Go(func() { c.ReadAt(make([]byte, 1<<20), 0); c.Close() })
			synctest.Wait()
		}
		if disk.seen() != 1 {
			t.Errorf("%d reads are under way", disk.seen())
		}
		must(t, second.Close(context.Background())) // waits for its connection only
		close(disk.release)
		wg.Wait()
		must(t, first.Close(context.Background()))
	})
}

func TestDataOfAWriteMustArriveInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := NewServer(ServerConfig{Timeout: 3 * time.Second})
		_, err := srv.Export(ExportConfig{Disk: newRAM(1 << 20)})
		must(t, err)
		a, b := net.Pipe()
		ended := make(chan error, 1)
		go func() { ended <- srv.ServeConn(context.Background(), b) }()
		c, err := NewClient(context.Background(), a, ClientConfig{})
		must(t, err)
		time.Sleep(time.Hour) // silence between requests is no offence
		req := request{cmd: cmdWrite, n: 1 << 20}
		begin := time.Now()
		if _, err := a.Write(append(req.append(nil), make([]byte, 1000)...)); err != nil {
			t.Fatal(err)
		}
		err = <-ended
		var ne net.Error
		if !errors.As(err, &ne) || !ne.Timeout() || time.Since(begin) != 3*time.Second {
			t.Errorf("after %v: %v", time.Since(begin), err)
		}
		if srv.memory.used != 0 {
			t.Errorf("%d bytes wait for what does not come", srv.memory.used)
		}
		c.Close()
	})
}

func TestAHostIsToldWhichOfItsConnectionsHasComeToAnExport(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		type use struct {
			conn net.Conn
			e    *Export
		}
		disk := &asked{ram: newRAM(4096)}
		var told []use // before a request of the client reaches the disk
		srv := NewServer(ServerConfig{OnClient: func(conn net.Conn, e *Export) {
			synctest.Wait()
			if n := disk.syncs.Load(); n > 0 {
				t.Errorf("%d requests were served before", n)
			}
			told = append(told, use{conn, e})
		}})
		e, err := srv.Export(ExportConfig{Name: "d", Disk: disk})
		must(t, err)
		var wg sync.WaitGroup
		connect := func() (client, server net.Conn) {
			client, server = net.Pipe()
			wg.Go(func() { srv.ServeConn(t.Context(), server) })
			return client, server
		}
		silent, _ := connect()
		stranger, _ := connect()
		_, err = NewClient(t.Context(), stranger, ClientConfig{Export: "another"})
		wantErr(t, "an export that is not there", err, ErrUnknownExport)
		there, here := connect()
		c, err := NewClient(t.Context(), there, ClientConfig{Export: "d"})
		must(t, err)
		must(t, c.Sync())
		full, _ := connect()
		_, err = NewClient(t.Context(), full, ClientConfig{Export: "d"})
		wantErr(t, "an export that has its client", err, ErrPolicy)
		must(t, c.Close())
		silent.Close()
		wg.Wait()
		if len(told) != 1 || told[0] != (use{here, e}) {
			t.Errorf("told of %v, want the connection of the one client", told)
		}
	})
}

// asked counts the flushes of a disk.
type asked struct {
	*ram
	syncs atomic.Int32
}

func (a *asked) Sync() error {
	a.syncs.Add(1)
	return a.ram.Sync()
}

// A listener whose Close takes its time is closed when Serve returns.
func TestServeReturnsWhenItsListenerIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		l := socket.NewLingering()
		time.AfterFunc(time.Minute, cancel)
		if err := NewServer(ServerConfig{}).Serve(ctx, l); err == nil || !l.Closed() {
			t.Errorf("%v; closed: %v", err, l.Closed())
		}
	})
}
