package protect

import (
	"net"
	"slices"
	"sync"
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
		if !slices.Contains(sent[event.ModePrimary], colo.CheckpointRequest) || !slices.Contains(sent[event.ModeSecondary], colo.VMStateReceived) {
			t.Errorf("%v", sent)
		}
	})
}

// The delay that a program shows is the one that is used.
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
