package nbd

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

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
		"stale":  appendReply(nil, 5, 7<<32), // an error may come as a simple reply
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

// answers is a net.Conn whose peer has said everything already.
type answers struct {
	io.Reader
	net.Conn
}

func (a answers) Read(p []byte) (int, error) { return a.Reader.Read(p) }

func (a answers) Write(p []byte) (int, error) { return len(p), nil }

func (a answers) Close() error { return nil }

func (a answers) SetDeadline(time.Time) error { return nil }

func (a answers) SetReadDeadline(time.Time) error { return nil }

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
	query := (&metaQuery{"d", []string{ContextAllocation, ContextDirty}}).append(nil)
	s = opt(opt(opt(hello, optStructured), optListMeta, query...), optSetMeta, query...)
	s = opt(s, optGo, 0, 0, 0, 1, 'd', 0, 0)
	for _, r := range []request{
		{cmd: cmdBlockStatus, n: 8192}, {cmd: cmdBlockStatus, flags: cmdFlagReqOne, off: 100, n: 1}, {cmd: cmdRead, flags: cmdFlagDF, n: 512},
		{cmd: cmdBlockStatus}, {cmd: cmdBlockStatus, off: 8192, n: 1}, {cmd: cmdRead, off: 1 << 40, n: 9}, {cmd: cmdDisc},
	} {
		s = r.append(s)
	}
	f.Add(s)
	f.Fuzz(func(t *testing.T, p []byte) {
		srv := NewServer(ServerConfig{MaxRequest: 64 << 10, MaxRequests: 4})
		e, err := srv.Export(ExportConfig{Name: "d", Disk: newRAM(8192), Contexts: []Context{{ContextDirty, striped(100)}}})
		must(t, err)
		srv.ServeConn(context.Background(), answers{Reader: bytes.NewReader(p)})
		if e.Clients() != 0 {
			t.Error("a client is left")
		}
		if srv.memory.used != 0 {
			t.Errorf("%d bytes are used by nobody", srv.memory.used)
		}
	})
}

func FuzzClient(f *testing.F) {
	be := binary.BigEndian
	hello := be.AppendUint16(be.AppendUint64(be.AppendUint64(nil, magicServer), magicOption), 3)
	repTo := func(p []byte, opt, typ uint32, data ...byte) []byte {
		p = be.AppendUint64(p, magicOptReply)
		p = be.AppendUint32(p, opt)
		p = be.AppendUint32(p, typ)
		p = be.AppendUint32(p, uint32(len(data)))
		return append(p, data...)
	}
	rep := func(p []byte, typ uint32, data ...byte) []byte { return repTo(p, optGo, typ, data...) }
	structured := repTo(hello, optStructured, repAck)
	structured = repTo(structured, optSetMeta, repMeta, append([]byte{0, 0, 0, 7}, ContextAllocation...)...)
	structured = repTo(structured, optSetMeta, repAck)
	hello = repTo(hello, optStructured, repErrUnsup)
	info := rep(hello, repInfo, 0, 0, 0, 0, 0, 0, 0, 0, 0x10, 0, 1, 0xff)
	info = rep(info, repInfo, 0, 3, 0, 0, 0, 1, 0, 0, 0x10, 0, 0, 0, 0x10, 0)
	info = rep(info, repAck)
	f.Add(append(appendReply(info, 0, 1<<32), make([]byte, 512)...))
	f.Add(rep(hello, repErrUnknown, 'n', 'o'))
	structured = rep(structured, repInfo, 0, 0, 0, 0, 0, 0, 0, 0, 0x10, 0, 1, 0xff)
	structured = rep(structured, repAck)
	structured = say(structured, chunkDone, chunkData, be64(0), make([]byte, 512))
	structured = append(structured, appendReply(nil, 0, 1<<32|1)...)
	f.Add(append((&chunk{chunkDone, chunkStatus, 2 << 32, 12}).append(structured), be32(7, 4096, 3)...))
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
		c.Extents(0, c.Size(), func(int64, uint32) bool { return true })
		c.WriteAt(q, 0)
		c.Close()
	})
}

// requestsTo returns a connection to a server of a disk, behind the negotiation, and what the server
// ends with. Its time for one piece is a second.
func requestsTo(t *testing.T, disk Disk) (client net.Conn, done chan error) {
	srv := NewServer(ServerConfig{Timeout: time.Second})
	e, err := srv.Export(ExportConfig{Disk: disk})
	must(t, err)
	client, conn := net.Pipe()
	l := &link{Conn: conn, gone: make(chan struct{})}
	t.Cleanup(func() {
		client.Close()
		l.Close()
	})
	done = make(chan error, 1)
	go func() { done <- serveRequests(e, &negotiation{srv: srv, raw: l, conn: conn, r: newReader(conn)}) }()
	return client, done
}

// A write that is refused has data all the same, as much as its length says. A client that
// does not send it is not waited for without an end, whatever it has announced.
func TestTheDataOfARefusedWriteIsWaitedForForATimeOnly(t *testing.T) {
	for _, n := range []uint32{64 << 20, 1 << 31, 1<<32 - 1} {
		synctest.Test(t, func(t *testing.T) {
			client, done := requestsTo(t, newRAM(1<<20))
			head := (&request{cmd: cmdWrite, handle: 1, n: n}).append(nil)
			if _, err := client.Write(append(head, 1, 2, 3)); err != nil {
				t.Fatal(err)
			}
			select {
			case err := <-done:
				if !isTimeout(err) {
					t.Errorf("%d bytes were announced: %v", n, err)
				}
			case <-time.After(time.Hour):
				t.Errorf("a client that has announced %d bytes is waited for", n)
			}
		})
	}
}

// Memory is taken for the data of a write before it comes. A client that lets it drip gets the
// time of one piece, not that much for each byte.
func TestAWriteThatDripsIsGivenUpAfterTheTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, done := requestsTo(t, newRAM(1<<20))
		client.Write((&request{cmd: cmdWrite, handle: 1, n: 4096}).append(nil))
		begin := time.Now()
		for range 100 {
			select {
			case err := <-done:
				if took := time.Since(begin); !isTimeout(err) || took != time.Second {
					t.Errorf("after %v: %v", took, err)
				}
				return
			case <-time.After(300 * time.Millisecond):
				client.SetWriteDeadline(time.Now().Add(time.Millisecond)) // nobody may read
				client.Write([]byte{1})
			}
		}
		t.Error("the client is waited for")
	})
}
