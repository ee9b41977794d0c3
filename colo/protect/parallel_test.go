package protect

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/internal/require"
)

// A link that is far away costs a pair two connections' time, however many it has.
func TestConnectionsAreMadeSideBySide(t *testing.T) {
	const there, making = 25 * time.Millisecond, 50 * time.Millisecond
	for name, memory := range map[string]int{"few": 0, "many": 9} {
		bubble(t, name, func(t *testing.T, w *world) {
			w.disks, w.channels = memory > 0, memory
			if w.disks {
				w.names = []string{"a", "b"}
			}
			w.f.ways = newWays(w.newest, func() time.Duration { return there })
			w.f.ways.takes = func() time.Duration { return making }
			more := func(c *Config) { c.Channels.Count = memory }
			b := w.boot("b", false, more)
			b.is(Waiting)
			begin := time.Now()
			a := w.boot("a", true, more)
			a.is(Synchronising)
			if took := time.Since(begin); took != 2*(making+2*there) {
				t.Errorf("%d connections took %v", 3+len(a.job.channels)+memory, took)
			}
			a.is(Protected)
			a.halt()
			b.halt()
		})
	}
}

// A connection of a pair that is not made, or ends while the two greet each other, takes
// the others along: none is open when the next pair is begun.
func TestAConnectionThatFailsTakesItsPairAlong(t *testing.T) {
	const connections = 3 + channelsOfDisk + 4
	ways := []string{"is not made", "ends", "says nothing", "never comes about"}
	for at := range int64(connections) {
		for i, how := range ways {
			if n := require.Many[int64](7, 2, 1); (at+int64(i)*(n/2))%n > 0 { // with few of them, each way fails elsewhere
				continue
			}
			bubble(t, fmt.Sprintf("%d %s", at, how), func(t *testing.T, w *world) {
				w.disks = true
				d := &brittle{at: at, how: how}
				more := func(c *Config) { c.Channels.Count = 4 }
				b := w.boot("b", false, more)
				a := w.boot("a", true, func(c *Config) {
					more(c)
					dial := c.Peer.Dialer
					c.Peer.Dialer = func(ctx context.Context) (net.Conn, error) { return d.dial(ctx, t, dial) }
				})
				a.is(Protected)
				b.is(Following)
				if made := d.made.Load(); made <= at {
					t.Errorf("%d connections", made)
				}
				if n := d.open.Load(); n > connections {
					t.Errorf("%d connections are open", n)
				}
				a.halt()
				b.halt()
				if n := d.open.Load(); n != 0 {
					t.Errorf("%d connections are left open", n)
				}
			})
		}
	}
}

// A brittle way lets the connection of one number fail.
type brittle struct {
	at         int64
	how        string
	made, open atomic.Int64
}

func (d *brittle) dial(ctx context.Context, t *testing.T, dial func(context.Context) (net.Conn, error)) (net.Conn, error) {
	fails := d.made.Add(1)-1 == d.at
	switch {
	case fails && d.how == "is not made":
		return nil, errNoRoute
	case fails && d.how == "never comes about":
		<-ctx.Done()
		return nil, context.Cause(ctx)
	}
	conn, err := dial(ctx)
	if err != nil {
		return nil, err
	}
	c := &brittleConn{Conn: conn, d: d, t: t}
	if fails {
		c.fails = d.how
	}
	d.open.Add(1)
	return c, nil
}

type brittleConn struct {
	net.Conn
	d     *brittle
	t     *testing.T
	fails string
	once  sync.Once
}

func (c *brittleConn) Write(p []byte) (int, error) {
	if bytes.HasPrefix(p, []byte(helloMagic)) && bytes.Contains(p, []byte(`"channel":"control"`)) {
		if n := c.d.open.Load(); n != 1 {
			c.t.Errorf("a pair is begun, and %d connections are open", n-1)
		}
	}
	switch c.fails {
	case "ends":
		n, _ := c.Conn.Write(p[:len(p)/2])
		c.Close()
		return n, errReset
	case "says nothing":
		return len(p), nil
	}
	return c.Conn.Write(p)
}

func (c *brittleConn) Close() error {
	c.once.Do(func() { c.d.open.Add(-1) })
	return c.Conn.Close()
}

// What is done at a time is bounded, for one pair and for all of a port, and goes on where
// there is no room beside others.
func TestAbreastIsBounded(t *testing.T) {
	for _, room := range []int{0, 3, maxMore} {
		synctest.Test(t, func(t *testing.T) {
			more := make(chan struct{}, room)
			var now, most, all atomic.Int64
			for range 2 { // and what was taken is given back
				if err := abreast(t.Context(), 40, more, func(_ context.Context, i int) error {
					all.Add(int64(i))
					n := now.Add(1)
					for was := most.Load(); n > was && !most.CompareAndSwap(was, n); was = most.Load() {
					}
					time.Sleep(time.Second)
					now.Add(-1)
					return nil
				}); err != nil {
					t.Error(err)
				}
			}
			if want := int64(min(room+1, maxAbreast)); most.Load() != want || all.Load() != 2*780 || len(more) != 0 {
				t.Errorf("%d at a time, not %d; %d in sum", most.Load(), want, all.Load())
			}
		})
	}
}

func TestTheFirstErrorAbreastCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first, more := errors.New("first"), make(chan struct{}, maxMore)
		var begun atomic.Int64
		err := abreast(t.Context(), 40, more, func(ctx context.Context, i int) error {
			begun.Add(1)
			if i == 3 {
				time.Sleep(time.Second)
				return first
			}
			<-ctx.Done()
			return errReset
		})
		if err != first || begun.Load() != maxAbreast || len(more) != 0 {
			t.Errorf("%v, after %d", err, begun.Load())
		}
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(errHalt)
		if err := abreast(ctx, 1, more, func(context.Context, int) error { t.Error("begun"); return nil }); err != errHalt {
			t.Error(err)
		}
	})
}
