package main

import (
	"flag"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gocolo/lockstep/examples/internal/arbiter/arbitertest"
	"github.com/gocolo/lockstep/internal/qemutest"
	"github.com/gocolo/lockstep/internal/signals"
	"github.com/gocolo/lockstep/internal/tied"
)

var kills = flag.Int("kills", 1, "how often each test of the field list loses a standby")

// child runs the program as a process of its own, which can be killed.
func child(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), programEnv+"=1")
	release, err := tied.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(signals.Continue)
		cmd.Process.Kill()
		cmd.Wait()
		release()
	})
	return cmd
}

// field is a guest with a guardian in this process and a standby in another.
type field struct {
	guarded
	args []string
	cmd  *exec.Cmd
}

func inTheField(t *testing.T, guardianArgs ...string) *field {
	t.Helper()
	needsQEMU(t)
	f := &field{guarded: guarded{t: t, dir: qemutest.Dir(t), back: qemutest.Dir(t)}}
	f.args = slices.Concat([]string{"standby", "-json", "-listen", "unix:" + f.dir + "/s", "-state", f.dir, "-control", "unix:" + f.dir + "/c", "-insecure"},
		same(t, f.back, "pc"))
	f.cmd = child(t, f.args...)
	f.vm, f.sock = monitored(t, "pc")
	qemutest.AwaitSerial(t, f.vm.Dir, 2)
	f.guardian = start(t, slices.Concat([]string{"protect", "-json", "-stay", "-qmp", f.sock, "-to", "unix:" + f.dir + "/s",
		"-control", "unix:" + f.dir + "/c", "-insecure", "-delay", "100ms", "-stall", "20s"}, guardianArgs)...)
	f.becomes("protected", 1)
	return f
}

func TestAGuestOutlivesItsStandbys(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		hurt func(f *field)
	}{
		{"killed", func(f *field) { f.cmd.Process.Kill() }},
		{"hung", func(f *field) { f.cmd.Process.Signal(signals.Stop) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := inTheField(t, "-silence", "2s")
			for i := range *kills {
				n := len(qemutest.Serial(f.vm.Dir))
				qemutest.AwaitSerial(t, f.vm.Dir, n+1+i%7) // at another moment of a checkpoint
				c.hurt(f)
				f.becomes("unprotected", i+1)
				f.runsHere()
				f.cmd.Process.Kill()
				f.cmd.Wait()
				f.cmd = child(t, f.args...)
				f.becomes("protected", i+2)
			}
			f.runsHere()
		})
	}
}

// link passes connections on, and can stop doing so without closing them.
type link struct {
	held atomic.Bool // nothing passes
	over atomic.Bool // the test is
	at   atomic.Bool // from the next checkpoint-reply on nothing passes back
}

// between listens at a socket and passes what comes on to another.
func between(t *testing.T, from, to string) *link {
	t.Helper()
	k := new(link)
	carry(t, from, to, k.pass)
	t.Cleanup(func() { k.over.Store(true) }) // before the cable waits for what it carries
	return k
}

// pass copies one direction. Back, a QEMU primary is sent four bytes at a time:
// ready, and then reply, received and loaded of each checkpoint.
func (k *link) pass(to, from net.Conn, back bool) {
	defer to.Close()
	p := make([]byte, 64<<10)
	for total := 0; ; {
		n, err := from.Read(p)
		if err != nil {
			for k.held.Load() && !k.over.Load() { // nobody hears of it
				time.Sleep(5 * time.Millisecond)
			}
			return
		}
		for part := p[:n]; len(part) > 0; {
			size := len(part)
			if back {
				size = min(size, 4)
			}
			for k.held.Load() {
				if k.over.Load() {
					return
				}
				time.Sleep(5 * time.Millisecond)
			}
			if _, err := to.Write(part[:size]); err != nil {
				return
			}
			part = part[size:]
			total += size
			if back && total >= 8 && (total-4)%12 == 4 && k.at.Load() {
				k.held.Store(true)
			}
		}
	}
}

