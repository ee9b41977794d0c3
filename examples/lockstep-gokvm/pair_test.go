package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gocolo/lockstep/examples/internal/arbiter/arbitertest"
	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/internal/signals"
	"github.com/gocolo/lockstep/internal/socket"
	"github.com/gocolo/lockstep/kvm/gokvmhost"
	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// canRunAhead skips the test where memory cannot come after the guest runs.
func canRunAhead(t *testing.T) {
	t.Helper()
	l, err := ram.NewLazy([]ram.Block{{Name: "none"}})
	if err == nil {
		err = l.Probe()
	}
	if err != nil {
		require.Missing(t, require.Userfaultfd, err)
	}
}

func TestAGuestThatSwitchesItselfOffEndsBothHosts(t *testing.T) {
	for _, mode := range []string{"-continuous=false", "-continuous"} {
		t.Run(mode, func(t *testing.T) {
			w := newSimWorld(t)
			a, b := w.pair(mode)
			w.moreLeaves(a)
			w.ends(a, gokvmhost.ErrPowerOff)
			for _, p := range []*process{a, b} {
				if err := w.ended(p); err != nil {
					t.Errorf("host %s: %v", p.host, err)
				}
				if said := w.hears(p, phase("ended")); strings.Contains(said, phase("alone")) {
					t.Errorf("host %s went on", p.host)
				}
			}
			w.hears(a, "the guest switched itself off")
			w.silent(b)
			w.judge()
		})
	}
}

func TestTheSecondaryGoesOnWhenThePrimaryFails(t *testing.T) {
	for _, mode := range []string{"-continuous=false", "-continuous", "-late-resume"} {
		t.Run(mode, func(t *testing.T) {
			w := newSimWorld(t)
			w.args = []string{mode}
			b := w.start("b", modeSecondary, "-journal", filepath.Join(t.TempDir(), "journal"), "-overlay", "2M")
			a := w.start("a", modePrimary)
			w.inStep(a)
			w.moreLeaves(a)
			broken := errors.New("the vCPU broke")
			w.ends(a, broken)
			if err := w.ended(a); !errors.Is(err, broken) {
				t.Errorf("host a: %v", err)
			}
			w.hears(b, phase("alone"))
			w.moreLeaves(b)
			w.ends(b, gokvmhost.ErrPowerOff)
			if err := w.ended(b); err != nil {
				t.Errorf("host b: %v", err)
			}
			w.judge()
		})
	}
}

// Without a place that both hosts reach each has an arbiter of its own, which knows nothing of the other
// host's grant. That is how it is meant, and no sign that somebody has set it up wrong.
func TestAPairWithoutAnArbiterIsNotToldOfTwo(t *testing.T) {
	w := newSimWorld(t)
	w.args = []string{"-term", "300ms"}
	a, b := w.pair()
	time.Sleep(time.Second) // three terms: it would be told after one
	w.mu.Lock()
	said := a.said.String() + b.said.String()
	w.mu.Unlock()
	if strings.Contains(said, "ask the same arbiter") {
		t.Error(said)
	}
	w.moreLeaves(a)
	w.judge()
}

func TestThePrimaryGoesOnWhenTheSecondaryLeaves(t *testing.T) {
	w := newSimWorld(t)
	a, b := w.pair()
	b.stop(nil)
	if err := w.ended(b); err != nil {
		t.Errorf("host b: %v", err)
	}
	w.hears(a, phase("alone"))
	w.moreLeaves(a)
	w.ends(a, gokvmhost.ErrReset)
	if err := w.ended(a); err != nil {
		t.Errorf("host a: %v", err)
	}
	w.hears(a, "the guest restarts")
	w.silent(b)
	w.judge()
}

// The two change their sides: whichever has the guest is killed, and comes back.
func TestAGuestOutlivesItsHostsAgainAndAgain(t *testing.T) {
	w := newSimWorld(t)
	lead, follow := w.pair()
	for range 3 {
		w.moreLeaves(lead)
		alone := w.hearsNext(follow, phase("alone"))
		w.kill(lead)
		alone()
		w.moreLeaves(follow)
		again := w.hearsNext(follow, phase("protected"))
		back := w.start(lead.host, modeSecondary)
		again()
		lead, follow = follow, back
	}
	w.moreLeaves(lead)
	w.ends(lead, gokvmhost.ErrPowerOff)
	for _, p := range []*process{lead, follow} {
		if err := w.ended(p); err != nil {
			t.Errorf("host %s: %v", p.host, err)
		}
	}
	w.judge()
}

