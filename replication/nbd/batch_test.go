package nbd

import (
	"bytes"
	"context"
	"encoding/binary"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/replication"
)

// countedConn counts the writes to a connection.
type countedConn struct {
	net.Conn
	mu     sync.Mutex
	writes int
}

func (c *countedConn) Write(p []byte) (int, error) {
	c.mu.Lock()
	c.writes++
	c.mu.Unlock()
	return c.Conn.Write(p)
}

func (c *countedConn) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.writes
}

// rawSession serves d to a client that speaks for itself. It returns both ends of the
// connection, and is over at the end of the test.
func rawSession(t *testing.T, d Disk) (client net.Conn, server *countedConn) {
	t.Helper()
	return rawSessionOf(t, NewServer(ServerConfig{}), d)
}

// rawSessionOf is rawSession of a server.
func rawSessionOf(t *testing.T, srv *Server, d Disk) (client net.Conn, server *countedConn) {
	t.Helper()
	e, err := srv.Export(ExportConfig{Disk: d})
	if err != nil {
		t.Fatal(err)
	}
	client, conn := net.Pipe()
	server = &countedConn{Conn: conn}
	l := &link{Conn: server, gone: make(chan struct{})}
	done := make(chan error, 1)
	go func() { done <- serveRequests(e, &negotiation{srv: srv, raw: l, conn: server, r: newReader(server)}) }()
	t.Cleanup(func() {
		client.Close()
		if err := <-done; err != nil {
			t.Errorf("the session ended with %v", err)
		}
		l.Close()
	})
	return client, server
}

// heads returns requests, one after the other, with data if they are writes.
func heads(all ...request) (p []byte) {
	for _, r := range all {
		p = r.append(p)
		if r.cmd == cmdWrite {
			p = append(p, make([]byte, r.n)...)
		}
	}
	return p
}

// write returns a write of a block, whose handle is its place.
func write(block uint64) request {
	return request{cmd: cmdWrite, handle: block, off: block * 512, n: 512}
}

// answersOf reads so many simple answers, none of which is an error, and returns the handles.
func answersOf(t *testing.T, c net.Conn, n int) (handles []uint64) {
	t.Helper()
	var head [replyLen]byte
	for range n {
		if err := readFull(c, head[:]); err != nil {
			t.Fatal(err)
		}
		errno, handle := binary.BigEndian.Uint32(head[4:]), binary.BigEndian.Uint64(head[8:])
		if errno != 0 {
			t.Fatalf("request %d failed with %d", handle, errno)
		}
		handles = append(handles, handle)
	}
	return handles
}

// warm has a session find that its disk is quick.
func warm(t *testing.T, c net.Conn) {
	t.Helper()
	for range 64 {
		c.Write(heads(write(0)))
		answersOf(t, c, 1)
	}
}

func TestRequestsThatComeTogetherAreAnsweredTogetherByAQuickDisk(t *testing.T) {
	for name, test := range map[string]struct {
		takes time.Duration // of a write
		sends int           // writes of the server
	}{
		"that takes no time":   {0, 1},
		"that takes a moment":  {quick, 2}, // four fit into together
		"whose moment is long": {quick - time.Microsecond, 2},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				client, server := warmSession(t, test.takes)
				before := server.count()
				sendWrites(client, 8)
				time.Sleep(time.Second)
				answersOf(t, client, 8)
				if n := server.count() - before; n != test.sends {
					t.Errorf("answered with %d writes, want %d", n, test.sends)
				}
			})
		})
	}
}

// A disk that waits for a device or another host has all requests at the same time.
func TestRequestsThatComeTogetherAreServedAtOnceByASlowDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const takes = 2 * quick
		client, _ := warmSession(t, takes)
		begin := time.Now()
		sendWrites(client, 8)
		answersOf(t, client, 8)
		if took := time.Since(begin); took != takes {
			t.Errorf("8 requests that take %v each took %v", takes, took)
		}
	})
}

// warmSession returns a session whose disk takes so long for a write, and knows it.
func warmSession(t *testing.T, takes time.Duration) (net.Conn, *countedConn) {
	d := newRAM(1 << 20)
	d.hook = func(string, int64) error { time.Sleep(takes); return nil }
	client, server := rawSession(t, d)
	warm(t, client)
	return client, server
}

// sendWrites sends so many writes with one system call.
func sendWrites(c net.Conn, n uint64) {
	var all []request
	for i := range n {
		all = append(all, write(i))
	}
	c.Write(heads(all...))
}

