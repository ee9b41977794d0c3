package protect

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo/colotest"
	"github.com/gocolo/lockstep/failover"
	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// inFile returns a new file.
func inFile(t testing.TB) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "guest"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// canRunAhead skips the test where memory cannot come after the guest runs.
func canRunAhead(t testing.TB) {
	t.Helper()
	l, err := ram.NewLazy(quiet(t).Blocks())
	if err == nil {
		err = l.Probe()
	}
	if err != nil {
		require.Missing(t, require.Userfaultfd, err)
	}
}

// slowFile gives memory only when it may, and may fail then.
type slowFile struct {
	io.ReaderAt
	shut bool
	open chan struct{}
	err  error
}

func (f *slowFile) ReadAt(p []byte, at int64) (int, error) {
	if f.shut {
		<-f.open
		if f.err != nil {
			return 0, f.err
		}
	}
	return f.ReaderAt.ReadAt(p, at)
}

// savedHost boots a host with the guest of a file, whose memory cannot be read yet.
func (w *world) savedHost(name string, f io.ReaderAt) (h *host, s *Saved, memory *slowFile) {
	w.t.Helper()
	memory = &slowFile{ReaderAt: f, open: make(chan struct{})}
	h = w.boot(name, true, func(c *Config) {
		var err error
		if s, err = OpenSaved(memory, c.Guest.(EnsuredGuest), c.Machine); err != nil {
			w.t.Fatal(err)
		}
		memory.shut = true // before Run
		c.Saved = s
	})
	return h, s, memory
}

// saves boots a host, has its guest run, and saves it to a file that it returns.
func (w *world) saves(name string) (f *os.File, rounds uint64, memory []byte) {
	w.t.Helper()
	a := w.boot(name, true, nil)
	a.is(Alone)
	w.hearsMore()
	f = inFile(w.t)
	if err := a.job.SaveMapped(w.t.Context(), f); err != nil {
		w.t.Fatal(err)
	}
	<-a.done
	rounds, memory = a.guest.Rounds()[0], bytes.Clone(a.guest.Memory())
	w.verify(a)
	a.leave()
	return f, rounds, memory
}

// hearsMore waits for more frames.
func (w *world) hearsMore() {
	for before := w.heard(); w.heard() < before+100; {
		time.Sleep(time.Millisecond)
	}
}

// andBack hands the guest over from b, which has it, to a, and ends both hosts.
func (w *world) andBack(a, b *host) {
	w.t.Helper()
	w.hearsMore()
	if err := b.job.Switchover(w.t.Context()); err != nil {
		w.t.Errorf("and back: %v", err)
	}
	a.is(Protected)
	b.is(Following)
	a.halt()
	b.halt()
}

// open runs a test, which is parallel, in a world that is in no bubble: the time of one
// stands still while somebody waits for memory in a system call. It waits for the terms of
// grants, which is what -short leaves out.
func open(t *testing.T, name string, f func(t *testing.T, w *world)) {
	t.Helper()
	require.Outside(t, require.Userfaultfd)
	canRunAhead(t)
	t.Run(name, func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		w.outside = true
		w.term = 2 * time.Second
		f(t, w)
		w.clean()
	})
}

