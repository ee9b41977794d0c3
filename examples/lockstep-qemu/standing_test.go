package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"sync"
	"testing"

	"github.com/gocolo/lockstep/colo/standby"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/event/qmp"
	"github.com/gocolo/lockstep/internal/qemutest"
)

// fakeMonitor is the monitor of a guest that runs or does not, and of nothing else.
type fakeMonitor struct {
	addr string
	all  sync.WaitGroup

	mu      sync.Mutex
	running bool
	state   string // in place of running or paused
	breaks  int    // how many of the next cont end the connection in place of an answer
	refuses bool   // cont
	deaf    int    // how many of the next query-migrate end the connection
	enters  int    // how many of the next query-status find it in finish-migrate
	parts   int    // how often it has been told to leave COLO
	early   int    // and how often in finish-migrate
	asks    int    // how many query-status it has had
	colo    bool   // it takes checkpoints, of which each ends by running the guest
	leaves  bool   // the next checkpoint is its last, and does not run the guest
	deadly  int    // how many cont it has had in COLO

	continues func() // called for each cont, if set
}

func newFakeMonitor(t *testing.T) *fakeMonitor {
	t.Helper()
	m := &fakeMonitor{addr: "unix:" + filepath.Join(qemutest.Dir(t), "qmp"), running: true}
	l, _, err := listen(m.addr)
	if err != nil {
		t.Fatal(err)
	}
	m.all.Go(func() { // one client at a time, as QEMU
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			stop := context.AfterFunc(t.Context(), func() { conn.Close() })
			m.serve(conn)
			stop()
			conn.Close()
		}
	})
	t.Cleanup(func() { l.Close(); m.all.Wait() })
	return m
}

func (m *fakeMonitor) serve(conn net.Conn) {
	fmt.Fprintln(conn, `{"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 22}}, "capabilities": []}}`)
	for s := bufio.NewScanner(conn); s.Scan(); {
		var ask struct {
			Execute string
			ID      int
		}
		if json.Unmarshal(s.Bytes(), &ask) != nil {
			return
		}
		answer := `"return": {}`
		m.mu.Lock()
		switch ask.Execute {
		case "stop":
			m.running = false
		case "migrate-set-parameters":
			if m.colo && m.leaves {
				m.colo = false
			} else if m.colo {
				m.running = true
			}
		case "cont":
			if m.colo {
				m.deadly++
			}
			if m.continues != nil {
				m.continues()
			}
			if m.breaks > 0 {
				m.breaks--
				m.mu.Unlock()
				return
			}
			if m.refuses {
				answer = `"error": {"class": "GenericError", "desc": "no"}`
			} else {
				m.running = true
			}
		case "query-migrate":
			if m.deaf > 0 {
				m.deaf--
				m.mu.Unlock()
				return
			}
			if m.colo {
				answer = `"return": {"status": "colo"}`
			}
		case "x-colo-lost-heartbeat":
			if m.parts++; m.enters > 0 {
				m.early++
			}
		case "query-block-jobs", "query-jobs", "query-named-block-nodes", "qom-list":
			answer = `"return": []`
		case "query-status":
			m.asks++
			state := m.state
			if m.enters > 0 {
				m.enters--
				state = "finish-migrate"
			}
			if state == "" {
				state = map[bool]string{true: "running", false: "paused"}[m.running]
			}
			answer = fmt.Sprintf(`"return": {"status": %q}`, state)
		}
		m.mu.Unlock()
		fmt.Fprintf(conn, "{%s, \"id\": %d}\n", answer, ask.ID)
	}
}

func (m *fakeMonitor) runs() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.running
}

// asked returns how many query-status there have been.
func (m *fakeMonitor) asked() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.asks
}

// guarding returns a guardian of the guest of a monitor, without its loops.
func guarding(t *testing.T, m *fakeMonitor) *guardian {
	t.Helper()
	g := alone(nil)
	g.qmp = m.addr
	if err := g.connect(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.monitor().Close() })
	g.protectOptions.expectStop, g.protectOptions.begins, g.protectOptions.permit, g.current = g.expectStop, g.begins, g.permit, g.monitor
	return g
}