// The other way round: the secondary is killed, and comes back.
func TestAGuestIsProtectedAgainWhenItsSecondaryComesBack(t *testing.T) {
	w := newSimWorld(t)
	a, b := w.pair()
	alone := w.hearsNext(a, phase("alone"))
	w.kill(b)
	alone()
	again := w.hearsNext(a, phase("protected"))
	b = w.start("b", modeSecondary)
	again()
	w.moreLeaves(a)
	w.kill(a)
	w.hears(b, phase("alone"))
	w.moreLeaves(b)
	w.judge()
}

func TestAProgramThatIsEndedHandsTheGuestOver(t *testing.T) {
	w := newSimWorld(t)
	a, b := w.pair()
	w.moreLeaves(a)
	a.stop(nil)
	if err := w.ended(a); err != nil {
		t.Errorf("host a: %v", err)
	}
	w.hears(a, phase("switched"))
	w.moreLeaves(b)
	w.judge()
}

func TestTheConsolesOrderEndsBothHosts(t *testing.T) {
	w := newSimWorld(t)
	a, b := w.pair()
	w.moreLeaves(a)
	a.stop(errEscape)
	for _, p := range []*process{a, b} {
		if err := w.ended(p); err != nil {
			t.Errorf("host %s: %v", p.host, err)
		}
	}
	w.silent(b)
	w.judge()
}

// A monitor hands the guest over, and back, and nobody but its network can tell.
func TestTheGuestIsHandedOverAndBack(t *testing.T) {
	w := newSimWorld(t)
	dir := socket.Dir(t)
	b := w.start("b", modeSecondary, "-qmp", "unix:"+filepath.Join(dir, "b"))
	a := w.start("a", modePrimary, "-qmp", "unix:"+filepath.Join(dir, "a"))
	w.inStep(a)
	for lead, follow := a, b; ; lead, follow = b, a {
		w.moreLeaves(lead)
		again := w.hearsNext(follow, phase("protected"))
		w.asks("unix:"+filepath.Join(dir, lead.host), "job-complete", map[string]string{"id": w.name}, false)
		again()
		w.moreLeaves(follow)
		if lead == b {
			break
		}
	}
	w.mu.Lock()
	said := a.said.String() + b.said.String()
	w.mu.Unlock()
	if strings.Contains(said, `"state":"asking","reason":"EOF`) {
		t.Error("somebody took over")
	}
	w.judge()
}

func TestASecondarysGuestMayEndBeforeThePrimarys(t *testing.T) {
	w := newSimWorld(t)
	a, b := w.pair()
	for range 3 { // a checkpoint brings it back each time
		w.ends(b, gokvmhost.ErrPowerOff)
	}
	w.moreLeaves(a)
	w.ends(a, errors.New("the vCPU broke"))
	w.ended(a)
	w.hears(b, phase("alone"))
	w.moreLeaves(b)
	w.judge()
}

func TestARefusedHostDoesNotGoOn(t *testing.T) {
	w := newSimWorld(t)
	b := w.start("b", modeSecondary, "-arbiter-command", "echo the lock is taken; false")
	a := w.start("a", modePrimary)
	w.inStep(a)
	refused, waiting := w.hearsNext(b, "the lock is taken"), w.hearsNext(b, phase("waiting"))
	w.kill(a)
	refused()
	waiting()
	w.silent(b)
	w.judge()
}

func TestAHostThatCannotBeFollowedSaysWhy(t *testing.T) {
	w := newSimWorld(t)
	b := w.start("b", modeSecondary)
	a := w.start("a", modePrimary, "-continuous")
	w.hears(a, phase("trouble"))
	w.hears(a, "the other side refuses: the network")
	w.moreLeaves(a)
	w.silent(b)
}

