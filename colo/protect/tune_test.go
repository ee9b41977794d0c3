package protect

import (
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/event"
)

// A host that watches its sessions sees the steps and messages of both sides, one
// session after the other, and may put its own connection in between.
func TestASessionIsWatchedFromInside(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		var mu sync.Mutex
		steps, sent := map[event.Mode][]string{}, map[event.Mode][]colo.Message{}
		conns := map[event.Mode]int{}
		watched := func(c *Config) {
			c.LateResume, c.MinInterval = true, 10*time.Millisecond
			c.Session = SessionConfig{
				EarlyShare: 0.5,
				Step: func(side event.Mode, op string, epoch uint64) {
					mu.Lock()
					defer mu.Unlock()
					if epoch == 1 {
						steps[side] = append(steps[side], op)
					}
				},
				Trace: func(side event.Mode, dir string, m colo.Message, value uint64) {
					mu.Lock()
					defer mu.Unlock()
					if dir == ">" {
						sent[side] = append(sent[side], m)
					}
				},
				Conn: func(side event.Mode, conn net.Conn) net.Conn {
					mu.Lock()
					defer mu.Unlock()
					conns[side]++
					return struct{ net.Conn }{conn}
				},
			}
		}
		b := w.boot("b", false, watched)
		a := w.boot("a", true, watched)
		a.is(Protected)
		time.Sleep(time.Second)
		if err := a.job.Switchover(t.Context()); err != nil {
			t.Fatal(err)
		}
		b.is(Protected)
		time.Sleep(time.Second)
		a.halt()
		b.halt()
		for side, want := range map[event.Mode]string{event.ModePrimary: "late resume", event.ModeSecondary: "commit"} {
			if !slices.Contains(steps[side], want) {
				t.Errorf("steps of the %v: %q", side, steps[side])
			}
			if conns[side] != 2 {
				t.Errorf("%d connections of the %v", conns[side], side)
			}
		}
		if !slices.Contains(sent[event.ModePrimary], colo.CheckpointRequest) || !slices.Contains(sent[event.ModePrimary], colo.EarlyPages) || !slices.Contains(sent[event.ModeSecondary], colo.VMStateReceived) {
			t.Errorf("%v", sent)
		}
	})
}

// closing is a connection that counts the calls of Close.
type closing struct {
	net.Conn
	closed *atomic.Int64
}

func (c closing) Close() error { c.closed.Add(1); return c.Conn.Close() }

// The connection that Session.Conn has returned is closed, even if the session does not begin.
func TestTheConnectionOfASessionThatDoesNotBeginIsClosed(t *testing.T) {
	for _, name := range []string{"a", "b"} {
		bubble(t, "as "+name+" is stopped", func(t *testing.T, w *world) {
			var made, closed atomic.Int64
			var stopped *host
			ready := make(chan struct{})
			stops := func(c *Config) {
				if c.Host != name {
					return
				}
				c.Session.Conn = func(_ event.Mode, conn net.Conn) net.Conn {
					made.Add(1)
					<-ready
					stopped.stop(errHalt)
					stopped.job.Wait(t.Context(), Concluded)
					return closing{conn, &closed}
				}
			}
			b := w.boot("b", false, stops)
			a := w.boot("a", true, stops)
			other := a
			if stopped = b; name == "a" {
				stopped, other = a, b
			}
			close(ready)
			<-stopped.done
			stopped.leave()
			if made.Load() != 1 || closed.Load() == 0 {
				t.Errorf("%d connections, of which %d were closed", made.Load(), closed.Load())
			}
			other.halt()
		})
	}
	bubble(t, "no other one", func(t *testing.T, w *world) {
		b := w.boot("b", false, nil)
		a := w.boot("a", true, func(c *Config) {
			c.Session.Conn = func(event.Mode, net.Conn) net.Conn { return nil }
		})
		a.is(Protected)
		a.halt()
		b.halt()
	})
}

// CheckpointDelay returns the default, and later what SetDelay was given.
func TestTheCheckpointDelayIsTold(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		a := w.boot("a", true, nil)
		if d := a.job.CheckpointDelay(); d != DefaultCheckpointDelay {
			t.Error(d)
		}
		if err := a.job.SetDelay(time.Second); err != nil {
			t.Fatal(err)
		}
		if d := a.job.CheckpointDelay(); d != time.Second {
			t.Error(d)
		}
		a.is(Alone)
		a.halt()
	})
}