func TestAGuestOfAFileRunsBeforeItsMemoryAndIsProtectedBehindIt(t *testing.T) {
	t.Parallel()
	open(t, "", func(t *testing.T, w *world) {
		f, rounds, memory := w.saves("a")
		before := w.heard()
		b := w.boot("b", false, nil)
		a, s, file := w.savedHost("a", f)
		a.is(Alone) // with a guest that runs, and waits
		if err := a.job.Checkpoint(); err == nil {
			t.Error("it is protected")
		}
		if _, err := New(a.job.cfg); err == nil {
			t.Error("another job has the same file")
		}
		if err := a.guest.Pause(t.Context()); err != nil { // which does not wait for memory
			t.Fatal(err)
		}
		if s.Generation() != 1 || a.guest.Rounds()[0] != rounds || w.heard() != before {
			t.Errorf("of generation %d, after %d rounds, %d frames", s.Generation(), a.guest.Rounds()[0]-rounds, w.heard()-before)
		}
		if err := a.guest.Resume(t.Context()); err != nil {
			t.Fatal(err)
		}
		select {
		case <-s.Filled():
			t.Error("it has memory that nobody has read")
		default:
		}
		close(file.open)
		<-s.Filled()
		w.hearsMore()
		a.is(Protected)
		w.hearsMore()
		a.halt()
		b.halt()

		// Restore reads the same file.
		g, err := colotest.NewVM(w.guest)
		if err != nil {
			t.Fatal(err)
		}
		defer g.Close()
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			t.Fatal(err)
		}
		if held, err := Restore(f, g, a.job.cfg.Machine); err != nil || held != 1 || !bytes.Equal(g.Memory(), memory) {
			t.Errorf("restored, of generation %d: %v", held, err)
		}
	})
}

func TestAGuestWhoseFileBreaksStandsStill(t *testing.T) {
	t.Parallel()
	for name, broken := range map[string]error{"an error of the disk": syscall.EIO, "the end of the file": io.EOF} {
		open(t, name, func(t *testing.T, w *world) {
			f, rounds, _ := w.saves("a")
			before := w.heard()
			a, _, file := w.savedHost("a", f)
			a.is(Alone)
			file.err = broken
			close(file.open)
			<-a.done
			want := broken
			if broken == io.EOF {
				want = io.ErrUnexpectedEOF
			}
			if !errors.Is(a.err, want) || !a.guest.Paused() || a.guest.Rounds()[0] != rounds || w.heard() != before {
				t.Errorf("%v; after %d rounds, %d frames", a.err, a.guest.Rounds()[0]-rounds, w.heard()-before)
			}
			a.leave()
		})
	}
}

func TestAGuestWhoseMemoryIsStillReadEndsByAnOrder(t *testing.T) {
	t.Parallel()
	open(t, "", func(t *testing.T, w *world) {
		f, rounds, _ := w.saves("a")
		a, _, file := w.savedHost("a", f)
		a.is(Alone)
		ctx, cancel := context.WithCancel(t.Context())
		saved := make(chan error, 1)
		go func() { saved <- a.job.Save(ctx, io.Discard) }()
		a.is(Paused) // to be saved, when there is something to save
		cancel()
		if err := <-saved; !errors.Is(err, context.Canceled) {
			t.Errorf("saved: %v", err)
		}
		a.is(Alone)
		a.stop(errHalt)
		a.is(Concluded)
		close(file.open) // a file gives what was asked for
		<-a.done
		if !errors.Is(a.err, errHalt) || a.guest.Rounds()[0] != rounds {
			t.Errorf("%v, after %d rounds", a.err, a.guest.Rounds()[0]-rounds)
		}
		a.leave()
	})
}

func TestAGuestThatHasGoneOnDoesNotGoOnFromItsFileAgain(t *testing.T) {
	t.Parallel()
	open(t, "", func(t *testing.T, w *world) {
		f, _, _ := w.saves("a")
		b, _, file := w.savedHost("b", f)
		close(file.open)
		b.is(Alone)
		a, _, file := w.savedHost("a", f)
		a.passed(Waiting)
		close(file.open)
		b.is(Protected)
		a.is(Following)
		w.hearsMore()
		a.halt()
		b.halt()
	})
}

// mapped returns the file of a guest that has run, as bytes.
func mapped(t testing.TB) ([]byte, *colotest.VM) {
	t.Helper()
	g := quiet(t)
	step(t, g, 20)
	f := inFile(t)
	if err := saveMapped(f, g, "m", 7); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	return b, g
}

