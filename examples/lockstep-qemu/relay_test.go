package main

import (
	"bufio"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gocolo/lockstep/internal/qemutest"
	"github.com/gocolo/lockstep/internal/tied"
)

// secondary starts a QEMU that waits for a migration at uri.
func secondary(t *testing.T, machine, uri string) (v *qemutest.VM, monitor string) {
	t.Helper()
	return monitored(t, machine, "-incoming", uri)
}

func freeAddress(t *testing.T) string {
	t.Helper()
	return "unix:" + filepath.Join(qemutest.Dir(t), "in")
}

// follow waits until a secondary of the relay has loaded a checkpoint after the
// n-th message about it.
func (p *program) follow(addr string, n int) {
	p.t.Helper()
	limit := time.After(60 * time.Second)
	for {
		seen := 0
		for _, line := range strings.Split(p.output(), "\n") {
			if strings.Contains(line, `"secondary":"`+addr+`"`) && strings.Contains(line, `"epoch"`) {
				seen++
			}
		}
		if seen > n {
			return
		}
		select {
		case <-p.more:
		case <-p.done:
			p.t.Fatalf("it has ended with %d", p.status)
		case <-limit:
			p.t.Fatalf("secondary %s has had %d checkpoints", addr, seen)
		}
	}
}

// goesOn checks that a promoted secondary counts on from first or later.
func goesOn(t *testing.T, v *qemutest.VM, first uint32) {
	t.Helper()
	n := len(qemutest.Serial(v.Dir))
	list := qemutest.AwaitSerial(t, v.Dir, n+20)[n:]
	for i := range list[1:] {
		if list[i+1] != list[i]+qemutest.Every {
			t.Errorf("%#x follows %#x", list[i+1], list[i])
		}
	}
	if list[0] < first {
		t.Errorf("it goes on at %#x, before %#x", list[0], first)
	}
	if s := v.RunState(); s != "running" {
		t.Errorf("the guest is %s", s)
	}
}

func TestRelayWhosePrimaryIsKilledPromotesASecondary(t *testing.T) {
	t.Parallel()
	needsQEMU(t)
	for i, machine := range []string{"pc", "q35", "microvm"} {
		t.Run(machine, func(t *testing.T) {
			shorten(t, i, 3)
			uri1, uri2 := freeAddress(t), freeAddress(t)
			s1, m1 := secondary(t, machine, uri1)
			s2, m2 := secondary(t, machine, uri2)
			r := start(t, "relay", "-json", "-listen", "127.0.0.1:0", "-state", qemutest.Dir(t), "-to", uri1+","+uri2, "-qmp", m1+","+m2, "-xbzrle", "1")
			p, _ := primary(t, machine)
			p.Protect(r.text("listening"), 20*time.Millisecond)
			r.follow(uri1, qemutest.Rounds()/2)
			r.follow(uri2, qemutest.Rounds()/2)
			seen := qemutest.Serial(p.Dir)
			r.follow(uri1, qemutest.Rounds())
			p.Kill()
			r.ends(exitOK)
			var got struct {
				Secondary string
				Epoch     uint64
				MS        float64
			}
			if err := json.Unmarshal(r.object("promoted", 0), &got); err != nil || got.Epoch != r.summary().Epoch {
				t.Errorf("%+v, %v", got, err)
			}
			t.Logf("promoted after %.1f ms", got.MS)
			chosen, other := s1, s2
			if got.Secondary == uri2 {
				chosen, other = s2, s1
			}
			goesOn(t, chosen, seen[len(seen)-1])
			if s := other.RunState(); s != "paused" {
				t.Errorf("two guests run: the other secondary is %s", s)
			}
		})
	}
}

func TestRelayWhoseSecondaryIsKilledTakesAnother(t *testing.T) {
	t.Parallel()
	needsQEMU(t)
	uri := freeAddress(t)
	s1, _ := secondary(t, "pc", uri)
	dir := qemutest.Dir(t)
	mon := filepath.Join(dir, "m") // of whoever is the secondary
	state := qemutest.Dir(t)
	r := start(t, "relay", "-json", "-listen", "127.0.0.1:0", "-state", state, "-to", uri, "-qmp", mon)
	p, _ := primary(t, "pc")
	p.Protect(r.text("listening"), 20*time.Millisecond)
	r.follow(uri, 10)
	status := func() string {
		a := start(t, "status", "-state", state)
		a.ends(exitOK)
		return a.output()
	}
	if s := status(); !strings.Contains(s, "secondary   "+uri+" following, checkpoint ") {
		t.Error(s)
	}
	s1.Kill()
	r.object("error", 0)
	if s := status(); !strings.Contains(s, "secondary   "+uri+" away: ") {
		t.Error(s)
	}
	r.checkpoints(strings.Count(r.output(), "CHECKPOINT_COMMIT") + 10) // the primary does not notice
	s2 := qemutest.Start(t, dir, append(qemutest.GuestArgs(t, dir, "pc", 16), "-incoming", uri, "-qmp", "unix:"+mon+",server=on,wait=off")...)
	r.follow(uri, 30)
	seen := qemutest.Serial(p.Dir)
	r.follow(uri, 35)
	p.Kill()
	r.ends(exitOK)
	goesOn(t, s2, seen[len(seen)-1])
}

