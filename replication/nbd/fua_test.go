package nbd

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// plainServer speaks NBD as a simple server does: by name, without FUA, and one
// request after the other over conn, which need not buffer anything. It stops
// at the first request for which step returns an error, and answers with the
// errno that step returns otherwise.
func plainServer(conn net.Conn, step func(*request) (errno uint32, stop error)) error {
	defer conn.Close()
	n := &negotiation{
		srv: NewServer(ServerConfig{}), raw: &link{Conn: conn, gone: make(chan struct{})}, conn: conn,
	}
	if _, err := n.srv.Export(ExportConfig{Disk: newRAM(1 << 20)}); err != nil {
		return err
	}
	if _, err := n.run(); err != nil {
		return err
	}
	defer n.leave()
	var head [requestLen]byte
	for {
		if err := readFull(n.r, head[:]); err != nil {
			return err
		}
		var req request
		if err := req.parse(head[:]); err != nil {
			return err
		}
		switch req.cmd {
		case cmdDisc:
			return nil
		case cmdWrite:
			if _, err := io.CopyN(io.Discard, n.r, int64(req.n)); err != nil {
				return err
			}
		}
		errno, err := step(&req)
		if err != nil {
			return err
		}
		if _, err := conn.Write(appendReply(nil, errno, req.handle)); err != nil {
			return err
		}
	}
}

// throughClient returns a client of a plainServer that does not know FUA, over
// a pipe that buffers nothing, and what ends both.
func throughClient(t *testing.T, slots int, step func(*request) (uint32, error)) (c *Client, end func()) {
	t.Helper()
	a, b := net.Pipe()
	var wg sync.WaitGroup
	wg.Go(func() { plainServer(b, step) })
	c, err := NewClient(context.Background(), a, ClientConfig{MaxRequests: slots, Timeout: 5 * time.Second})
	must(t, err)
	c.info.FUA = false
	ctx, cancel := context.WithCancel(context.Background())
	wg.Go(func() {
		for c.Progress(ctx) == nil {
		}
	})
	return c, func() { cancel(); c.Close(); wg.Wait() }
}

// stableWrites counts the writes that are told to be stable.
type stableWrites struct{ atomic.Int64 }

func (n *stableWrites) done(t *testing.T) func(error) {
	return func(err error) {
		must(t, err)
		n.Add(1)
	}
}

// now returns the count once nothing moves any more.
func (n *stableWrites) now() int64 {
	synctest.Wait()
	return n.Load()
}

func TestWritesThroughNeedNoSlotForTheFlush(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		writes, flushes := 0, 0
		c, end := throughClient(t, 4, func(r *request) (uint32, error) {
			if r.cmd == cmdFlush {
				flushes++
			} else {
				writes++
			}
			return 0, nil
		})
		var wg sync.WaitGroup
		for w := range int64(32) {
			wg.Go(func() {
				for i := range int64(10) {
					done := make(chan error, 1)
					if i%2 == 0 {
						c.StartWrite(make([]byte, 512), w*4096+i, true, func(err error) { done <- err })
					} else {
						c.StartZeroes(w*4096+i, 512, true, func(err error) { done <- err })
					}
					if err := <-done; err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		end()
		if writes != 320 || flushes == 0 || flushes > writes {
			t.Errorf("%d writes and %d flushes", writes, flushes)
		}
	})
}

func TestAFlushCoversOnlyWhatWasAnsweredBeforeItWasSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hold := make(chan struct{})
		var log []uint16
		c, end := throughClient(t, 8, func(r *request) (uint32, error) {
			log = append(log, r.cmd)
			if r.cmd == cmdFlush {
				<-hold
			}
			return 0, nil
		})
		var stable stableWrites
		done := stable.done(t)
		c.StartWrite([]byte{1}, 0, true, done)
		synctest.Wait() // the flush for it is there
		go c.StartWrite([]byte{2}, 1, true, done)
		if n := stable.now(); n != 0 {
			t.Fatalf("%d writes are stable before any flush", n)
		}
		hold <- struct{}{}
		if n := stable.now(); n != 1 {
			t.Errorf("%d writes are stable after the first flush, want the first", n)
		}
		hold <- struct{}{}
		if n := stable.now(); n != 2 {
			t.Errorf("%d writes are stable after the second flush", n)
		}
		if len(log) != 4 || log[1] != cmdFlush || log[3] != cmdFlush {
			t.Errorf("the server was asked %v", log)
		}
		end()
	})
}

// The flush is on its way to the server, behind the second write, when that is answered.
func TestAFlushDoesNotCoverWhatIsAnsweredWhileItIsUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hold := make(chan struct{})
		c, end := throughClient(t, 8, func(*request) (uint32, error) {
			<-hold
			return 0, nil
		})
		var stable stableWrites
		done := stable.done(t)
		go c.StartWrite([]byte{1}, 0, true, done)
		synctest.Wait()
		go c.StartWrite([]byte{2}, 1, true, done)
		synctest.Wait()
		for i, want := range []int64{0, 0, 1, 2} { // the answers to both writes, and to two flushes
			hold <- struct{}{}
			if n := stable.now(); n != want {
				t.Errorf("%d writes are stable after answer %d, want %d", n, i+1, want)
			}
		}
		end()
	})
}

func TestWritesThroughFailWithTheirFlush(t *testing.T) {
	gone := errors.New("gone")
	for name, tc := range map[string]struct {
		errno uint32
		stop  error
		want  error
	}{
		"refused":   {28, nil, syscall.ENOSPC},
		"link lost": {0, gone, nil},
	} {
		synctest.Test(t, func(t *testing.T) {
			c, end := throughClient(t, 2, func(r *request) (uint32, error) {
				if r.cmd == cmdFlush {
					return tc.errno, tc.stop
				}
				return 0, nil
			})
			for i := range int64(5) {
				done := make(chan error, 1)
				c.StartWrite([]byte{1}, i, true, func(err error) { done <- err })
				if err := <-done; err == nil || tc.want != nil && !errors.Is(err, tc.want) {
					t.Errorf("%s: write %d: %v", name, i, err)
				}
			}
			end()
		})
	}
}

func TestCloseTellsWhoWaitsForAFlush(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hold := make(chan struct{})
		c, end := throughClient(t, 4, func(r *request) (uint32, error) {
			if r.cmd == cmdFlush {
				<-hold
			}
			return 0, nil
		})
		errs := make(chan error, 3)
		for i := range int64(3) {
			go c.StartWrite([]byte{1}, i, true, func(err error) { errs <- err })
		}
		synctest.Wait()
		must(t, c.Close())
		for range 3 {
			wantErr(t, "a write through", <-errs, ErrClosed)
		}
		close(hold)
		end()
	})
}

func TestWritesThroughWithoutAFlushAreRefusedBeforeTheyAreSent(t *testing.T) {
	disk := newRAM(4096)
	_, _, path := serve(t, ServerConfig{}, ExportConfig{Disk: disk})
	c := dial(t, path, ClientConfig{})
	c.info.FUA, c.info.Flush = false, false
	refused := func(err error) { wantErr(t, "no flush", err, errors.ErrUnsupported) }
	c.StartWrite([]byte{1}, 0, true, refused)
	c.StartZeroes(0, 1, true, refused)
	refused(c.WriteFUA([]byte{1}, 0))
	if disk.data[0] != 0 {
		t.Error("written all the same")
	}
}
