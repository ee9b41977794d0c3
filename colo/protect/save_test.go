package protect

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo/colotest"
	"github.com/gocolo/lockstep/failover"
)

// restored has a host begin with the guest of a file.
func restored(t *testing.T, file []byte) func(*Config) {
	return func(c *Config) {
		held, err := Restore(bytes.NewReader(file), c.Guest, c.Machine)
		if err != nil {
			t.Fatal(err)
		}
		c.Held, c.Start = held, true
	}
}

func TestASavedGuestGoesOnWhereItStoodOnAnyHostAndOnce(t *testing.T) {
	for _, from := range []State{Alone, Protected, Paused, Cancelled} {
		bubble(t, "while "+from.String(), func(t *testing.T, w *world) {
			w.guest.Interval = time.Millisecond // its frames are counted
			a := w.boot("a", true, nil)
			a.is(Alone)
			var b *host
			if from == Protected {
				b = w.boot("b", false, nil)
				a.is(Protected)
				b.is(Following)
			}
			time.Sleep(300 * time.Millisecond)
			if from == Paused {
				if err := a.job.Pause(t.Context(), "first"); err != nil {
					t.Fatal(err)
				}
			}
			if from == Cancelled {
				if err := a.job.Cancel(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			var file bytes.Buffer
			if err := a.job.Save(t.Context(), &file); err != nil {
				t.Fatal(err)
			}
			<-a.done
			if q := a.job.Query(); a.err != nil || q.State != Concluded || q.Reason != "saved" || !a.guest.Paused() {
				t.Errorf("Run: %v, %+v", a.err, q)
			}
			rounds := a.guest.Rounds()[0]
			w.verify(a)
			a.leave()
			if b != nil {
				time.Sleep(10 * time.Second)
				if s := b.job.State(); s != Waiting {
					t.Errorf("the secondary of a saved guest is %v", s)
				}
				b.halt()
			}
			before := w.heard()
			b = w.boot("b", false, func(c *Config) {
				restored(t, file.Bytes())(c)
				if n := c.Guest.(*colotest.VM).Rounds()[0]; n != rounds {
					t.Errorf("the guest was saved after %d rounds and goes on after %d", rounds, n)
				}
			})
			b.is(Alone)
			time.Sleep(time.Second)
			if w.heard() < before+500 {
				t.Errorf("%d frames", w.heard()-before)
			}
			a = w.boot("a", false, restored(t, file.Bytes())) // again, and is told that it is too late
			b.is(Protected)
			a.is(Following)
			a.halt()
			b.halt()
		})
	}
}

// failing takes so many bytes and then fails, or does what it is told to.
type failing struct {
	left int
	then func() error
}

func (f *failing) Write(p []byte) (int, error) {
	if len(p) > f.left {
		n := f.left
		f.left = 0
		if f.then == nil {
			return n, io.ErrShortWrite
		}
		return len(p), f.then()
	}
	f.left -= len(p)
	return len(p), nil
}

func TestASaveThatFailsLeavesTheGuestRunningAndProtected(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		w.guest.Interval = time.Millisecond // its frames are counted
		a, b := w.protected()
		for _, limit := range []int{0, 1, 100, 5000, 12000} {
			time.Sleep(300 * time.Millisecond)
			err := a.job.Save(t.Context(), &failing{left: limit})
			if !errors.Is(err, io.ErrShortWrite) {
				t.Errorf("after %d bytes: %v", limit, err)
			}
			before := w.heard()
			a.is(Protected)
			b.is(Following)
			time.Sleep(time.Second)
			if w.heard() < before+500 {
				t.Errorf("after %d bytes: %d frames", limit, w.heard()-before)
			}
		}
		for _, state := range []State{Paused, Cancelled} { // what was asked for before stays
			do := func() error { return a.job.Pause(t.Context(), "kept") }
			if state == Cancelled {
				do = func() error { return a.job.Cancel(t.Context()) }
			}
			if err := do(); err != nil {
				t.Fatal(err)
			}
			if err := a.job.Save(t.Context(), &failing{}); err == nil || a.job.State() != state || a.guest.Paused() {
				t.Errorf("%v, %v", err, a.job.State())
			}
		}
		a.halt()
		b.halt()
	})
}