// A disk that was quick waits for something else, as that of a guest does whose overlay is
// full: what was answered before is not kept back, and what comes after is served.
func TestAWriteThatWaitsKeepsNothingElseWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newRAM(1 << 20)
		free := make(chan struct{})
		d.hook = func(op string, off int64) error {
			if off == 2*512 {
				<-free
			}
			return nil
		}
		client, _ := rawSession(t, d)
		warm(t, client)
		client.Write(heads(write(1), write(2), write(3), request{cmd: cmdFlush, handle: 4}, write(5)))
		begin := time.Now()
		got := map[uint64]bool{}
		for _, h := range answersOf(t, client, 4) {
			got[h] = true
		}
		if took := time.Since(begin); took > keepTurn || !got[1] || !got[3] || !got[4] || !got[5] {
			t.Errorf("answered after %v: %v", took, got)
		}
		close(free)
		if h := answersOf(t, client, 1); h[0] != 2 {
			t.Errorf("the last answer is that to %d", h[0])
		}
		client.Write(heads(write(6), write(7))) // the session is as before
		answersOf(t, client, 2)
	})
}

// A request that has come in part does not keep back the answers to those before it.
func TestHalfARequestKeepsNoAnswerBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, _ := rawSession(t, newRAM(1<<20))
		warm(t, client)
		two := heads(write(1), write(2))
		client.Write(two[:len(two)-1])
		if h := answersOf(t, client, 1); h[0] != 1 {
			t.Errorf("the answer is that to %d", h[0])
		}
		client.Write(two[len(two)-1:])
		answersOf(t, client, 1)
	})
}

// What is read together with others counts as what its session has, like what is read alone.
func TestRequestsThatComeTogetherAreOfNoMoreBytesThanASessionMayHave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const most = 2 * copied
		held, free := int64(1<<19), make(chan struct{})
		var begun []int64
		var mu sync.Mutex
		d := newRAM(1 << 20)
		d.hook = func(op string, off int64) error {
			mu.Lock()
			begun = append(begun, off)
			mu.Unlock()
			if off == held {
				<-free
			}
			return nil
		}
		client, _ := rawSessionOf(t, NewServer(ServerConfig{MaxRequest: most, MaxBytes: most}), d)
		warm(t, client)
		client.Write(heads(request{cmd: cmdRead, handle: 1, off: uint64(held), n: most - copied/2}))
		synctest.Wait()
		begun = nil
		// There is room for the first of these, and then not for the second.
		client.Write(heads(
			request{cmd: cmdRead, handle: 2, off: 4096, n: copied / 4},
			request{cmd: cmdRead, handle: 3, off: 8192, n: copied},
		))
		synctest.Wait()
		if len(begun) != 1 || begun[0] != 4096 {
			t.Errorf("beside %d bytes, of %d, the disk has reads at %v, want that at 4096", most-copied/2, most, begun)
		}
		close(free)
		var got int
		for p := make([]byte, most); got < 3*replyLen+most-copied/2+copied/4+copied; {
			n, err := client.Read(p)
			if err != nil {
				t.Fatal(err)
			}
			got += n
		}
		if len(begun) != 2 || begun[1] != 8192 {
			t.Errorf("then it has them at %v", begun)
		}
	})
}

// What is read together with others takes no memory that somebody else waits for.
func TestTryTakesOnlyMemoryThatIsFree(t *testing.T) {
	m := newMemory(2*smallest, smallest)
	var held [][]byte
	for {
		p, ok := m.try(100)
		if !ok {
			break
		}
		held = append(held, p)
	}
	if len(held) != 2 {
		t.Fatalf("%d buffers, of 2", len(held))
	}
	m.put(held[0])
	if _, ok := m.try(100); !ok {
		t.Error("no buffer, although one was given back")
	}
}

// Writes that a client may keep leave when there is no answer to come that would send them,
// when they are many, and when somebody waits for them.
func TestPostedWritesLeaveTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var served sync.WaitGroup
		ours, theirs := net.Pipe()
		d, hold := newRAM(1<<20), make(chan struct{})
		d.hook = func(op string, off int64) error { <-hold; return nil }
		srv := NewServer(ServerConfig{})
		if _, err := srv.Export(ExportConfig{Disk: d}); err != nil {
			t.Fatal(err)
		}
		served.Go(func() { srv.ServeConn(context.Background(), theirs) })
		conn := &countedConn{Conn: ours}
		c, err := NewClient(context.Background(), conn, ClientConfig{})
		if err != nil {
			t.Fatal(err)
		}
		defer served.Wait()
		defer c.Close()
		var _ replication.Pusher = c
		answered := 0
		start := func(n int) (writes int) {
			before := conn.count()
			for range n {
				c.StartWrite(make([]byte, 512), 0, false, func(err error) {
					if err != nil {
						t.Error(err)
					}
					answered++
				})
			}
			synctest.Wait()
			return conn.count() - before
		}
		if n := start(1); n != 1 {
			t.Errorf("the first left with %d writes", n)
		}
		if n := start(mostPosted - 1); n != 0 {
			t.Errorf("%d writes although an answer is to come", n)
		}
		if n := start(1); n != 1 {
			t.Errorf("many left with %d writes", n)
		}
		if n := start(2); n != 0 {
			t.Errorf("%d writes although answers are to come", n)
		}
		before := conn.count()
		c.Push()
		synctest.Wait()
		if n := conn.count() - before; n != 1 {
			t.Errorf("pushed with %d writes", n)
		}
		before = conn.count()
		c.StartZeroes(0, 512, false, func(err error) {
			if err != nil {
				t.Error(err)
			}
			answered++
		})
		synctest.Wait()
		if n := conn.count() - before; n != 1 {
			t.Errorf("zeroes, which are not kept, left with %d writes", n)
		}
		start(3)
		before = conn.count()
		close(hold)
		for answered < 1+mostPosted+2+1+3 {
			if err := c.Progress(context.Background()); err != nil {
				t.Fatal(err)
			}
		}
		if n := conn.count() - before; n != 1 {
			t.Errorf("after the answers, the rest left with %d writes", n)
		}
	})
}

