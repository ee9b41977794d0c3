package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/internal/socket"
	"github.com/gocolo/lockstep/replication/nbd"
)

func TestMain(m *testing.M) {
	if args := os.Getenv(killedArgs); args != "" {
		beKilled(args)
	}
	goleak.VerifyTestMain(m)
}

// process is one side, run in this process.
type process struct {
	t      *testing.T
	in     *io.PipeWriter
	cancel func()
	done   chan error

	mu  sync.Mutex
	out bytes.Buffer // what nobody has expected yet
	all bytes.Buffer
}

func (p *process) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.all.Write(b)
	return p.out.Write(b)
}

func start(t *testing.T, args ...string) *process {
	return startWith(t, func(ctx context.Context, commands io.Reader, out io.Writer) error {
		return run(ctx, args, commands, out, false)
	})
}

func startWith(t *testing.T, run func(context.Context, io.Reader, io.Writer) error) *process {
	r, w := io.Pipe()
	ctx, cancel := context.WithCancel(context.Background())
	p := &process{t: t, in: w, cancel: cancel, done: make(chan error, 1)}
	go func() { p.done <- run(ctx, r, p) }()
	t.Cleanup(p.kill)
	return p
}

func (p *process) kill() {
	p.cancel()
	p.in.Close()
	if p.done != nil {
		<-p.done
		p.done = nil
	}
}

// quit has the process leave by itself.
func (p *process) quit() {
	p.t.Helper()
	p.say("quit")
	if err := <-p.done; err != nil {
		p.t.Errorf("after quit: %v", err)
	}
	p.done = nil
}

// expect waits for the process to say something that it has not said yet.
func (p *process) expect(text string) {
	p.t.Helper()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		p.mu.Lock()
		all := p.out.String()
		i := strings.Index(all, text)
		if i >= 0 {
			p.out.Reset()
			p.out.WriteString(all[i+len(text):])
		}
		p.mu.Unlock()
		if i >= 0 {
			return
		}
	}
	p.t.Fatalf("it does not say %q:\n%s", text, p.out.String())
}

func (p *process) say(line string) { io.WriteString(p.in, line+"\n") }