func TestAFileThatIsNotWholeOpensNothing(t *testing.T) {
	canRunAhead(t)
	file, saved := mapped(t)
	g := quiet(t)
	step(t, g, 3)
	memory, rounds := bytes.Clone(g.Memory()), g.Rounds()[0]
	cuts := map[int]bool{}
	for n := 0; n < len(file); n += 1 + len(file)/50 {
		cuts[n] = true
	}
	for n := range 600 { // the headers, and the devices
		cuts[n], cuts[len(file)-1-n] = true, true
	}
	for n := range cuts {
		if _, err := OpenSaved(bytes.NewReader(file[:n]), g, "m"); err == nil || errors.Is(err, failover.ErrTorn) {
			t.Fatalf("opened, %d of %d bytes: %v", n, len(file), err)
		}
	}
	for n := range cuts {
		if n%7 == 0 {
			if _, err := Restore(bytes.NewReader(file[:n]), g, "m"); err == nil || errors.Is(err, failover.ErrTorn) {
				t.Fatalf("restored, %d of %d bytes: %v", n, len(file), err)
			}
		}
	}
	stream, _ := newSaved(t)
	if _, err := OpenSaved(bytes.NewReader(stream), g, "m"); !errors.Is(err, ErrNotMapped) {
		t.Errorf("a stream: %v", err)
	}
	if !bytes.Equal(g.Memory(), memory) || g.Rounds()[0] != rounds {
		t.Error("the guest is another than before")
	}
	if held, err := Restore(bytes.NewReader(file), g, "m"); err != nil || held != 7 || !bytes.Equal(g.Memory(), saved.Memory()) {
		t.Errorf("generation %d, %v", held, err)
	}
}

func TestAGuestOfAFileIsStartedOnItsOwnTerms(t *testing.T) {
	base := Config{Name: "guest", Host: "a", Guest: quiet(t), Peer: Peer{Listen: "127.0.0.1:0", Dial: "127.0.0.1:1", PortConfig: PortConfig{Insecure: true}}}
	for want, change := range map[string]func(*Config){
		"without Start": func(c *Config) { c.Saved = new(Saved) },
		"what is Held":  func(c *Config) { c.Saved, c.Start, c.Held = new(Saved), true, 3 },
	} {
		cfg := base
		change(&cfg)
		if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

// A host that cannot be reached runs nothing, and whoever waits for its file hears of it.
func TestAFileIsLetGoWhereRunCannotBegin(t *testing.T) {
	canRunAhead(t)
	file, _ := mapped(t)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	crowded, err := Listen("127.0.0.1:0", PortConfig{Insecure: true})
	if err != nil {
		t.Fatal(err)
	}
	defer crowded.Close()
	if err := crowded.register("guest", new(sink)); err != nil {
		t.Fatal(err)
	}
	for name, peer := range map[string]Peer{
		"an address that somebody has":        {Listen: taken.Addr().String()},
		"a port that has a guest of its name": {Port: crowded},
	} {
		g := quiet(t)
		s, err := OpenSaved(bytes.NewReader(file), g, "m")
		if err != nil {
			t.Fatal(err)
		}
		peer.Dial, peer.Insecure = "127.0.0.1:1", true
		job, err := New(Config{Name: "guest", Host: "a", Machine: "m", Guest: g, Start: true, Saved: s, Peer: peer})
		if err != nil {
			t.Fatal(err)
		}
		if err = job.Run(t.Context()); err == nil || job.State() != Concluded {
			t.Errorf("%s: %v", name, err)
		}
		select {
		case <-s.Filled():
		default:
			t.Errorf("%s: the file is waited for", name)
		}
		if why := s.Err(); why == nil || !strings.Contains(why.Error(), err.Error()) || !g.Paused() {
			t.Errorf("%s: %v, and the file says %v", name, err, why)
		}
	}
}

func FuzzOpenSaved(f *testing.F) {
	file, _ := mapped(f)
	f.Add(file[:2000])
	f.Add(file)
	g := quiet(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		memory, rounds := bytes.Clone(g.Memory()), g.Rounds()[0]
		s, err := OpenSaved(bytes.NewReader(b), g, "m")
		if err == nil {
			s.Close() // without its memory; the next input makes it another
			return
		}
		if !errors.Is(err, failover.ErrTorn) && (!bytes.Equal(memory, g.Memory()) || rounds != g.Rounds()[0]) {
			t.Error("what was refused has changed the guest")
		}
	})
}