// synced is a file that must be synchronised after all that is written to it.
type synced struct {
	written, stable int
	sync            func() error
}

func (f *synced) Write(p []byte) (int, error) {
	f.written += len(p)
	return len(p), nil
}

func (f *synced) Sync() error {
	f.stable = f.written
	return f.sync()
}

// The guest is given up for a file that is stable, or for a pipe, which nothing makes so.
func TestASavedGuestIsStableBeforeItIsGivenUp(t *testing.T) {
	full := errors.New("there is no room")
	for err, saved := range map[error]bool{
		full: false, nil: true, &os.PathError{Op: "sync", Err: syscall.EINVAL}: true, errors.ErrUnsupported: true,
	} {
		bubble(t, fmt.Sprint(err), func(t *testing.T, w *world) {
			a := w.boot("a", true, nil)
			a.is(Alone)
			time.Sleep(time.Millisecond) // all that Run starts has started
			f := &synced{sync: func() error {
				if s := a.job.State(); s == Concluded || !a.guest.Paused() {
					t.Errorf("synchronised while %v", s)
				}
				return err
			}}
			got := a.job.Save(t.Context(), f)
			if saved != (got == nil) || !saved && !errors.Is(got, err) || f.stable == 0 || f.stable != f.written {
				t.Errorf("%v, %d of %d bytes were made stable", got, f.stable, f.written)
			}
			if !saved {
				a.is(Alone)
				if a.guest.Paused() {
					t.Error("the guest stands still")
				}
				a.halt()
				return
			}
			<-a.done
			a.leave()
		})
	}
}

func TestASaveEndsWithItsContextAndWithTheJob(t *testing.T) {
	bubble(t, "its context", func(t *testing.T, w *world) {
		a := w.boot("a", true, nil)
		a.is(Alone)
		time.Sleep(time.Millisecond) // all that Run starts has started
		ctx, cancel := context.WithCancel(t.Context())
		err := a.job.Save(ctx, &failing{left: 100, then: func() error {
			if err := a.job.Resume(); !errors.Is(err, errSaving) {
				t.Errorf("resumed while it was saved: %v", err)
			}
			cancel()
			return nil
		}})
		if err == nil || a.guest.Paused() || a.job.State() != Alone {
			t.Errorf("%v, %v", err, a.job.State())
		}
		if err := a.job.Save(ctx, io.Discard); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		a.halt()
	})
	bubble(t, "the job", func(t *testing.T, w *world) {
		a := w.boot("a", true, nil)
		a.is(Alone)
		time.Sleep(time.Millisecond) // all that Run starts has started
		err := a.job.Save(t.Context(), &failing{left: 100, then: func() error {
			a.stop(errHalt)
			_, err := a.job.Wait(t.Context(), Concluded)
			return err
		}})
		<-a.done
		if err == nil || !errors.Is(a.err, errHalt) || !a.guest.Paused() {
			t.Errorf("%v, Run: %v", err, a.err)
		}
		a.leave()
		if err := a.job.Save(t.Context(), io.Discard); !errors.As(err, new(*StateError)) {
			t.Error(err)
		}
	})
	bubble(t, "the grant", func(t *testing.T, w *world) {
		a := w.boot("a", true, nil)
		a.is(Alone)
		time.Sleep(time.Millisecond) // all that Run starts has started
		a.noArbiter.Store(true)
		err := a.job.Save(t.Context(), &failing{left: 100, then: func() error {
			time.Sleep(5 * time.Second)
			other := failover.NewStoreArbiter(w.store)
			if _, err := other.Acquire(t.Context(), failover.Claim{Holder: "x", Token: "x", After: 1, Term: time.Minute}); err != nil {
				t.Error(err)
			}
			a.noArbiter.Store(false)
			time.Sleep(5 * time.Second)
			return nil
		}})
		a.is(Waiting)
		time.Sleep(time.Second)
		if err == nil || !a.guest.Paused() {
			t.Error(err)
		}
		a.halt()
	})
}

