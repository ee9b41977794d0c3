package nbd

import (
	"context"
	"fmt"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// haltingConn is a connection that, once armed, stops in the middle of what it sends next.
type haltingConn struct {
	net.Conn
	mu    sync.Mutex
	armed int           // bytes that pass before the halt; 0: no halt
	goOn  chan struct{} // closed when the rest may follow
}

func (h *haltingConn) arm(passes int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.armed = passes
}

func (h *haltingConn) Write(p []byte) (int, error) {
	h.mu.Lock()
	at := min(h.armed, len(p))
	h.armed = 0
	h.mu.Unlock()
	if at == 0 {
		return h.Conn.Write(p)
	}
	n, err := h.Conn.Write(p[:at])
	if err != nil {
		return n, err
	}
	<-h.goOn
	m, err := h.Conn.Write(p[at:])
	return n + m, err
}

// Who waits for answers with a context, for a moment only, does not cut off an answer that
// is on its way by then: neither its data nor the rest of the head of a chunk.
func TestTheEndOfAProgressCutsNoAnswerOff(t *testing.T) {
	for _, passes := range []int{replyLen, replyLen + 2, chunkLen, chunkLen + 8 + 100} {
		t.Run(fmt.Sprintf("after %d bytes", passes), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				disk := newRAM(1 << 20)
				disk.data[4095] = 7
				srv := NewServer(ServerConfig{})
				_, err := srv.Export(ExportConfig{Disk: disk})
				must(t, err)
				a, b := net.Pipe()
				slow := &haltingConn{Conn: b, goOn: make(chan struct{})}
				var wg sync.WaitGroup
				defer wg.Wait()
				wg.Go(func() { srv.ServeConn(context.Background(), slow) })
				c, err := NewClient(context.Background(), a, ClientConfig{})
				must(t, err)
				defer c.Close()
				slow.arm(passes)

				ctx, cancel := context.WithCancel(context.Background())
				progress, read := make(chan error, 1), make(chan error, 1)
				go func() { progress <- c.Progress(ctx) }()
				synctest.Wait() // it waits for answers for all
				p := make([]byte, 4096)
				go func() { _, err := c.ReadAt(p, 0); read <- err }()
				synctest.Wait() // the first half of the answer is there
				cancel()
				synctest.Wait()
				close(slow.goOn)
				if err := <-read; err != nil || p[4095] != 7 {
					t.Errorf("the read: %v, its last byte %d", err, p[4095])
				}
				<-progress
				must(t, c.Err())
			})
		})
	}
}

// A host whose power is gone answers no SYN, and the kernel asks again for two minutes.
func TestAHostThatDoesNotAnswerIsGivenUpInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		silent := func(ctx context.Context, _, _ string) (net.Conn, error) {
			<-ctx.Done()
			return nil, &net.OpError{Op: "dial", Err: ctx.Err()}
		}
		begin := time.Now()
		_, err := dialBy(context.Background(), silent, "tcp", "host:10809", ClientConfig{Timeout: 5 * time.Second})
		wantErr(t, "a silent host", err, ErrTimeout)
		if d := time.Since(begin); d != 5*time.Second {
			t.Errorf("after %v", d)
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_, err = dialBy(ctx, silent, "tcp", "host:10809", ClientConfig{Timeout: 5 * time.Second})
		wantErr(t, "a caller with less patience", err, context.DeadlineExceeded)
	})
}
