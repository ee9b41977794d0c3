package compare_test

import (
	"fmt"
	"net"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/gocolo/lockstep/internal/netns"
)

// A client uses one port again and again, on which a guest is in TIME-WAIT, or which the client has
// reset; the last connection goes on without the primary.
func TestConnectionsOfOnePortOneAfterTheOther(t *testing.T) {
	for name, end := range map[string]func(t *testing.T, c *net.TCPConn){
		"the guest ends first": func(t *testing.T, c *net.TCPConn) {
			fmt.Fprintln(c, "quit")
			if n, err := c.Read(make([]byte, 1)); n != 0 || err == nil {
				t.Errorf("%d bytes, %v", n, err)
			}
			c.Close()
		},
		"the client resets": func(_ *testing.T, c *net.TCPConn) { c.SetLinger(0); c.Close() },
	} {
		for ip, addr := range map[string]string{"IPv4": netns.Guest4, "IPv6": netns.Guest6} {
			t.Run(name+"/"+ip, func(t *testing.T) {
				w := newWorldOver(t, func(l *link) { l.loss, l.dup, l.late = 0, 0, 0 })
				startServers(t, w)
				dial := func() (c *net.TCPConn) {
					d := net.Dialer{Timeout: patience, LocalAddr: &net.TCPAddr{Port: 6000}}
					until(t, "the client's port is free", func() bool {
						return w.client.Do(func() error {
							conn, err := d.Dial("tcp", at(addr))
							c, _ = conn.(*net.TCPConn)
							return err
						}) == nil
					})
					t.Cleanup(func() { c.Close() })
					return c
				}
				for i := range uint64(10) {
					c := dial()
					download(t, c, 10_000+int64(i), i, func() {})
					upload(t, c, 10_000, i, func() {})
					if i < 9 {
						end(t, c)
						continue
					}
					download(t, c, 1<<20, i, func() { w.cutOff(t) })
					upload(t, c, 100_000, i, func() {})
					end(t, c)
				}
				download(t, dial(), 100_000, 10, func() {})
				w.check(t)
			})
		}
	}
}

// The client and the guests call each other at once (RFC 9293 section 3.5): the SYNs of both guests have
// left before that of the client comes, and the other way round.
func TestBothEndsOpenOneConnection(t *testing.T) {
	for ip, addrs := range map[string][2]string{"IPv4": {netns.Guest4, netns.Client4}, "IPv6": {netns.Guest6, netns.Client6}} {
		t.Run(ip, func(t *testing.T) {
			w := newWorldOver(t, func(l *link) { l.loss, l.dup, l.late, l.delay = 0, 0, 0, time.Second })
			var calling sync.WaitGroup
			conns := &closer{}
			t.Cleanup(calling.Wait)
			t.Cleanup(conns.Close)
			for _, h := range []*netns.Stack{w.primary, w.secondary} {
				calling.Go(func() {
					d := net.Dialer{Timeout: 20 * time.Second, LocalAddr: &net.TCPAddr{Port: 6000}}
					var c net.Conn
					if err := h.Do(func() (err error) { c, err = d.Dial("tcp", at(addrs[1])); return err }); err != nil {
						t.Error(err)
						return
					}
					conns.add(c)
					serve(c)
				})
			}
			until(t, "the guests call", func() bool { return w.down.packets() > 0 })
			d := net.Dialer{LocalAddr: &net.TCPAddr{Port: port}}
			c := w.dialBy(t, d, "tcp", net.JoinHostPort(addrs[0], strconv.Itoa(6000)))
			for _, l := range []*link{w.up, w.down} {
				l.mu.Lock()
				l.delay = 500 * time.Microsecond
				l.mu.Unlock()
			}
			download(t, c, 100_000, 1, func() {})
			download(t, c, 1<<20, 2, func() { w.cutOff(t) })
			upload(t, c, 100_000, 3, func() {})
			w.check(t)
		})
	}
}

// Datagrams that are longer than a packet come and go in fragments.
func TestDatagramsInFragments(t *testing.T) {
	for ip, addr := range map[string]string{"IPv4": netns.Guest4, "IPv6": netns.Guest6} {
		t.Run(ip, func(t *testing.T) {
			w := newWorldOver(t, func(l *link) { l.loss, l.dup, l.late = 0, 0, 0 })
			startServers(t, w)
			u := w.dial(t, "udp", at(addr))
			same := func(got []byte) []byte { return got }
			for i := range 40 {
				b := make([]byte, 1400+i*1000)
				pattern(uint64(i)).Read(b)
				if i == 30 {
					w.cutOff(t)
				}
				exchange(t, u, b, same)
			}
			w.check(t)
		})
	}
}
