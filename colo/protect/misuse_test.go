package protect

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/colo/colotest"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/failover"
)

// A meddler is a guest whose methods call the job that has called them.
type meddler struct {
	*colotest.Guest
	job   *atomic.Pointer[Job]
	calls atomic.Int64
	fails atomic.Bool // Pause does, and the guest runs on
}

var errStuck = errors.New("a vCPU does not come back")

func (m *meddler) Pause(ctx context.Context) error {
	m.meddle()
	if m.fails.Load() {
		return errStuck
	}
	return m.Guest.Pause(ctx)
}

func (m *meddler) Resume(ctx context.Context) error {
	m.meddle()
	return m.Guest.Resume(ctx)
}

// meddle calls what does not wait for a session.
func (m *meddler) meddle() {
	if j := m.job.Load(); j != nil {
		meddle(j)
		m.calls.Add(1)
	}
}

func meddle(j *Job) {
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	j.Query()
	j.State()
	j.Gate().Open()
	j.OutputLatency()
	j.Checkpoint()
	j.SetDelay(j.CheckpointDelay())
	j.Resume()
	j.Wait(ended, Concluded)
}

// meddling boots a host whose guest, and whose subscriber, call the job. change may be nil.
func (w *world) meddling(name string, start bool, change func(*Config)) (*host, *meddler) {
	m := &meddler{job: new(atomic.Pointer[Job])}
	h := w.boot(name, start, func(c *Config) {
		m.Guest = c.Guest.(*colotest.Guest)
		c.Guest = m
		c.Events.SubscribeAll(func(event.Record) {
			if j := m.job.Load(); j != nil {
				meddle(j)
			}
		})
		if change != nil {
			change(c)
		}
	})
	m.job.Store(h.job)
	return h, m
}

// What does not wait for a session may be called from anywhere: by the guest's own methods, and by
// who hears of an event.
func TestAJobIsAskedByItsOwnGuestAndByWhoHearsOfItsEvents(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		b, ofB := w.meddling("b", false, nil)
		a, ofA := w.meddling("a", true, nil)
		a.is(Protected)
		b.is(Following)
		time.Sleep(300 * time.Millisecond)
		if err := a.job.Switchover(t.Context()); err != nil {
			t.Fatal(err)
		}
		b.is(Protected)
		a.is(Following)
		if ofA.calls.Load() == 0 || ofB.calls.Load() == 0 {
			t.Errorf("the guests have called %d and %d times", ofA.calls.Load(), ofB.calls.Load())
		}
		w.hearsMore()
		a.halt()
		b.halt()
	})
}

// A guest that cannot be paused cannot be protected. It runs on all the same, Query says why, and it
// is protected when it can be paused again.
func TestAGuestThatCannotBePausedRunsOn(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		w.guest.Interval = 20 * time.Millisecond
		b := w.boot("b", false, nil)
		a, m := w.meddling("a", true, nil)
		a.is(Protected)
		m.fails.Store(true)
		time.Sleep(20 * time.Second)
		if q := a.job.Query(); !q.State.runs() || !q.Open || !errors.Is(q.LastError, errStuck) {
			t.Errorf("%v, open: %v, %v", q.State, q.Open, q.LastError)
		}
		w.hearsMore()
		m.fails.Store(false)
		a.is(Protected)
		b.is(Following)
		w.hearsMore()
		b.halt()
		a.halt()
	})
}

// A host that is told to reach itself says so, whatever it is doing, and the guest runs on.
func TestAHostThatReachesItselfIsToldSo(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		var log lines
		a := w.boot("a", true, func(c *Config) {
			c.Logger = slog.New(slog.NewTextHandler(&log, nil))
			c.Peer.Dialer = func(ctx context.Context) (net.Conn, error) { return w.f.dial(ctx, "a", "a") }
		})
		a.is(Alone)
		time.Sleep(10 * time.Second)
		var r *RefusedError
		if q := a.job.Query(); q.State != Alone || !errors.As(q.LastError, &r) || r.Reason != `both hosts are called "a"` {
			t.Errorf("%v: %v", q.State, q.LastError)
		}
		if !log.has("level=WARN", "PROTECTION_REFUSED", "both hosts are called") {
			t.Error(strings.Join(log.all(), "\n"))
		}
		w.hearsMore()
		a.halt()
	})
}

// A Config that is used again is refused: what the first job has stays as it is.
func TestAConfigOfTwoJobsLeavesTheFirstAsItIs(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		var cfg Config
		b := w.boot("b", false, nil)
		a := w.boot("a", true, func(c *Config) { cfg = *c })
		a.is(Protected)
		b.is(Following)
		cfg.Events = nil // a's own, which would hear of another job
		if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), "Network 0 belongs to a job already") {
			t.Error(err)
		}
		cfg.Network = nil
		second, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		if err := second.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "is at this port already") {
			t.Error(err)
		}
		if err := a.job.Run(t.Context()); !errors.Is(err, errRanTwice) {
			t.Error(err)
		}
		var se *StateError
		if err := second.Pause(t.Context(), "nothing"); !errors.As(err, &se) {
			t.Error(err)
		}
		time.Sleep(time.Second)
		if a.job.State() != Protected || b.job.State() != Following {
			t.Errorf("a is %v, b %v", a.job.State(), b.job.State())
		}
		w.hearsMore()
		b.halt()
		a.halt()
	})
}

// Networks of a Config that New has refused are free for the next.
func TestAConfigThatIsRefusedTakesNothing(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		a := w.boot("a", true, func(c *Config) {
			bad := *c
			bad.Disks = []*Disk{{gate: failover.NewGate()}}
			if _, err := New(bad); err == nil {
				t.Error("a disk that belongs to a job")
			}
		})
		a.is(Alone)
		a.halt()
	})
}

// The journal of a disk that follows is not undone because a second job is made with the disk.
func TestADiskOfTwoJobsIsNotBroughtBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, true)
		var cfg Config
		slow := func(c *Config) {
			c.CheckpointDelay = time.Hour
			if c.Host == "b" {
				cfg = *c
			}
		}
		b := s.start("b", false, slow)
		a := s.start("a", true, slow)
		a.is(Protected)
		b.is(Following)
		s.write("a", "after the checkpoint")
		arrived := func() bool {
			p, err := os.ReadFile(s.image("b"))
			return err == nil && strings.HasPrefix(string(p), "after the checkpoint")
		}
		s.until(arrived)
		cfg.Network = nil
		if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), "belongs to a job already") {
			t.Error(err)
		}
		if !arrived() {
			t.Error("the disk was brought back to its last checkpoint, under a job that follows")
		}
		b.halt()
		a.halt()
		s.clean()
	})
}
