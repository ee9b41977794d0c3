//go:build unix

package nbd_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/internal/socket"
	"github.com/gocolo/lockstep/replication"
)

// resyncSteps are the steps of a synchronisation before which a process is killed, in their
// order. The copies are the first and the fourth that the secondary is sent.
var resyncSteps = []string{
	"attach", "adopt", "adopted", "begin", "copy 1", "copy 4", "flush", "mark", "checkpoint", "loaded", "start",
}

// resyncCases are the synchronisations in which a process is killed, and which one that is.
var resyncCases = []struct {
	which   string
	victims []string
}{
	{"the first", []string{"primary", "secondary"}},
	{"the second", []string{"primary", "secondary", "primary for good"}},
	{"that after a restart of the secondary", []string{"secondary", "both"}},
}

const (
	resyncSize = 6 << 20
	resyncTest = "TestAProcessThatIsKilledInASynchronisationLosesNoCheckpoint"
)

// resyncScript calls do with what a guest writes: to a place in each MiB, so that there
// is one copy, at least, for each. Zeroes are written as such.
func resyncScript(seed uint64, do func(off, n int64, fill byte)) {
	rng := rand.New(rand.NewPCG(seed, 5))
	for mib := range int64(resyncSize >> 20) {
		n := 512 * (1 + rng.Int64N(200))
		do(mib<<20+512*rng.Int64N((1<<20-n)/512), n, byte(rng.IntN(4))*byte(seed))
	}
}

// resyncChild is a side's process, as the test sees it.
type resyncChild struct {
	t      *testing.T
	cmd    *exec.Cmd
	in     io.Writer
	lines  *bufio.Scanner
	stderr bytes.Buffer
}

func startResyncChild(t *testing.T, side, dir string) *resyncChild {
	t.Helper()
	c := &resyncChild{t: t, cmd: exec.Command(os.Args[0], "-test.run=^"+resyncTest+"$")}
	c.cmd.Env = append(os.Environ(), "NBD_RESYNC_SIDE="+side, "NBD_RESYNC_DIR="+dir)
	c.cmd.Stderr = &c.stderr
	in, err := c.cmd.StdinPipe()
	must(t, err)
	out, err := c.cmd.StdoutPipe()
	must(t, err)
	must(t, c.cmd.Start())
	c.in, c.lines = in, bufio.NewScanner(out)
	stuck := time.AfterFunc(5*time.Minute, func() { c.cmd.Process.Kill() })
	t.Cleanup(func() { stuck.Stop(); c.kill() })
	c.want("ready")
	return c
}

// kill returns when the process has ended, by SIGKILL.
func (c *resyncChild) kill() {
	if c.cmd.ProcessState == nil {
		c.cmd.Process.Kill()
		c.cmd.Wait()
	}
}

func (c *resyncChild) say(words ...any) { fmt.Fprintln(c.in, words...) }

func (c *resyncChild) line() string {
	c.t.Helper()
	if !c.lines.Scan() {
		c.kill()
		c.t.Fatalf("the process has ended: %s", c.stderr.String())
	}
	return c.lines.Text()
}

// want wants the next line to begin with text, and returns the words after it.
func (c *resyncChild) want(text string) []string {
	c.t.Helper()
	l := c.line()
	rest, ok := strings.CutPrefix(l, text)
	if !ok {
		c.t.Fatalf("it says %q, want %s", l, text)
	}
	return strings.Fields(rest)
}

// resyncPair has both processes, and what their disks are to be.
type resyncPair struct {
	t                  *testing.T
	dir                string
	primary, secondary *resyncChild
	disk               []byte // what the guest has
	good               []byte // the last checkpoint; nil: there was none
}

func newResyncPair(t *testing.T) *resyncPair {
	x := &resyncPair{t: t, dir: socket.Dir(t), disk: make([]byte, resyncSize)}
	rand.NewChaCha8([32]byte{9}).Read(x.disk)
	must(t, os.WriteFile(filepath.Join(x.dir, "a"), x.disk, 0o600))
	x.primary, x.secondary = startResyncChild(t, "primary", x.dir), startResyncChild(t, "secondary", x.dir)
	return x
}

// synchronise returns where the primary has stopped, or how it has ended.
func (x *resyncPair) synchronise(stop string) string {
	x.t.Helper()
	x.secondary.say("export")
	names := x.secondary.want("export ")
	x.primary.say("synchronise", names[0], names[1], stop)
	return x.follow()
}

// follow makes the checkpoints that the primary asks for, and returns what else it says.
func (x *resyncPair) follow() string {
	x.t.Helper()
	for {
		l := x.primary.line()
		if l != "checkpoint" {
			return l
		}
		if x.secondary == nil {
			x.primary.say("there is no secondary")
			continue
		}
		x.secondary.say("checkpoint")
		x.primary.say("loaded", x.secondary.want("loaded ")[0])
		x.good = bytes.Clone(x.disk)
	}
}

func (x *resyncPair) wantFollow(text string) {
	x.t.Helper()
	if l := x.follow(); l != text {
		x.t.Fatalf("the primary says %q, want %q", l, text)
	}
}

