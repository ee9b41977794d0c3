package main

import (
	"encoding/json"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gocolo/lockstep/internal/qemutest"
	"github.com/gocolo/lockstep/internal/signals"
)

// hangs has the guest's QEMU hang, and returns when the guardian has said that it does.
func (g *guarded) hangs() {
	g.t.Helper()
	stop(g.vm)
	for end := time.Now().Add(time.Minute); !strings.Contains(g.guardian.errors(), "takes no orders"); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			g.t.Fatalf("the guardian has said %q", g.guardian.errors())
		}
	}
}

// hangsInBand has the main loop of the guest's QEMU hang, which then answers out of band only, until the function that it
// returns is called. It returns when the guardian has said so.
func (g *guarded) hangsInBand() (goesOn func()) {
	g.t.Helper()
	sock := filepath.Join(g.vm.Dir, "silent")
	l, err := net.Listen("unix", sock) // a QEMU waits for ever for what a server of a disk says first
	if err != nil {
		g.t.Fatal(err)
	}
	added := make(chan error, 1)
	go func() {
		added <- g.vm.Do(g.t.Context(), "blockdev-add", map[string]any{"driver": "nbd", "node-name": "silent",
			"server": map[string]string{"type": "unix", "path": sock}}, nil)
	}()
	conn, err := l.Accept()
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { conn.Close(); l.Close(); <-added })
	eventually(g.t, "the guardian does not say that it hangs", func() bool { return strings.Contains(g.guardian.errors(), takesNoneIn) })
	return func() { conn.Close() }
}

// A QEMU whose main loop has deadlocked can be told nothing, and answers what is asked out of band all the
// same.
func TestAQEMUThatHangsInBandAndIsKilledIsADeath(t *testing.T) {
	t.Parallel()
	g := guard(t, nil, []string{"-stall", "5s"})
	seen := qemutest.Serial(g.vm.Dir)
	g.standby.further(3) // which are of after that
	g.hangsInBand()
	g.vm.Kill()
	g.guardian.ends(exitGuest)
	g.runsThere(seen[len(seen)-1])
}

// One that is slow has not ended.
func TestAQEMUThatHungInBandForAWhileIsProtectedAgain(t *testing.T) {
	t.Parallel()
	g := guard(t, nil, []string{"-stall", "5s"})
	g.hangsInBand()()
	g.becomes("unprotected", 1)
	g.becomes("protected", 2)
	g.runsHere()
}

// A QEMU that hangs cannot be told to run its guest on, and is killed next, by a person or by
// whatever watches it: the copy must be as good as before then.
func TestAQEMUThatHangsAndIsKilledIsADeath(t *testing.T) {
	t.Parallel()
	g := guard(t, nil, []string{"-stall", "5s"})
	seen := qemutest.Serial(g.vm.Dir)
	g.standby.further(3) // which are of after that
	g.hangs()
	g.vm.Kill()
	g.guardian.ends(exitGuest)
	g.runsThere(seen[len(seen)-1])
}

func TestAQEMUThatHungForAWhileIsProtectedAgain(t *testing.T) {
	t.Parallel()
	g := guard(t, nil, []string{"-stall", "5s"})
	g.hangs()
	g.vm.Process().Signal(signals.Continue)
	g.becomes("unprotected", 1)
	g.becomes("protected", 2)
	g.runsHere()
}

// The order comes when the guardian asks already, and nothing is decided until the QEMU answers: the
// operator hears that, and what ends it.
func TestAPromotionThatWaitsForAQEMUThatHangsSaysSo(t *testing.T) {
	t.Parallel()
	g := guard(t, nil, []string{"-stall", "5s"})
	seen := qemutest.Serial(g.vm.Dir)
	g.standby.further(3) // which are of after that
	g.hangs()
	start(t, "promote", "-standby", g.dir).ends(exitOK)
	for i, why := 0, ""; !strings.Contains(why, "kill it, and the guest goes on here"); i++ {
		var d struct{ Why string }
		if err := json.Unmarshal(g.standby.object("decision", i), &d); err != nil {
			t.Fatal(err)
		}
		why = d.Why
	}
	a, err := tell(t.Context(), socketIn(g.dir, "standby"), order{Do: "status"})
	if err != nil || !strings.Contains(string(a.Status), `"guardian-waits":"the QEMU takes no orders`) {
		t.Errorf("status: %s, %v", a.Status, err)
	}
	g.vm.Kill()
	g.guardian.ends(exitGuest)
	g.runsThere(seen[len(seen)-1])
}