// The guard's stop is over when an operator has given cont.
func TestAGuestThatRunsAgainIsNotLeftStandingForAStopOfBefore(t *testing.T) {
	t.Parallel()
	m := newFakeMonitor(t)
	g := guarding(t, m)
	if err := g.act(t.Context(), standby.StopGuest, ""); err != nil || m.runs() {
		t.Fatal("it runs", err)
	}
	if err := g.protectOptions.standing(t.Context(), g.monitor(), func() error { return nil }); err != nil || m.runs() {
		t.Fatalf("a guest that stood runs: %t, %v", m.runs(), err)
	}
	if err := g.monitor().Do(t.Context(), "cont", nil, nil); err != nil {
		t.Fatal(err)
	}
	stood := false
	err := g.protectOptions.standing(t.Context(), g.monitor(), func() error { stood = !m.runs(); return nil })
	if err != nil || !stood || !m.runs() {
		t.Fatalf("it stood: %t, and it runs: %t, %v", stood, m.runs(), err)
	}
	// A stop that comes meanwhile is obeyed.
	err = g.protectOptions.standing(t.Context(), g.monitor(), func() error { return g.act(t.Context(), standby.StopGuest, "") })
	if err != nil || m.runs() {
		t.Fatalf("it runs: %t, %v", m.runs(), err)
	}
}

func TestAGuestRunsAgainThoughTheMonitorIsLostWhileItStands(t *testing.T) {
	t.Parallel()
	for _, guarded := range []bool{false, true} {
		t.Run(fmt.Sprintf("with a guardian %t", guarded), func(t *testing.T) {
			m := newFakeMonitor(t)
			o := &protectOptions{qmp: m.addr}
			var c *qmp.Client
			if guarded {
				g := guarding(t, m)
				o, c = g.protectOptions, g.monitor()
			} else {
				var err error
				if c, err = qmp.Dial(t.Context(), m.addr); err != nil {
					t.Fatal(err)
				}
				defer c.Close()
			}
			m.mu.Lock()
			m.breaks = 3
			m.mu.Unlock()
			if err := o.standing(t.Context(), c, func() error { return nil }); err != nil || !m.runs() {
				t.Fatalf("it runs: %t, %v", m.runs(), err)
			}
		})
	}
}

// A guest that could not be protected runs on, though the monitor is lost on the way; and
// not if the guard has stopped it meanwhile, whose cont comes by itself.
func TestAGuestThatCannotBeProtectedRunsOnUnlessItsGuardHasStoppedIt(t *testing.T) {
	t.Parallel()
	m := newFakeMonitor(t)
	g := guarding(t, m)
	ctx, cancel := context.WithCancel(t.Context())
	var watching sync.WaitGroup
	watching.Go(func() { // as watch does
		for ctx.Err() == nil {
			g.monitor().Wait(ctx, func(event.Record) bool { return false })
			g.monitor().Close()
			if ctx.Err() == nil {
				g.connect(ctx)
			}
		}
	})
	defer watching.Wait()
	defer cancel()
	g.begins()
	m.mu.Lock()
	m.running, m.deaf = false, 2
	m.mu.Unlock()
	if err := g.runOn(t.Context(), g.monitor(), "running"); err != nil || !m.runs() {
		t.Fatalf("it runs: %t, %v", m.runs(), err)
	}
	if err := g.act(t.Context(), standby.StopGuest, ""); err != nil {
		t.Fatal(err)
	}
	if err := g.runOn(t.Context(), g.monitor(), "running"); err != nil || m.runs() {
		t.Fatalf("it runs: %t, %v", m.runs(), err)
	}
	cancel()
	watching.Wait()
	m.mu.Lock()
	m.breaks = 2
	m.mu.Unlock()
	g.act(t.Context(), standby.ContinueGuest, "") // without an answer
	g.all.Wait()
	if !m.runs() {
		t.Fatal("the guard's cont was lost with its connection")
	}
}

// What QEMU refuses it refuses again.
func TestAContThatIsRefusedIsNotRepeated(t *testing.T) {
	t.Parallel()
	m := newFakeMonitor(t)
	m.refuses = true
	c, err := qmp.Dial(t.Context(), m.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var refused *qmp.Error
	err = (&protectOptions{qmp: m.addr}).standing(t.Context(), c, func() error { return nil })
	if !errors.As(err, &refused) || refused.Command != "cont" {
		t.Fatalf("%v", err)
	}
}
