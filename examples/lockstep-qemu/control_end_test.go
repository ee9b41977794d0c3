package main

import (
	"context"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo/standby"
	"github.com/gocolo/lockstep/internal/qemutest"
)

// connected returns both ends of a connection.
func connected(t *testing.T) (client, server net.Conn) {
	t.Helper()
	path := filepath.Join(qemutest.Dir(t), "c")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if client, err = net.Dial("unix", path); err != nil {
		t.Fatal(err)
	}
	if server, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close(); server.Close() })
	return client, server
}

func TestAStandbySaysWhyItsGuardianHasEndedUnlessItHasToldItself(t *testing.T) {
	const lost = "the guardian has ended, or its process has died"
	const gone = "guardian    gone, and so is its guest, of which no copy is here: "
	for _, c := range []struct {
		name string
		says []standby.Said // before it ends
		live bool           // a session tells of the copy that is here
		runs uint64         // the generation that was gone on with
		want string
		told string // on the terminal
	}{
		{"no word", nil, false, 0, lost, ""},
		{"a planned end", []standby.Said{standby.SaidPlanned}, true, 0, "", ""},
		{"a death", []standby.Said{standby.SaidDead}, true, 0, "", ""},
		{"a death before there is a copy", []standby.Said{standby.SaidDead, standby.SaidBeat}, false, 0, "", gone + "dead\n"},
		{"a planned end before there is a copy", []standby.Said{standby.SaidPlanned, standby.SaidBeat}, false, 0, "", gone + "planned\n"},
		{"a guest that was stopped for the standby's", []standby.Said{standby.SaidStopped}, true, 0, "", ""},
		{"another guest after that", []standby.Said{standby.SaidPlanned, standby.SaidProtect}, false, 0, lost, ""},
		{"a guest that runs here", nil, false, 2, "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			out := new(printed)
			h := newHeard(&printer{terminal: terminal{out: out, err: new(printed)}})
			h.runs, h.live = c.runs, c.live
			there, here := connected(t)
			h.room.Enter(here)
			ended := make(chan error, 1)
			go func() { ended <- h.guardian(t.Context(), here, nil) }()
			g := standby.NewControl(there)
			if err := g.Send(standby.ControlMessage{Say: standby.SaidHello, Version: standby.ControlVersion, Generation: 1}, time.Minute); err != nil {
				t.Fatal(err)
			}
			first := 1
			if c.runs > 0 {
				first = 2
			}
			for range first {
				if _, err := g.Receive(time.Minute); err != nil {
					t.Fatal(err)
				}
			}
			for _, said := range c.says {
				if err := g.Send(standby.ControlMessage{Say: said, Generation: 1}, time.Minute); err != nil {
					t.Fatal(err)
				}
			}
			there.Close()
			got := ""
			if err := <-ended; err != nil {
				got = err.Error()
			}
			if got != c.want {
				t.Errorf("%q, want %q", got, c.want)
			}
			_, told, _ := strings.Cut(out.b.String(), "\n") // behind the line that it has connected
			if told != c.told {
				t.Errorf("told %q, want %q", told, c.told)
			}
		})
	}
}

func TestAGuardianWhoseGuestIsTheStandbysSaysNothingOfItsEnd(t *testing.T) {
	t.Parallel()
	for _, state := range []standby.GuardState{standby.Protected, standby.StoodDown} {
		addr := "unix:" + filepath.Join(qemutest.Dir(t), "c")
		l, _, err := listen(addr)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		g, out := alone(nil), new(printed)
		g.p = &printer{terminal: terminal{out: out, err: out}}
		g.control, g.silence, g.told = addr, time.Minute, make(chan news, 64)
		g.status.State = state.String()
		ctx, cancel := context.WithCancel(t.Context())
		g.all.Go(func() { g.talk(ctx) })
		for range 2 { // it comes again when it has said what there was to say
			conn, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			c := standby.NewControl(conn)
			if _, err := c.Receive(time.Minute); err != nil {
				t.Fatal(err)
			}
			conn.Close()
		}
		cancel()
		g.all.Wait()
		got, want := out.b.String(), ""
		if state == standby.Protected {
			want = "control channel: the standby has ended it, or its process has died"
		}
		if (got == "") != (want == "") || !strings.Contains(got, want) {
			t.Errorf("%v: %q, want %q", state, got, want)
		}
	}
}

// A stranger who only connects would otherwise have the guest run on unprotected: its guardian could
// not come back.
func TestConnectionsThatSayNothingKeepNoGuardianOut(t *testing.T) {
	t.Parallel()
	path := filepath.Join(qemutest.Dir(t), "c")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	out := new(printed)
	h := newHeard(&printer{terminal: terminal{out: out, err: out}})
	h.silence = time.Hour
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan struct{})
	go func() { defer close(served); h.serve(ctx, l, nil) }()
	defer func() { cancel(); <-served }()
	dial := func() net.Conn {
		t.Helper()
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	ended := func(conn net.Conn) { // by the other side
		t.Helper()
		conn.SetReadDeadline(time.Now().Add(time.Minute))
		if _, err := conn.Read(make([]byte, 1)); !hungUp(err) {
			t.Fatal(err)
		}
	}
	for range 2 * maxControls {
		dial()
	}
	g := standby.NewControl(dial())
	say := func(m standby.ControlMessage) {
		t.Helper()
		if err := g.Send(m, time.Minute); err != nil {
			t.Fatal(err)
		}
		if _, err := g.Receive(time.Minute); err != nil {
			t.Fatal(err)
		}
	}
	say(standby.ControlMessage{Say: standby.SaidHello, Version: standby.ControlVersion, Generation: 1})
	first := dial()
	for range 2 * maxControls {
		dial()
	}
	ended(first)
	say(standby.ControlMessage{Say: standby.SaidBeat, Generation: 1})
	if n := out.count("control channel of"); n > 0 {
		t.Errorf("%d lines are said of them", n)
	}
}