// A worker whose turn was passed on while it served flushes its answers while another worker
// keeps the turn: that one still has it, or nobody would read any more.
func TestAWorkerThatHasLostItsTurnLeavesThatOfAnother(t *testing.T) {
	var k kept
	k.init(nil)
	defer k.late.Stop()
	k.begin(true)
	if !k.end() {
		t.Fatal("the turn was not kept")
	}
	k.begin(true) // another worker's
	k.begin(false)
	if !k.end() {
		t.Error("the turn is nobody's")
	}
}

// A worker may be delayed between two requests, when it has the turn and does not keep it. The
// timer that comes then does nothing, and has to come again for the next request, or one that
// lasts would keep all others waiting.
func TestATurnIsPassedOnThoughTheTimerHasComeBetweenTwoRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var k kept
		var passed atomic.Int32
		k.init(func() { passed.Add(1) })
		defer k.late.Stop()
		k.late.Reset(keepTurn)
		k.begin(true)
		if !k.end() {
			t.Fatal("the turn was not kept")
		}
		time.Sleep(2 * keepTurn)
		if passed.Load() != 0 {
			t.Fatal("a turn was passed on that its worker had")
		}
		k.begin(true) // a request that lasts
		time.Sleep(2 * keepTurn)
		if passed.Load() != 1 || k.end() {
			t.Errorf("the turn was passed on %d times", passed.Load())
		}
	})
}

// A client that asks for much and takes nothing must not have the answers pile up: while a
// worker waits for it to take some, the others answer no more than what one system call sends,
// and then wait too.
func TestAnswersThatNobodyTakesDoNotPileUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := NewServer(ServerConfig{MaxRequests: 4})
		e, err := srv.Export(ExportConfig{Disk: newRAM(1 << 20)})
		must(t, err)
		client, conn := net.Pipe()
		l := &link{Conn: conn, gone: make(chan struct{})}
		s := newSession(e, &negotiation{srv: srv, raw: l, conn: conn, r: newReader(conn)})
		done := make(chan error, 1)
		go func() { done <- s.run() }()
		warm(t, client)
		const asked = 1000
		var all []request
		for i := range asked {
			all = append(all, request{cmd: cmdRead, handle: uint64(i), n: copied})
		}
		var wg sync.WaitGroup
		wg.Go(func() { client.Write(heads(all...)) })
		time.Sleep(time.Second)
		s.out.mu.Lock()
		n := len(s.out.pending)
		s.out.mu.Unlock()
		if most := maxPending + 4*mostTogether*(replyLen+copied); n > most {
			t.Errorf("%d bytes of answers wait, more than %d", n, most)
		}
		client.Close()
		wg.Wait()
		<-done
		l.Close()
	})
}

// Where a request that has come finds no memory, it is read later, and counts then.
func TestARequestThatFindsNoMemoryDoesNotCount(t *testing.T) {
	srv := NewServer(ServerConfig{})
	srv.memory = newMemory(smallest, smallest)
	e, err := srv.Export(ExportConfig{Disk: newRAM(1 << 20)})
	must(t, err)
	server, client := net.Pipe()
	defer server.Close()
	defer client.Close()
	r := newReader(server)
	s := newSession(e, &negotiation{srv: srv, raw: &link{Conn: server}, conn: server, r: r})
	r.reset(bytes.NewReader(heads(request{cmd: cmdRead, handle: 1, n: 512})))
	must(t, func() error { _, err := r.Peek(requestLen); return err }())
	held, ok := srv.memory.try(smallest)
	if !ok {
		t.Fatal("there is no memory to be taken")
	}
	var next taken
	if s.another(&next) || s.bytes != 0 {
		t.Errorf("without memory a request was read, or counts: %d bytes", s.bytes)
	}
	srv.memory.put(held)
	if !s.another(&next) || s.bytes != 512 {
		t.Errorf("with memory it was not, or counts %d bytes", s.bytes)
	}
}
