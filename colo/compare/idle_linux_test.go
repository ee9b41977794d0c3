package compare_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gocolo/lockstep/internal/netns"
	"github.com/gocolo/lockstep/internal/packet"
)

// probes counts the segments on a link that repeat the number before the next one and have no data: a
// stack sends them to hear whether the other end is there, or has room. The link does not run yet.
func probes(l *link) *atomic.Int64 {
	var n atomic.Int64
	var next uint32 // of the end that sends; only the link uses it
	out := l.out
	l.out = func(p []byte) {
		var h packet.Packet
		if h.Parse(p); h.IsTCP() {
			switch s := h.TCP(); {
			case s.Flags()&packet.SYN != 0:
				next = end(s) + 1
			case len(s.Payload()) == 0 && s.Flags()&(packet.FIN|packet.RST) == 0 && s.Seq()+1 == next:
				n.Add(1)
			case later(end(s), next): // and not sent again
				next = end(s)
			}
		}
		out(p)
	}
	return &n
}

// until polls for done.
func until(t *testing.T, what string, done func() bool) {
	t.Helper()
	for begin := time.Now(); !done(); time.Sleep(10 * time.Millisecond) {
		if time.Since(begin) > patience {
			t.Fatalf("%s: never", what)
		}
	}
}

// keepalive has a stack ask after a second whether the other end is there, and again.
var keepalive = net.KeepAliveConfig{Enable: true, Idle: time.Second, Interval: time.Second, Count: 100}

// serveBoth runs a server on both guests.
func serveBoth(t *testing.T, w *world, serve func(c *net.TCPConn)) {
	t.Helper()
	cfg := net.ListenConfig{Control: inline}
	cfg.SetMultipathTCP(false)
	listenOnBoth(t, w, cfg, func(c net.Conn) {
		serve(c.(*net.TCPConn))
		c.Close()
	})
}

// Each connection is one on which little happens, or what seldom does. It goes on without a
// checkpoint, and without the primary.
func TestConnectionsOnWhichLittleHappensAreFoundEqual(t *testing.T) {
	const most = 1 << 20
	for name, c := range map[string]struct {
		serve func(c *net.TCPConn)
		talk  func(t *testing.T, w *world, c *net.TCPConn, probed *atomic.Int64)
	}{
		"the guest asks whether the client is there": {
			func(c *net.TCPConn) {
				c.SetKeepAliveConfig(keepalive)
				serve(c)
			},
			func(t *testing.T, w *world, c *net.TCPConn, probed *atomic.Int64) {
				until(t, "two questions", func() bool { return probed.Load() >= 2 })
				download(t, c, 10_000, 1, func() {})
				w.cutOff(t)
				n := probed.Load()
				until(t, "two questions of the survivor", func() bool { return probed.Load() >= n+2 })
				upload(t, c, 10_000, 2, func() {})
			},
		},
		"the client asks whether the guest is there": {
			func(c *net.TCPConn) { serve(c) },
			func(t *testing.T, w *world, c *net.TCPConn, _ *atomic.Int64) {
				c.SetKeepAliveConfig(keepalive)
				n := w.down.packets()
				until(t, "two answers", func() bool { return w.down.packets() >= n+2 })
				w.cutOff(t)
				n = w.down.packets()
				until(t, "two answers of the survivor", func() bool { return w.down.packets() >= n+2 })
				download(t, c, 10_000, 1, func() {})
			},
		},
		"the client takes nothing for long": {
			func(c *net.TCPConn) { serve(c) },
			func(t *testing.T, w *world, c *net.TCPConn, probed *atomic.Int64) {
				download(t, c, most, 1, func() {
					n := probed.Load()
					until(t, "two questions for room", func() bool { return probed.Load() >= n+2 })
				})
				download(t, c, most, 2, func() {
					w.cutOff(t)
					n := probed.Load()
					until(t, "two questions for room of the survivor", func() bool { return probed.Load() >= n+2 })
				})
			},
		},
		"the client has ended, and the guest goes on for long": {
			func(c *net.TCPConn) {
				io.Copy(io.Discard, c)
				for i := range 40 {
					fmt.Fprintf(c, "line %d\n", i)
					time.Sleep(20 * time.Millisecond)
				}
			},
			func(t *testing.T, w *world, c *net.TCPConn, _ *atomic.Int64) {
				fmt.Fprintln(c, "done")
				c.CloseWrite()
				r := bufio.NewReader(c)
				for i := range 40 {
					if l, err := r.ReadString('\n'); err != nil || l != fmt.Sprintf("line %d\n", i) {
						t.Fatalf("line %d is %q, %v", i, l, err)
					}
					if i == 20 {
						w.cutOff(t)
					}
				}
				if _, err := r.ReadByte(); err != io.EOF {
					t.Errorf("at the end: %v", err)
				}
			},
		},
		"the guest has ended, and the client goes on for long": {
			func(c *net.TCPConn) {
				fmt.Fprintln(c, "done")
				c.CloseWrite()
				io.Copy(io.Discard, c)
			},
			func(t *testing.T, w *world, c *net.TCPConn, _ *atomic.Int64) {
				if b, err := io.ReadAll(c); string(b) != "done\n" || err != nil {
					t.Fatalf("%q, %v", b, err)
				}
				for i := range 40 {
					if _, err := c.Write(make([]byte, 1000)); err != nil {
						t.Fatalf("piece %d: %v", i, err)
					}
					time.Sleep(20 * time.Millisecond)
					if i == 20 {
						w.cutOff(t)
					}
				}
			},
		},
		"urgent data": {
			func(c *net.TCPConn) {
				r := bufio.NewReader(c)
				for {
					l, err := r.ReadString('\n')
					if err != nil {
						return
					}
					fmt.Fprintf(c, "answer to ")
					urge(c, l)
				}
			},
			func(t *testing.T, w *world, c *net.TCPConn, _ *atomic.Int64) {
				r := bufio.NewReader(c)
				for i := range 20 {
					l := fmt.Sprintf("line %d\n", i)
					urge(c, l)
					if got, err := r.ReadString('\n'); err != nil || got != "answer to "+l {
						t.Fatalf("%q is answered %q, %v", l, got, err)
					}
					if i == 10 {
						w.cutOff(t)
					}
				}
			},
		},
	} {
		t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) {
			t.Parallel() // most of the time nothing happens
			var probed *atomic.Int64
			w := newWorldOver(t, func(l *link) {
				l.loss, l.dup, l.late = 0, 0, 0
				probed = probes(l) // that of the second of the two, to the client
			})
			serveBoth(t, w, c.serve)
			conn := w.dialBy(t, net.Dialer{KeepAlive: -1, Control: inline}, "tcp", at(netns.Guest4)).(*net.TCPConn)
			c.talk(t, w, conn, probed)
			w.check(t)
		})
	}
}

// inline has a socket leave urgent data where it is in the stream, and gives it little room for
// what it is sent.
func inline(_, _ string, c syscall.RawConn) error {
	var err error
	cerr := c.Control(func(fd uintptr) {
		err = errors.Join(unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_OOBINLINE, 1),
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 32<<10))
	})
	return errors.Join(err, cerr)
}

// urge sends s, whose last byte is urgent.
func urge(c *net.TCPConn, s string) {
	raw, err := c.SyscallConn()
	if err != nil {
		return
	}
	raw.Write(func(fd uintptr) bool {
		return unix.Sendto(int(fd), []byte(s), unix.MSG_OOB, nil) != unix.EAGAIN
	})
}