func TestRelayWithoutSecondariesBringsTheGuestBack(t *testing.T) {
	t.Parallel()
	needsQEMU(t)
	uri := freeAddress(t)
	s1, m1 := secondary(t, "microvm", uri)
	dir, back := qemutest.Dir(t), qemutest.Dir(t)
	r := start(t, slices.Concat([]string{"relay", "-json", "-listen", "127.0.0.1:0", "-state", dir, "-to", uri, "-qmp", m1}, same(t, back, "microvm"))...)
	p, _ := primary(t, "microvm")
	p.Protect(r.text("listening"), 20*time.Millisecond)
	r.follow(uri, 10)
	s1.Kill()
	r.checkpoints(20)
	seen := qemutest.Serial(p.Dir)
	r.checkpoints(strings.Count(r.output(), "CHECKPOINT_COMMIT") + 3)
	p.Kill()
	r.object("back", 0)
	counts(t, back, seen[len(seen)-1])
	r.object("not-stopped", 0) // nobody knows what a dead secondary's host does
	qemutest.Monitor(t, filepath.Join(dir, "qmp")).Do(t.Context(), "quit", nil, nil)
	r.ends(exitOK)
}

func TestRelayThatIsKilledLeavesBothSidesToTheirOperator(t *testing.T) {
	t.Parallel()
	needsQEMU(t)
	uri, listen := freeAddress(t), freeAddress(t)
	s, _ := secondary(t, "pc", uri)
	p, _ := primary(t, "pc")
	// A process of its own: this test binary as the program.
	cmd := exec.Command(os.Args[0], "relay", "-json", "-listen", listen, "-state", qemutest.Dir(t), "-to", uri)
	cmd.Env = append(os.Environ(), programEnv+"=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	release, err := tied.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { cmd.Process.Kill(); cmd.Wait(); release() }()
	lines := bufio.NewReader(out)
	if line, err := lines.ReadString('\n'); err != nil || !strings.Contains(line, "listening") {
		t.Fatalf("%q, %v", line, err)
	}
	go io.Copy(io.Discard, lines) // ends with the process
	p.Protect(listen, 20*time.Millisecond)
	// The guest on the secondary's side prints as soon as it has been received.
	qemutest.AwaitSerial(t, s.Dir, 30)
	cmd.Process.Kill()
	cmd.Wait()
	p.Await("COLO_EXIT")
	s.Await("COLO_EXIT")
	p.Must("x-colo-lost-heartbeat", nil)
	s.Must("x-colo-lost-heartbeat", nil)
	goesOn(t, p, 0)
	goesOn(t, s, 0)
}

func TestRelayWhoseSecondaryStandsStillGoesOnWithTheOther(t *testing.T) {
	t.Parallel()
	needsQEMU(t)
	uri1, uri2 := freeAddress(t), freeAddress(t)
	s1, m1 := secondary(t, "microvm", uri1)
	s2, m2 := secondary(t, "microvm", uri2)
	r := start(t, "relay", "-json", "-listen", "127.0.0.1:0", "-state", qemutest.Dir(t), "-to", uri1+","+uri2, "-qmp", m1+","+m2, "-peer-timeout", "4s")
	p, _ := primary(t, "microvm")
	p.Protect(r.text("listening"), 20*time.Millisecond)
	r.follow(uri1, 5)
	r.follow(uri2, 5)
	stop(s1)
	r.checkpoints(strings.Count(r.output(), "CHECKPOINT_COMMIT") + 20) // the primary does not notice
	seen := qemutest.Serial(p.Dir)
	r.follow(uri2, strings.Count(r.output(), `"secondary":"`+uri2+`"`)+5)
	p.Kill()
	r.ends(exitOK)
	var got struct{ Secondary string }
	if err := json.Unmarshal(r.object("promoted", 0), &got); err != nil || got.Secondary != uri2 {
		t.Errorf("%+v, %v", got, err)
	}
	goesOn(t, s2, seen[len(seen)-1])
}

func TestRelayThatIsInterruptedStopsItsSecondaries(t *testing.T) {
	t.Parallel()
	needsQEMU(t)
	uri := freeAddress(t)
	s, m := secondary(t, "microvm", uri)
	r := start(t, "relay", "-json", "-listen", "127.0.0.1:0", "-state", qemutest.Dir(t), "-to", uri, "-qmp", m)
	p, _ := primary(t, "microvm")
	p.Protect(r.text("listening"), 20*time.Millisecond)
	r.follow(uri, 5)
	r.cancel()
	r.ends(exitInterrupted)
	if state := s.RunState(); state != "paused" {
		t.Errorf("the secondary's guest is %s", state)
	}
	p.Await("COLO_EXIT")
	p.Must("x-colo-lost-heartbeat", nil)
	goesOn(t, p, 0)
	// It is not lost: had the primary died, it would be the operator's to say so.
	s.Must("x-colo-lost-heartbeat", nil)
	goesOn(t, s, 0)
}