func guest(t *testing.T, socket, export string) *nbd.Client {
	t.Helper()
	c, err := nbd.Dial(context.Background(), "unix", socket, nbd.ClientConfig{Export: export})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func write(t *testing.T, c *nbd.Client, b byte, off int64) {
	t.Helper()
	if _, err := c.WriteAt(bytes.Repeat([]byte{b}, 4096), off); err != nil {
		t.Fatal(err)
	}
}

func want(t *testing.T, why string, c *nbd.Client, b byte, off int64) {
	t.Helper()
	p := make([]byte, 4096)
	if _, err := c.ReadAt(p, off); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(p, bytes.Repeat([]byte{b}, 4096)) {
		t.Fatalf("%s: %#x, want %#x", why, p[0], b)
	}
}

func TestTheWalkThroughOfTheUsage(t *testing.T) {
	for _, journal := range []bool{false, true} {
		dir := socket.Dir(t)
		a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
		args := []string{"secondary", "-image", b + ".img", "-size", "4M", "-listen", b}
		if journal {
			args = append(args, "-journal", b)
		}
		s := start(t, args...)
		s.expect("waiting for a primary")
		pargs := []string{"primary", "-image", a + ".img", "-size", "4M", "-secondary", b, "-listen", a}
		p := start(t, pargs...)
		p.expect("replication runs, epoch 0")
		pg, sg := guest(t, a, "disk"), guest(t, b, "guest")
		write(t, pg, 0x22, 0)
		want(t, "no checkpoint yet", sg, 0, 0)
		p.say("checkpoint")
		p.expect("checkpoint 1")
		want(t, "the checkpoint", sg, 0x22, 0)

		// The primary is lost, and comes back.
		write(t, pg, 0x44, 0)
		write(t, pg, 0x45, 1<<20)
		p.kill()
		want(t, "the last checkpoint", sg, 0x22, 0)
		p = start(t, pargs...)
		p.expect("replication runs, epoch 2")
		want(t, "what the primary has", sg, 0x44, 0)
		want(t, "what the primary has", sg, 0x45, 1<<20)
		pg = guest(t, a, "disk")

		write(t, pg, 0x55, 0)
		write(t, sg, 0x33, 2<<20)
		if err := pg.Sync(); err != nil {
			t.Fatal(err)
		}
		s.say("status")
		s.expect("state running, epoch 2")
		s.say("failover")
		s.expect("failover: the disk is that of checkpoint 2")
		want(t, "the last checkpoint", sg, 0x44, 0)
		want(t, "its own write", sg, 0x33, 2<<20)
		p.say("checkpoint")
		p.expect("error: ")
		p.say("reconnect")
		p.expect("went on alone")
		p.quit()
		s.quit()

		s = start(t, args...)
		s.expect("waiting for a primary")
	}
}

func TestPrimaryExportsWhatTheSecondaryLacks(t *testing.T) {
	dir := socket.Dir(t)
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	s := start(t, "secondary", "-image", b+".img", "-size", "4M", "-listen", b)
	s.expect("waiting for a primary")
	p := start(t, "primary", "-image", a+".img", "-size", "4M", "-secondary", b, "-listen", a)
	p.expect("replication runs, epoch 0")
	c, err := nbd.Dial(context.Background(), "unix", a, nbd.ClientConfig{Export: "disk", Contexts: []string{nbd.ContextDirty}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	dirty := func() (at []int64) {
		for off := int64(0); off < c.Size(); {
			err := c.Status(nbd.ContextDirty, off, c.Size()-off, func(n int64, flags uint32) bool {
				if flags&nbd.StateDirty != 0 {
					at = append(at, off, n)
				}
				off += n
				return true
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		return at
	}
	if at := dirty(); at != nil {
		t.Errorf("in step, it lacks %v", at)
	}
	p.say("failover")
	p.expect("on alone")
	write(t, c, 0x22, 1<<20)
	if at := dirty(); !slices.Equal(at, []int64{1 << 20, 64 << 10}) {
		t.Errorf("alone, after one write, it lacks %v", at)
	}
	p.say("reconnect")
	p.expect("replication runs, epoch")
	if at := dirty(); at != nil {
		t.Errorf("in step again, it lacks %v", at)
	}
}

func awaitListener(t *testing.T, socket string) {
	t.Helper()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if c, err := net.Dial("unix", socket); err == nil {
			c.Close()
			return
		}
	}
	t.Fatalf("nobody listens at %s", socket)
}

func TestJSONLinesAreAsQMPHasThem(t *testing.T) {
	dir := socket.Dir(t)
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	sargs := []string{"secondary", "-json", "-image", b + ".img", "-size", "4M", "-listen", b}
	s := start(t, sargs...)
	awaitListener(t, b+".control")
	p := start(t, "primary", "-json", "-image", a+".img", "-size", "4M", "-secondary", b, "-listen", a)
	p.expect(`"event":"DISK_SYNC_PROGRESS","data":{"disk":"disk","phase":"copy"`)
	p.expect(`"event":"DISK_SYNCHRONISED"`)
	p.expect(`"event":"CHECKPOINT_COMMIT","data":{"mode":"primary","epoch":0,"cause":"initial"`)
	write(t, guest(t, a, "disk"), 0x22, 0)
	p.say("checkpoint")
	p.expect(`"event":"CHECKPOINT_COMMIT","data":{"mode":"primary","epoch":1,"cause":"request"`)
	s.say("status")
	s.expect(`{"return":{"state":"running","epoch":1,"active":0,"hidden":0}}`)

	// The secondary leaves, and comes back.
	s.quit()
	p.expect(`"event":"DISK_BROKEN","data":{"mode":"primary","disk":"disk","operation":"connection"`)
	p.say("checkpoint")
	p.expect(`{"error":{"class":"GenericError","desc":`)
	again := start(t, sargs...)
	awaitListener(t, b+".control")
	write(t, guest(t, a, "disk"), 0x23, 0)
	p.say("reconnect")
	p.expect(`"event":"DISK_RESYNCHRONISED","data":{"disk":"disk","copied":65536`)
	again.expect(`"event":"CHECKPOINT_COMMIT","data":{"mode":"secondary","epoch":0,"cause":"initial"`)
	p.expect(`"event":"CHECKPOINT_COMMIT","data":{"mode":"primary","epoch":0,"cause":"initial"`)
	again.say("failover")
	again.expect(`"event":"FAILOVER","data":{"mode":"secondary","epoch":0,"status":"completed"}`)
	want(t, "what the secondary took over", guest(t, b, "guest"), 0x23, 0)
	p.quit()
	again.quit()

	for _, side := range []*process{s, p, again} {
		for line := range strings.Lines(side.all.String()) {
			var object map[string]json.RawMessage
			if err := json.Unmarshal([]byte(line), &object); err != nil {
				t.Errorf("%q: %v", line, err)
				continue
			}
			if object["return"] != nil || object["error"] != nil {
				continue
			}
			if r, err := event.Decode([]byte(line)); err != nil || r.Time.IsZero() {
				t.Errorf("%s is no event with its time: %v", line, err)
			}
		}
	}
}

func TestALineThatIsNoCommandIsAnError(t *testing.T) {
	dir := socket.Dir(t)
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	s := start(t, "secondary", "-json", "-image", b+".img", "-size", "4M", "-listen", b)
	awaitListener(t, b+".control")
	p := start(t, "primary", "-image", a+".img", "-size", "4M", "-secondary", b, "-listen", a)
	p.expect("replication runs")
	s.say("checkpoint")
	s.expect(`{"error":{"class":"GenericError","desc":"\"checkpoint\" is no command: help lists them"}}`)
	p.say("failover now")
	p.expect(`error: "failover now" is no command`)
	p.say("status")
	p.expect("state running, epoch 0, the secondary lacks 0 KiB\n") // and no error that is none
	p.say("help")
	p.expect("reconnect   attach")
	p.quit()
	s.quit()
}

func TestASecondarySaysThatItsPrimaryHasLeft(t *testing.T) {
	dir := socket.Dir(t)
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	s := start(t, "secondary", "-image", b+".img", "-size", "4M", "-listen", b)
	awaitListener(t, b+".control")
	p := start(t, "primary", "-image", a+".img", "-size", "4M", "-secondary", b, "-listen", a)
	p.expect("replication runs")
	p.quit()
	s.expect("the primary of generation 1 has ended its connection")
	s.say("failover")
	s.expect("failover: the disk is that of checkpoint 0")
	s.quit()
}

func TestAPrimaryThatHasLostItsSecondarySaysWhatItStillHas(t *testing.T) {
	dir := socket.Dir(t)
	path := func(name string) string { return filepath.Join(dir, name) }
	s := start(t, "secondary", "-image", path("b.img"), "-size", "1M", "-listen", path("b"))
	s.expect("waiting for a primary")
	p := start(t, "primary", "-image", path("a.img"), "-size", "1M", "-secondary", path("b"))
	p.expect("replication runs")
	p.say("checkpoint")
	p.expect("checkpoint 1\n")
	s.kill()
	p.say("checkpoint") // which fails, and was none
	p.expect("error: ")
	p.say("status")
	p.expect("epoch 1, the secondary lacks")
	p.say("reconnect")
	p.expect("error: no secondary answers")
	p.say("verify")
	p.expect("error: no secondary: try reconnect\n")
}
