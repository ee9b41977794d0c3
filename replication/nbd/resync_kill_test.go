//go:build unix

package nbd_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/replication"
	"github.com/gocolo/lockstep/replication/nbd"
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

// resyncProcess is one side, in a process of its own. It obeys lines on the standard
// input, and answers each with a line.
func resyncProcess(side, dir string) error {
	in := bufio.NewScanner(os.Stdin)
	next := func() string {
		if !in.Scan() {
			os.Exit(0) // the test is over
		}
		return in.Text()
	}
	if side == "primary" {
		return resyncPrimary(dir, next)
	}
	return resyncSecondary(dir, next)
}

func resyncSecondary(dir string, next func() string) error {
	ctx := context.Background()
	d, err := replication.CreateFile(filepath.Join(dir, "b"), resyncSize)
	if err != nil {
		return err
	}
	j, err := replication.OpenJournalFiles(filepath.Join(dir, "j"), 2*resyncSize)
	if err != nil {
		return err
	}
	if _, _, err := j.Recover(ctx, d); err != nil {
		return err
	}
	s, err := replication.NewSecondary(d, replication.SecondaryConfig{Journal: j, Blank: true})
	if err != nil {
		return err
	}
	socket := filepath.Join(dir, "socket")
	os.Remove(socket)
	ln, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	srv := nbd.NewServer(nbd.ServerConfig{})
	go srv.Serve(ctx, ln)
	fmt.Println("ready")
	var exports []*nbd.Export
	for generation := uint64(1); ; {
		line := next()
		if line != "checkpoint" { // the primary of before is fenced off
			for _, e := range exports {
				if err := e.Close(ctx); err != nil {
					return err
				}
			}
			exports = nil
		}
		switch line {
		case "export":
			for name, disk := range map[string]replication.Disk{"disk": s.Export(), "identity": replication.NewIdentityDisk(s)} {
				e, err := srv.Export(nbd.ExportConfig{Name: nbd.Name(name, generation), Disk: disk})
				if err != nil {
					return err
				}
				exports = append(exports, e)
			}
			fmt.Println("export", nbd.Name("disk", generation), nbd.Name("identity", generation))
			generation++
		case "checkpoint":
			if s.State() == replication.Running {
				err = s.Checkpoint(ctx, s.Epoch()+1)
			} else {
				err = s.Start(ctx)
			}
			if err != nil {
				return err
			}
			fmt.Println("loaded", s.Epoch())
		case "failover":
			if err := s.Stop(ctx, true); err != nil {
				return err
			}
			fmt.Println("failover", s.Epoch())
		}
	}
}

// stepRemote, and stepIdentity, say where a synchronisation is.
type stepRemote struct {
	*nbd.Client
	at     func(step string)
	copies *atomic.Int64
	// Synchronise is over, and what Mark sends is no step.
	marked *atomic.Bool
}

func (r stepRemote) copy() { r.at(fmt.Sprint("copy ", r.copies.Add(1))) }

func (r stepRemote) StartWrite(p []byte, off int64, fua bool, done func(error)) {
	r.copy()
	r.Client.StartWrite(p, off, fua, done)
}

func (r stepRemote) StartZeroes(off, n int64, fua bool, done func(error)) {
	r.copy()
	r.Client.StartZeroes(off, n, fua, done)
}

func (r stepRemote) StartFlush(done func(error)) {
	if !r.marked.Load() {
		r.at("flush")
	}
	r.Client.StartFlush(done)
}

type stepIdentity struct {
	*nbd.Client
	at func(step string)
}

func (i stepIdentity) WriteAt(p []byte, off int64) (int, error) {
	i.at("adopt")
	n, err := i.Client.WriteAt(p, off)
	if err == nil {
		i.at("adopted")
	}
	return n, err
}

func resyncPrimary(dir string, next func() string) error {
	ctx := context.Background()
	d, err := replication.OpenFile(filepath.Join(dir, "a"))
	if err != nil {
		return err
	}
	p, err := replication.NewPrimary(d, replication.PrimaryConfig{})
	if err != nil {
		return err
	}
	go p.Run(ctx)
	fmt.Println("ready")
	var epoch uint64
	loaded := func() error {
		fmt.Println("checkpoint")
		answer, ok := strings.CutPrefix(next(), "loaded ")
		if !ok {
			return errors.New("there was no checkpoint")
		}
		epoch, err = strconv.ParseUint(answer, 10, 64)
		return err
	}
	socket := filepath.Join(dir, "socket")
	synchronise := func(disk, identity, stop string) error {
		if p.State() == replication.Running {
			p.Stop(ctx, false)
		}
		p.Detach()
		at := func(step string) {
			if step == stop {
				fmt.Println("at", step)
				next()
			}
		}
		conn, err := nbd.Dial(ctx, "unix", socket, nbd.ClientConfig{Export: disk})
		if err != nil {
			return err
		}
		id, err := nbd.Dial(ctx, "unix", socket, nbd.ClientConfig{Export: identity})
		if err != nil {
			return err
		}
		remote := stepRemote{conn, at, new(atomic.Int64), new(atomic.Bool)}
		at("attach")
		if err := p.Attach(replication.WithIdentity(remote, stepIdentity{id, at})); err != nil {
			return err
		}
		at("begin")
		if err := p.Synchronise(ctx, replication.SyncConfig{}); err != nil {
			return err
		}
		remote.marked.Store(true)
		at("mark")
		if err := p.Mark(ctx, 0); err != nil {
			return err
		}
		at("checkpoint")
		if err := loaded(); err != nil {
			return err
		}
		at("loaded")
		if err := p.Loaded(ctx, 0); err != nil {
			return err
		}
		at("start")
		return p.Start(ctx)
	}
	for {
		words := strings.SplitN(next(), " ", 4)
		err, said := error(nil), words[0]
		switch words[0] {
		case "synchronise":
			err = synchronise(words[1], words[2], words[3])
		case "write":
			var seed uint64
			seed, err = strconv.ParseUint(words[1], 10, 64)
			resyncScript(seed, func(off, n int64, fill byte) {
				if fill == 0 {
					err = errors.Join(err, p.WriteZeroes(off, n))
					return
				}
				_, failed := p.WriteAt(bytes.Repeat([]byte{fill}, int(n)), off)
				err = errors.Join(err, failed)
			})
			err = errors.Join(err, p.Sync())
		case "check":
			if err = p.Mark(ctx, epoch+1); err == nil {
				if err = loaded(); err == nil {
					err = p.Loaded(ctx, epoch)
				}
			}
		case "alone":
			err = p.Stop(ctx, true)
		}
		if err != nil {
			said = "error " + strings.ReplaceAll(err.Error(), "\n", "; ")
		}
		fmt.Println(said)
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
	x := &resyncPair{t: t, dir: t.TempDir(), disk: make([]byte, resyncSize)}
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