// All connections break at once, and can be made again. One host goes on, which is
// the primary unless that is slow, and the other follows it.
func TestWhenOnlyTheConnectionsBreakOneHostGoesOn(t *testing.T) {
	for name, args := range map[string][]string{
		"nobody is asked": nil,
		"an arbiter":      {"-arbiter", "file:" + t.TempDir()},
		"a command":       {"-arbiter-command", "mkdir " + t.TempDir() + "/$LOCKSTEP_GENERATION"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newSimWorld(t)
			lead, _ := w.pair(args...)
			for range 2 {
				w.moreLeaves(lead)
				again := w.protectedAgain()
				w.ways[other(lead.host)].cut(true)
				lead = again() // the other, if this one has taken too long
			}
			w.moreLeaves(lead)
			w.judge()
		})
	}
}

// With nothing between the hosts only a place that both reach knows who goes on.
func TestAPairThatIsPartedGoesOnOnce(t *testing.T) {
	for name, args := range map[string][]string{
		"an arbiter": {"-arbiter", "file:" + t.TempDir()},
		"a program":  {"-arbiter", "store:" + arbitertest.Command(t, t.TempDir())},
		"a command":  {"-arbiter", "mkdir " + t.TempDir() + "/$LOCKSTEP_GENERATION"},
	} {
		t.Run(name, func(t *testing.T) {
			if name == "a program" {
				require.Outside(t, require.Processes)
			}
			w := newSimWorld(t)
			a, b := w.pair(args...)
			for _, way := range w.ways {
				way.cut(false)
			}
			var alone, asks *process
			w.until("one to go on, and the other to be refused", func() bool {
				for _, p := range []*process{a, b} {
					said := p.said.String()
					if strings.Contains(said, phase("alone")) {
						alone = p
					}
					if strings.Contains(said, `"answer":"refused"`) {
						asks = p
					}
				}
				return alone != nil && asks != nil
			})
			if alone == asks {
				t.Errorf("host %s", alone.host)
			}
			w.moreLeaves(alone)
			again := w.protectedAgain()
			for _, way := range w.ways {
				way.mend()
			}
			if lead := again(); lead != alone {
				t.Errorf("host %s has the guest now", lead.host)
			}
			w.moreLeaves(alone)
			w.judge()
		})
	}
}

// Somebody starts the dead host again with the command line that it had.
func TestAPrimaryThatComesBackFollows(t *testing.T) {
	w := newSimWorld(t)
	a, b := w.pair()
	w.kill(a)
	w.hears(b, phase("alone"))
	w.moreLeaves(b)
	again := w.hearsNext(b, phase("protected"))
	w.mu.Lock()
	before := w.left["a"]
	w.mu.Unlock()
	w.start("a", modePrimary)
	again()
	w.moreLeaves(b)
	w.mu.Lock()
	if w.left["a"] != before {
		t.Error("it was heard")
	}
	w.mu.Unlock()
	w.judge()
}

// Two that were parted, and had nobody to ask, have both gone on. They say so when they
// meet; one that is started again without what it has done since follows the other.
func TestTwoThatHaveBothGoneOnSaySo(t *testing.T) {
	w := newSimWorld(t)
	a, b := w.pair()
	for _, way := range w.ways {
		way.cut(false)
	}
	w.hears(a, phase("alone"))
	w.hears(b, phase("alone"))
	for _, way := range w.ways {
		way.mend()
	}
	for _, p := range []*process{a, b} {
		w.hears(p, phase("split")+`,"text":"`+other(p.host)+` runs the guest as well`)
	}
	b.stop(nil)
	w.ended(b)
	again := w.hearsNext(a, phase("protected"))
	w.disks["b"] = newStore()
	w.start("b", modeSecondary)
	again()
	w.moreLeaves(a)
}

// A guest that nobody can have had before is started without the other host.
func TestANewGuestWaitsForNobody(t *testing.T) {
	w := newSimWorld(t)
	a := w.start("a", modePrimary)
	w.hears(a, phase("started"))
	w.moreLeaves(a)
	w.start("b", modeSecondary)
	w.inStep(a)
	w.judge()
}