func (x *resyncPair) write(seed uint64) {
	x.t.Helper()
	resyncScript(seed, func(off, n int64, fill byte) {
		copy(x.disk[off:], bytes.Repeat([]byte{fill}, int(n)))
	})
	x.primary.say("write", seed)
	x.wantFollow("write")
}

func (x *resyncPair) wantImage(why, name string, want []byte) {
	x.t.Helper()
	got, err := os.ReadFile(filepath.Join(x.dir, name))
	must(x.t, err)
	if !bytes.Equal(got, want) {
		at := 0
		for at < len(want) && at < len(got) && got[at] == want[at] {
			at++
		}
		x.t.Fatalf("%s: from byte %d on", why, at)
	}
}

func (x *resyncPair) killPrimary() {
	x.t.Helper()
	x.primary.kill()
	x.primary = nil
	x.wantImage("the guest's disk is another than it has written", "a", x.disk)
}

// killSecondary recovers the disk too, and looks whether it is the last checkpoint.
func (x *resyncPair) killSecondary() {
	x.t.Helper()
	x.secondary.kill()
	x.secondary = nil
	d, err := replication.OpenFile(filepath.Join(x.dir, "b"))
	must(x.t, err)
	defer d.Close()
	j, err := replication.OpenJournalFiles(filepath.Join(x.dir, "j"), 2*resyncSize)
	must(x.t, err)
	defer j.Close()
	_, _, err = j.Recover(context.Background(), d)
	must(x.t, err)
	m, err := d.Metadata()
	must(x.t, err)
	if id := m.Identity(); x.good == nil {
		if id.Disk != (replication.ID{}) && id.State == replication.CopyClean {
			x.t.Fatalf("before its first checkpoint the copy is %v", id)
		}
		return
	} else if id.State != replication.CopyClean {
		x.t.Fatalf("the copy is %v", id)
	}
	x.wantImage("the secondary's disk is another than that of the last checkpoint", "b", x.good)
}

// A process is killed at each step of a synchronisation: the primary's, the secondary's, or
// both. No write of the guest is lost, and the secondary's disk is that of the last
// checkpoint until there is another; a secondary that takes over has it too. After that the
// sides are joined again, the one that was not killed in the same process.
func TestAProcessThatIsKilledInASynchronisationLosesNoCheckpoint(t *testing.T) {
	if side := os.Getenv("NBD_RESYNC_SIDE"); side != "" {
		fmt.Fprintln(os.Stderr, resyncProcess(side, os.Getenv("NBD_RESYNC_DIR")))
		os.Exit(1)
	}
	require.Outside(t, require.Processes)
	i := 0
	for _, c := range resyncCases {
		for _, step := range resyncSteps {
			for _, victim := range c.victims {
				i++
				t.Run(fmt.Sprintf("%s, before %s, %s", c.which, step, victim), func(t *testing.T) {
					require.Sample(t, i, 11)
					killInSynchronisation(t, c.which, step, victim)
				})
			}
		}
	}
}

func killInSynchronisation(t *testing.T, which, step, victim string) {
	x := newResyncPair(t)
	if which != resyncCases[0].which {
		if l := x.synchronise("nowhere"); l != "synchronise" {
			t.Fatal(l)
		}
		x.write(1)
		x.primary.say("check")
		x.wantFollow("check")
		x.primary.say("alone")
		x.wantFollow("alone")
		x.write(2)
	}
	if which == resyncCases[2].which {
		x.killSecondary()
		x.secondary = startResyncChild(t, "secondary", x.dir)
	}
	if l := x.synchronise(step); l != "at "+step {
		t.Fatalf("the primary says %q, want that it is at %s", l, step)
	}
	if victim != "secondary" {
		x.killPrimary()
	}
	switch victim {
	case "secondary", "both":
		x.killSecondary()
	case "primary for good":
		x.secondary.say("failover")
		x.secondary.want("failover ")
		x.wantImage("the disk of the side that took over is another than that of the last checkpoint", "b", x.good)
		x.primary = startResyncChild(t, "primary", x.dir)
		want := replication.ErrDiverged
		if bytes.Equal(x.good, x.disk) {
			want = replication.ErrOutdated
		}
		if l := x.synchronise("nowhere"); !strings.Contains(l, want.Error()) {
			t.Errorf("the primary that comes back says %q, want that %v", l, want)
		}
		return
	}
	if victim == "secondary" {
		x.primary.say("go on")
		x.follow() // with an error, unless it needed the other side no more
	} else {
		x.primary = startResyncChild(t, "primary", x.dir)
	}
	if x.secondary == nil {
		x.secondary = startResyncChild(t, "secondary", x.dir)
	}
	x.write(3)
	if l := x.synchronise("nowhere"); l != "synchronise" {
		t.Fatal("the sides are joined again: ", l)
	}
	x.write(4)
	x.primary.say("check")
	x.wantFollow("check")
	x.write(5)
	x.killPrimary()
	x.killSecondary()
}