// A stateLog calls a function with each state that a job comes to, on the job's
// goroutine, which may wait.
type stateLog func(state string)

func (f stateLog) Enabled(context.Context, slog.Level) bool { return true }
func (f stateLog) WithAttrs([]slog.Attr) slog.Handler       { return stateLog(func(string) {}) }
func (f stateLog) WithGroup(string) slog.Handler            { return f }
func (f stateLog) Handle(_ context.Context, r slog.Record) error {
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == "state" {
			f(a.Value.String())
		}
		return true
	})
	return nil
}

func TestASaveWhoseContextEndsWhileTheSessionDoesLeavesTheGuestProtected(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		ctx, cancel := context.WithCancel(t.Context())
		b := w.boot("b", false, nil)
		a := w.boot("a", true, func(c *Config) {
			c.Logger = slog.New(stateLog(func(state string) {
				if state == Paused.String() {
					cancel()
					time.Sleep(time.Millisecond) // the session has not ended yet, and Save sees that ctx has
				}
			}))
		})
		a.is(Protected)
		b.is(Following)
		var file bytes.Buffer
		if err := a.job.Save(ctx, &file); !errors.Is(err, context.Canceled) || file.Len() > 0 {
			t.Errorf("%v, %d bytes", err, file.Len())
		}
		a.is(Protected)
		b.is(Following)
		a.halt()
		b.halt()
	})
}

// What the guest has written is stable when it is, but the answer waits for the gate.
func TestASaveDoesNotWaitForAnArbiterThatIsOutOfReach(t *testing.T) {
	for _, leaves := range []bool{false, true} {
		bubble(t, map[bool]string{false: "its context ends", true: "the job ends"}[leaves], func(t *testing.T, w *world) {
			w.guest.Interval = time.Hour
			w.disks = true
			a := w.boot("a", true, nil)
			a.is(Alone)
			time.Sleep(time.Millisecond) // all that Run starts has started
			a.noArbiter.Store(true)
			time.Sleep(5 * time.Second)
			began := time.Now()
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			if leaves {
				time.AfterFunc(time.Second, func() { a.stop(errHalt) })
			}
			err := a.job.Save(ctx, io.Discard)
			want := map[bool]time.Duration{false: 5 * time.Second, true: time.Second}[leaves]
			if took := time.Since(began); err == nil || took != want {
				t.Errorf("after %v: %v", took, err)
			}
			if leaves {
				<-a.done
				if !errors.Is(a.err, errHalt) || !a.guest.Paused() {
					t.Errorf("Run: %v", a.err)
				}
				a.leave()
				return
			}
			if a.guest.Paused() || a.job.State() != Alone {
				t.Errorf("the guest stands still: %v", a.job.State())
			}
			a.stop(errHalt) // while the disk has not answered yet
			a.bury()
		})
	}
}

func TestASavedGuestAndItsDiskAreOfOneMoment(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		w.disks = true
		a := w.boot("a", true, nil)
		a.is(Alone)
		time.Sleep(300 * time.Millisecond)
		var file bytes.Buffer
		if err := a.job.Save(t.Context(), &file); err != nil {
			t.Fatal(err)
		}
		<-a.done
		a.ran = true
		w.verify(a)
		a.leave()
		a = w.boot("a", false, restored(t, file.Bytes()))
		a.is(Alone)
		time.Sleep(300 * time.Millisecond)
		a.halt()

		a = w.boot("a", true, nil)
		a.is(Waiting) // its disk is of a generation that the arbiter does not go back from
		a.halt()
	})
}

// newSaved returns a file and the guest that is in it.
func newSaved(t testing.TB) ([]byte, *colotest.VM) {
	g := quiet(t)
	step(t, g, 20)
	var file bytes.Buffer
	if err := save(&file, g, "m", 7); err != nil {
		t.Fatal(err)
	}
	return file.Bytes(), g
}

func quiet(t testing.TB) *colotest.VM {
	g, err := colotest.NewVM(colotest.VMConfig{Pages: 4, Touch: 2, Seed: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.Close() })
	return g
}

