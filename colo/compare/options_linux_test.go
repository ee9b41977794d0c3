package compare_test

import (
	"context"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/gocolo/lockstep/colo/compare"
	"github.com/gocolo/lockstep/colo/filter/tap"
	"github.com/gocolo/lockstep/internal/netns"
	"github.com/gocolo/lockstep/internal/require"
)

// Two guests answer a client, or call it, and agree upon other things in their SYNs. None of the two
// leaves before a checkpoint, which is asked for; and if the primary's host dies instead, the client
// gets what the survivor has said. Connections from before go on meanwhile.
func TestSYNsThatDifferWaitForTheCheckpointOrTheSurvivor(t *testing.T) {
	off := func(name string) settings { return settings{"ipv4/" + name: "0"} }
	for name, c := range map[string]struct {
		primary, secondary settings
		multipath          bool
		usual              bool // it is tried each time
	}{
		"greatest segments":         {secondary: settings{"mtu": "1400"}, usual: true},
		"greatest segments, longer": {secondary: settings{"mtu": "9000"}},
		"no scale":                  {primary: off("tcp_window_scaling")},
		"another scale":             {secondary: settings{"ipv4/tcp_rmem": "4096 131072 536870912"}},
		"no selective acks":         {secondary: off("tcp_sack")},
		"no timestamps":             {secondary: off("tcp_timestamps")},
		"timestamps of one":         {primary: off("tcp_timestamps")},
		"marks of congestion":       {primary: settings{"ipv4/tcp_ecn": "1"}, secondary: settings{"ipv4/tcp_ecn": "0"}},
		"Multipath TCP":             {multipath: true, usual: true},
	} {
		for _, called := range []bool{true, false} {
			way := "guests call"
			if called {
				way = "guests are called"
			}
			t.Run(strings.ReplaceAll(name+"/"+way, " ", "_"), func(t *testing.T) {
				if !c.usual && !require.Wanted(require.NetNS) {
					t.Skip("with LOCKSTEP_REQUIRE=netns each of the options")
				}
				t.Parallel() // most of the time they wait
				w := newWorldOf(t, tap.Config{}, 1<<31+12345, func(l *link) { l.loss, l.dup, l.late = 0, 0, 0 })
				settings{"ipv4/tcp_ecn": "1"}.apply(t, w.client)
				if c.multipath {
					for _, h := range []*netns.Stack{w.client, w.primary, w.secondary} {
						settings{"mptcp/enabled": "1"}.apply(t, h)
					}
				}
				startServers(t, w)
				before := w.dial(t, "tcp", at(netns.Guest4))
				download(t, before, 10_000, 1, func() {})
				c.primary.apply(t, w.primary)
				c.secondary.apply(t, w.secondary)

				var d net.Dialer
				d.SetMultipathTCP(c.multipath)
				dialed := make(chan net.Conn, 1)
				var dialing sync.WaitGroup
				defer dialing.Wait()
				if called {
					dialing.Go(func() {
						d.Timeout = patience
						var conn net.Conn
						if err := w.client.Do(func() (err error) { conn, err = d.Dial("tcp", at(netns.Guest4)); return err }); err != nil {
							t.Error(err)
						}
						dialed <- conn
					})
				} else {
					callClient(t, w, d, dialed, &dialing)
				}
				until(t, "a checkpoint is asked for", func() bool {
					w.mu.Lock()
					defer w.mu.Unlock()
					return len(w.reasons) > 0
				})
				download(t, before, 100_000, 2, func() {})
				upload(t, before, 100_000, 3, func() {})
				select {
				case <-dialed:
					t.Fatal("the connection was opened without a checkpoint")
				default:
				}
				w.mu.Lock()
				if i := slices.IndexFunc(w.reasons, func(r compare.Reason) bool { return r != compare.ReasonOptions }); i >= 0 {
					t.Errorf("checkpoints were asked for because of %v", w.reasons)
				}
				w.reasons = nil
				w.mu.Unlock()
				w.cutOff(t)
				conn := <-dialed
				if conn == nil {
					t.FailNow()
				}
				defer conn.Close()
				// A stack that has waited for long asks without Multipath TCP.
				if used, err := conn.(*net.TCPConn).MultipathTCP(); used && !c.multipath || err != nil {
					t.Errorf("the connection uses Multipath TCP: %t, %v", used, err)
				}
				for _, conn := range []net.Conn{conn, before} {
					download(t, conn, 100_000, 4, func() {})
					upload(t, conn, 100_000, 5, func() {})
				}
				w.check(t)
			})
		}
	}
}

// callClient has both guests call the client, and serve the connection.
func callClient(t *testing.T, w *world, d net.Dialer, dialed chan<- net.Conn, dialing *sync.WaitGroup) {
	t.Helper()
	var l net.Listener
	w.client.In(t, func() (err error) {
		l, err = net.Listen("tcp", ":"+strconv.Itoa(port))
		return err
	})
	conns := &closer{}
	t.Cleanup(func() { l.Close(); conns.Close() })
	dialing.Go(func() {
		conn, err := l.Accept()
		if err != nil {
			t.Error(err)
		}
		dialed <- conn
	})
	var serving sync.WaitGroup
	t.Cleanup(serving.Wait)
	t.Cleanup(conns.Close)
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)                      // the primary, which is taken away, goes on calling
	d.LocalAddr = &net.TCPAddr{Port: 6000} // a guest's random numbers are its twin's, and so is the port
	for _, h := range []*netns.Stack{w.primary, w.secondary} {
		serving.Go(func() {
			var conn net.Conn
			if err := h.Do(func() (err error) { conn, err = d.DialContext(ctx, "tcp", at(netns.Client4)); return err }); err != nil {
				if h != w.primary {
					t.Error(err)
				}
				return
			}
			conns.add(conn)
			serve(conn)
		})
	}
}