// cutPair returns a pair with an arbiter, whose link can be cut.
func cutPair(t *testing.T) (g *guarded, migration, control *link) {
	t.Helper()
	needsQEMU(t)
	g = &guarded{t: t, dir: qemutest.Dir(t), back: qemutest.Dir(t)}
	arbiter := "file:" + filepath.Join(qemutest.Dir(t), "arbiter")
	g.standby = start(t, append([]string{"standby", "-json", "-listen", "unix:" + g.dir + "/s", "-state", g.dir, "-control", "unix:" + g.dir + "/c", "-insecure",
		"-arbiter", arbiter, "-holder", "there", "-peer-timeout", "3s", "-idle-timeout", "4s"}, same(t, g.back, "pc")...)...)
	g.standby.text("listening")
	migration, control = between(t, g.dir+"/s2", g.dir+"/s"), between(t, g.dir+"/c2", g.dir+"/c")
	g.vm, g.sock = monitored(t, "pc")
	qemutest.AwaitSerial(t, g.vm.Dir, 2)
	g.guardian = start(t, "protect", "-json", "-stay", "-qmp", g.sock, "-to", "unix:"+g.dir+"/s2", "-control", "unix:"+g.dir+"/c2", "-insecure",
		"-delay", "50ms", "-arbiter", arbiter, "-holder", "here", "-term", "8s", "-silence", "2s", "-stall", "20s")
	g.becomes("protected", 1)
	g.standby.checkpoints(2)
	return g, migration, control
}

func TestACutLinkLeavesOneThatRuns(t *testing.T) {
	t.Parallel()
	for i, c := range []struct {
		name   string
		inside bool
	}{{"inside a checkpoint", true}, {"outside of one", false}} {
		t.Run(c.name, func(t *testing.T) {
			shorten(t, i, 2)
			g, migration, control := cutPair(t)
			if c.inside {
				migration.at.Store(true)
			} else {
				migration.held.Store(true)
			}
			control.held.Store(true)
			g.becomes("unprotected", 1)
			g.runsHere()
			g.standby.object("forgotten", 0)
			migration.at.Store(false)
			migration.held.Store(false)
			control.held.Store(false)
			g.becomes("protected", 2)
			g.runsHere()
		})
	}
}

func TestAHeartbeatThatIsGivenByHandLeavesOneThatRuns(t *testing.T) {
	t.Parallel()
	g, _, _ := cutPair(t)
	g.vm.Must("x-colo-lost-heartbeat", nil)
	g.becomes("unprotected", 1)
	g.standby.object("forgotten", 0)
	g.becomes("protected", 2)
	g.runsHere()
}

// The host of the primary dies: its QEMU and its guardian at once. A program keeps the
// arbiter's record.
func TestADeadHostsGuestIsGrantedToTheStandby(t *testing.T) {
	t.Parallel()
	needsQEMU(t)
	dir, back := qemutest.Dir(t), qemutest.Dir(t)
	arbiter := "store:" + arbitertest.Command(t, filepath.Join(dir, "arbiter"))
	s := start(t, append([]string{"standby", "-json", "-listen", "unix:" + dir + "/s", "-state", dir, "-control", "unix:" + dir + "/c", "-insecure",
		"-arbiter", arbiter, "-holder", "there"}, same(t, back, "pc")...)...)
	s.text("listening")
	v, sock := monitored(t, "pc")
	seen := qemutest.AwaitSerial(t, v.Dir, 2)
	g := child(t, "protect", "-json", "-stay", "-qmp", sock, "-to", "unix:"+dir+"/s", "-control", "unix:"+dir+"/c", "-insecure",
		"-delay", "20ms", "-arbiter", arbiter, "-holder", "here", "-term", "2s", "-stall", "20s")
	s.checkpoints(5)
	g.Process.Kill()
	v.Kill()
	(&guarded{t: t, dir: dir, back: back, standby: s}).runsThere(seen[1])
}