// step lets a guest that stands still make so many rounds.
func step(t testing.TB, g *colotest.VM, rounds int) {
	if err := errors.Join(g.Resume(t.Context()), g.Step(rounds), g.Pause(t.Context())); err != nil {
		t.Fatal(err)
	}
}

func TestAFileThatIsNotWholeRestoresNothing(t *testing.T) {
	file, saved := newSaved(t)
	g := quiet(t)
	step(t, g, 3)
	memory, rounds := bytes.Clone(g.Memory()), g.Rounds()[0]
	cuts := 2000
	if testing.Short() {
		cuts = 200
	}
	for n := 0; n < len(file); n += 1 + len(file)/cuts {
		if _, err := Restore(bytes.NewReader(file[:n]), g, "m"); err == nil || errors.Is(err, failover.ErrTorn) {
			t.Fatalf("%d of %d bytes: %v", n, len(file), err)
		}
	}
	if _, err := Restore(bytes.NewReader(file), g, "another"); err == nil || !strings.Contains(err.Error(), "machine") {
		t.Error(err)
	}
	if !bytes.Equal(g.Memory(), memory) || g.Rounds()[0] != rounds {
		t.Error("the guest is another than before")
	}
	held, err := Restore(bytes.NewReader(file), g, "m")
	if err != nil || held != 7 || !bytes.Equal(g.Memory(), saved.Memory()) || g.Rounds()[0] != saved.Rounds()[0] {
		t.Errorf("generation %d, %v", held, err)
	}
}

func TestAFileWithoutADeviceRestoresNothing(t *testing.T) {
	g := quiet(t)
	two, err := colotest.NewVM(colotest.VMConfig{Pages: 4, Touch: 2, Seed: 1, VCPUs: 2})
	if err != nil {
		t.Fatal(err)
	}
	defer two.Close()
	var file bytes.Buffer
	if err := save(&file, g, "m", 7); err != nil {
		t.Fatal(err)
	}
	if _, err := Restore(&file, two, "m"); err == nil {
		t.Error("a guest with one vCPU has become one with two")
	}
}

func FuzzRestore(f *testing.F) {
	file, _ := newSaved(f)
	f.Add(file)
	f.Add(file[:len(file)/2])
	g := quiet(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		memory, rounds := bytes.Clone(g.Memory()), g.Rounds()[0]
		_, err := Restore(bytes.NewReader(b), g, "m")
		if err != nil && !errors.Is(err, failover.ErrTorn) && (!bytes.Equal(memory, g.Memory()) || rounds != g.Rounds()[0]) {
			t.Error("what was refused has changed the guest")
		}
	})
}

// A guest that could not be saved, and then cannot be resumed, does not stand still under a job that
// says that it runs: the job ends, and gives the guest back.
func TestAGuestThatCannotBeResumedAfterASaveThatFailsEndsItsJob(t *testing.T) {
	for _, paused := range []bool{false, true} {
		bubble(t, fmt.Sprint("paused before ", paused), func(t *testing.T, w *world) {
			w.ailing = true
			a := w.boot("a", true, nil)
			a.is(Alone)
			if paused {
				if err := a.job.Pause(t.Context(), ""); err != nil {
					t.Fatal(err)
				}
			}
			a.ails.resume.Store(1)
			if err := a.job.Save(t.Context(), &sizedBuffer{most: 100}); !errors.Is(err, errNoRoom) || !errors.Is(err, errGuest) {
				t.Errorf("Save: %v", err)
			}
			select {
			case <-a.done:
			case <-time.After(time.Minute):
				t.Errorf("a is %v", a.job.State())
				a.halt()
				return
			}
			if !errors.Is(a.err, errGuest) || !a.guest.Paused() {
				t.Errorf("Run: %v; the guest stands still: %v", a.err, a.guest.Paused())
			}
			if r, err := w.store.Load(t.Context()); err != nil || r.Held() {
				t.Errorf("the record is %+v, %v", r, err)
			}
			a.leave()
		})
	}
}
