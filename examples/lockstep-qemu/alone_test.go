package main

import (
	"net"
	"strings"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo/standby"
	"github.com/gocolo/lockstep/internal/qemutest"
)

// A primary's QEMU that has left COLO has closed its connection, but a network that carries nothing any more does
// not say so. The next protection of the guest would be refused until the idle timeout.
func TestAStandbyEndsTheSessionOfAGuestThatRunsOnAlone(t *testing.T) {
	t.Parallel()
	dir := qemutest.Dir(t)
	s := start(t, "standby", "-json", "-listen", "unix:"+dir+"/s", "-state", dir, "-control", "unix:"+dir+"/c", "-insecure")
	s.object("listening", 0)
	conn, err := net.Dial("unix", dir+"/c")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	guardian := standby.NewControl(conn)
	say := func(m standby.ControlMessage) {
		t.Helper()
		if err := guardian.Send(m, time.Minute); err != nil {
			t.Fatal(err)
		}
	}
	say(standby.ControlMessage{Say: standby.SaidHello, Version: standby.ControlVersion, Generation: 1})
	say(standby.ControlMessage{Say: standby.SaidProtect, Generation: 1})
	for heard := uint64(0); heard < 1; { // or the primary comes before what it is has been heard
		say(standby.ControlMessage{Say: standby.SaidBeat, Generation: 1, Seq: 1})
		m, err := guardian.Receive(time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		heard = m.Seq
	}
	replica(t, dir+"/s")
	s.checkpoints(1)
	say(standby.ControlMessage{Say: standby.SaidAlone, Generation: 2, Why: "it is cut off"})
	if why := string(s.object("forgotten", 0)); !strings.Contains(why, "it is cut off") {
		t.Errorf("it says %s", why)
	}
	s.object("listening", 1)
}