func TestTheGuestIsHandedOverByASignalAndByAKey(t *testing.T) {
	w := newSimWorld(t)
	a, b := w.pair()
	w.moreLeaves(a)
	again := w.hearsNext(b, phase("protected"))
	w.signals(a, signals.User2, "switched")
	again()
	w.moreLeaves(b)

	again = w.hearsNext(a, phase("protected"))
	w.presses(b, 's')
	again()
	w.hears(b, phase("switched"))
	w.moreLeaves(a)
	w.judge()
}

// A guest that was saved runs before its memory has been read, and is then protected.
func TestASavedGuestRunsBeforeItsMemoryIsRead(t *testing.T) {
	canRunAhead(t)
	w := newSimWorld(t)
	file := filepath.Join(t.TempDir(), "guest")
	b := w.start("b", modeSecondary)
	a := w.start("a", modePrimary, "-save", file)
	w.inStep(a)
	w.moreLeaves(a)
	w.presses(a, 'w')
	if err := w.ended(a); err != nil {
		t.Errorf("host a: %v", err)
	}
	again := w.hearsNext(b, phase("protected"))
	a = w.start("a", modePrimary, "-resume", file, "-lazy")
	w.hears(a, phase("loaded"))
	again()
	w.moreLeaves(a)
	w.ends(a, gokvmhost.ErrPowerOff)
	w.ended(a)
	w.ended(b)
	w.judge()
}

// A guest whose file is not whole is not begun with, and the file of an earlier version says
// what to do.
func TestAFileThatNoGuestCanRunFromIsRefusedInWords(t *testing.T) {
	canRunAhead(t)
	w := newSimWorld(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "guest")
	a := w.start("a", modePrimary, "-save", file, "-start")
	w.moreLeaves(a)
	w.presses(a, 'w')
	if err := w.ended(a); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var stream bytes.Buffer
	out := qemufile.NewWriter(&stream)
	vmstate.PutFileHeader(out)
	vmstate.PutConfiguration(out, vmstate.Configuration{Machine: machineType})
	if err := out.Flush(); err != nil {
		t.Fatal(err)
	}
	for want, p := range map[string][]byte{"unexpected EOF": whole[:len(whole)*2/3], "without -lazy": stream.Bytes()} {
		name := filepath.Join(dir, want)
		if err := os.WriteFile(name, p, 0o600); err != nil {
			t.Fatal(err)
		}
		a = w.start("a", modePrimary, "-resume", name, "-lazy")
		if err := w.ended(a); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	w.judge()
}

// A guest that was saved goes on, once, on the host that has its disk.
func TestASavedGuestGoesOn(t *testing.T) {
	w := newSimWorld(t)
	dir := socket.Dir(t)
	b := w.start("b", modeSecondary)
	first, second := filepath.Join(dir, "first"), filepath.Join(dir, "second")
	a := w.start("a", modePrimary, "-qmp", "unix:"+filepath.Join(dir, "a"))
	w.inStep(a)
	w.moreLeaves(a)
	w.asks("unix:"+filepath.Join(dir, "a"), "protection-save", map[string]string{"filename": first}, true)
	if err := w.ended(a); err != nil {
		t.Errorf("host a: %v", err)
	}
	w.hears(a, phase("saved"))

	again := w.hearsNext(b, phase("protected"))
	a = w.start("a", modePrimary, "-resume", first, "-save", second)
	again()
	w.moreLeaves(a)
	w.presses(a, 'w')
	if err := w.ended(a); err != nil {
		t.Errorf("host a: %v", err)
	}

	a = w.start("a", modePrimary, "-resume", second)
	w.moreLeaves(a)
	w.ends(a, gokvmhost.ErrPowerOff)
	w.ended(a)
	w.mu.Lock()
	left := w.left["a"]
	w.mu.Unlock()
	a = w.start("a", modePrimary, "-resume", second)
	w.hears(a, "the guest of generation")
	w.mu.Lock()
	if w.left["a"] != left {
		t.Error("it went on twice")
	}
	w.mu.Unlock()
	w.silent(b)
	w.judge()
}
