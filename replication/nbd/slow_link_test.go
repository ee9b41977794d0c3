package nbd

import (
	"context"
	"io"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// slowLink is one end of a link that takes its time for what is sent, and can lose all of it.
type slowLink struct {
	net.Conn
	perKiB time.Duration
	lost   *lossOf
}

// lossOf is what becomes of what is sent over a link.
type lossOf struct {
	mu       sync.Mutex
	stopped  bool // nothing is taken any more
	swallows bool // all is taken, as by a kernel with room, and does not arrive
	closed   chan struct{}
}

func (l *lossOf) set(stopped, swallows bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stopped, l.swallows = stopped, swallows
}

func (l *slowLink) Write(p []byte) (n int, err error) {
	for n < len(p) {
		l.lost.mu.Lock()
		stopped, swallows := l.lost.stopped, l.lost.swallows
		l.lost.mu.Unlock()
		switch {
		case swallows:
			return len(p), nil
		case stopped:
			<-l.lost.closed
			return n, net.ErrClosed
		}
		k := min(len(p)-n, 1<<10)
		time.Sleep(l.perKiB * time.Duration(k) >> 10)
		m, err := l.Conn.Write(p[n : n+k])
		n += m
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

func (l *slowLink) Close() error {
	l.lost.mu.Lock()
	select {
	case <-l.lost.closed:
	default:
		close(l.lost.closed)
	}
	l.lost.mu.Unlock()
	return l.Conn.Close()
}

// overASlowLink runs f with a client and a disk whose link moves a KiB in each direction in so
// long, and what loses it.
func overASlowLink(t *testing.T, timeout, perKiB time.Duration, f func(t *testing.T, c *Client, disk *ram, lost *lossOf)) {
	synctest.Test(t, func(t *testing.T) {
		disk := newRAM(8 << 20)
		srv := NewServer(ServerConfig{Timeout: timeout})
		_, err := srv.Export(ExportConfig{Disk: disk})
		must(t, err)
		a, b := net.Pipe()
		near := &slowLink{a, perKiB, &lossOf{closed: make(chan struct{})}}
		far := &slowLink{b, perKiB, &lossOf{closed: make(chan struct{})}}
		var wg sync.WaitGroup
		defer wg.Wait()
		wg.Go(func() { srv.ServeConn(context.Background(), far) })
		c, err := NewClient(context.Background(), near, ClientConfig{Timeout: timeout})
		must(t, err)
		defer c.Close()
		f(t, c, disk, near.lost)
	})
}

// A link that moves a KiB in 8 ms, a megabit a second, takes a minute for what is asked for at
// once here, and twelve times as long as the other side may be silent.
func TestASlowLinkIsNotTakenForALostOne(t *testing.T) {
	const timeout = 5 * time.Second
	overASlowLink(t, timeout, 8*time.Millisecond, func(t *testing.T, c *Client, disk *ram, _ *lossOf) {
		begin := time.Now()
		ctx, cancel := context.WithCancel(t.Context())
		var run, wg sync.WaitGroup
		defer run.Wait()
		defer cancel()
		run.Go(func() { // takes the answers, for which a pipe has no room
			for c.Progress(ctx) == nil {
			}
		})
		for i := range int64(64) { // queued at once
			wg.Add(1)
			c.StartWrite(make([]byte, 16<<10), i<<14, i%8 == 0, func(err error) {
				defer wg.Done()
				if err != nil {
					t.Errorf("write %d: %v, after %v", i, err, time.Since(begin))
				}
			})
		}
		c.Push()
		must(t, c.Sync())
		wg.Wait()
		p := make([]byte, 2<<20)
		p[len(p)-1] = 7
		if _, err := c.WriteAt(p, 4<<20); err != nil { // one request, of more than a timeout
			t.Fatalf("a large write: %v, after %v", err, time.Since(begin))
		}
		if _, err := c.ReadAt(p, 4<<20); err != nil || p[len(p)-1] != 7 {
			t.Fatalf("a large read: %v, after %v", err, time.Since(begin))
		}
		if d := time.Since(begin); d < 8*timeout {
			t.Errorf("all of it took %v, and could not be taken for lost", d)
		}
	})
}

// A link that is lost is noticed within the timeout, and an eighth of it, of the last byte that
// moved: when nothing more is taken, in the middle of a write, and when the kernel takes all
// that the guest writes meanwhile.
func TestALostLinkIsNoticedThoughItTakesWhatIsSent(t *testing.T) {
	const timeout = 8 * time.Second
	for name, swallows := range map[string]bool{"stops": false, "swallows": true} {
		t.Run(name, func(t *testing.T) {
			overASlowLink(t, timeout, 8*time.Millisecond, func(t *testing.T, c *Client, _ *ram, lost *lossOf) {
				must(t, c.Sync())
				lost.set(!swallows, swallows)
				begin := time.Now()
				p := make([]byte, 4096)
				for c.Err() == nil && time.Since(begin) < time.Minute {
					go c.WriteAt(p, 0)
					time.Sleep(time.Second / 3)
				}
				d := time.Since(begin)
				wantErr(t, "the link", c.Err(), ErrTimeout)
				if d < timeout || d > timeout+timeout/looks+time.Second/3 {
					t.Errorf("noticed after %v", d)
				}
			})
		})
	}
}

// Where the kernel says what has moved, that is what the other side has, and not what the
// kernel has.
func TestTheKernelTellsWhatHasArrived(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	must(t, err)
	defer c.Close()
	far, err := l.Accept()
	must(t, err)
	defer far.Close()
	moved := bytesMoved(c)
	if moved == nil {
		t.Skip("the kernel is not asked on this system")
	}
	before, _ := moved()
	const n = 1000
	_, err = c.Write(make([]byte, n))
	must(t, err)
	_, err = io.ReadFull(far, make([]byte, n))
	must(t, err)
	_, err = far.Write([]byte{1}) // acknowledges what has come
	must(t, err)
	_, err = c.Read(make([]byte, 1))
	must(t, err)
	if after, ok := moved(); !ok || after-before != n+1 {
		t.Errorf("%d bytes have moved, want %d", after-before, n+1)
	}
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	if bytesMoved(a) != nil {
		t.Error("a pipe has no kernel to ask")
	}
}
