package protect

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/colo/colotest"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/failover"
	"github.com/gocolo/lockstep/vmstate"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// A meddler is a guest whose methods call the job that has called them.
type meddler struct {
	*colotest.VM
	job   *atomic.Pointer[Job]
	calls atomic.Int64
	fails atomic.Bool // Pause does, and the guest runs on
	bare  atomic.Bool // Register fails
	late  atomic.Bool // the same, and only in a session, which has the memory registered before
}

var errStuck = errors.New("a vCPU does not come back")

func (m *meddler) Pause(ctx context.Context) error {
	m.meddle()
	if m.fails.Load() {
		return errStuck
	}
	return m.VM.Pause(ctx)
}

func (m *meddler) Resume(ctx context.Context) error {
	m.meddle()
	return m.VM.Resume(ctx)
}

func (m *meddler) Throttle(int) error {
	m.meddle()
	return nil
}

func (m *meddler) Stopped() time.Duration {
	m.meddle()
	return time.Millisecond
}

func (m *meddler) Register(reg *vmstate.Registry) error {
	m.meddle()
	if err := m.hindrance(reg); err != nil {
		return err
	}
	return m.VM.Register(reg)
}

// hindrance is what Register fails with.
func (m *meddler) hindrance(reg *vmstate.Registry) error {
	inSession := slices.ContainsFunc(reg.Entries(), func(e vmstate.Entry) bool { return e.Name == ram.SectionName })
	if m.bare.Load() || m.late.Load() && inSession {
		return errBare
	}
	return nil
}

var errBare = errors.New("the model of a device has gone")

// A meddling NIC calls the job that has called it, and cannot be registered when its meddler cannot.
type meddlingNIC struct {
	Network
	m     *meddler
	alone bool // the NIC cannot be registered, and the guest can
}

func (n *meddlingNIC) Input(on bool) {
	n.m.meddle()
	n.Network.Input(on)
	n.m.meddle()
}

func (n *meddlingNIC) Register(reg *vmstate.Registry) error {
	if err := n.m.hindrance(reg); n.alone && err != nil {
		return err
	}
	return n.Network.Register(reg)
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
		m.VM = c.Guest.(*colotest.VM)
		c.Guest = m
		c.Network = []Network{&meddlingNIC{Network: c.Network[0], m: m}}
		c.Session.ThrottleShare = 0.1
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

// A host whose devices cannot be registered any more, or a NIC, makes no session. A guest that runs
// there runs on, and is protected when they can be again; a host that follows waits as well. Why is
// told once.
func TestAHostWhoseDevicesCannotBeRegisteredWaits(t *testing.T) {
	for _, of := range []string{"guest", "NIC"} {
		for _, side := range []event.Mode{event.ModePrimary, event.ModeSecondary} {
			for _, when := range []string{"before a session", "in a session"} {
				if testing.Short() && (of == "guest") == (side == event.ModePrimary) {
					continue
				}
				bubble(t, fmt.Sprintf("%s %v %s", of, side, when), func(t *testing.T, w *world) {
					w.guest.Interval = 20 * time.Millisecond
					nic := func(c *Config) {
						n := c.Network[0].(*meddlingNIC)
						n.alone = of == "NIC"
						if n.alone {
							c.Guest = n.m.VM
						}
					}
					b, ofB := w.meddling("b", false, nic)
					a, ofA := w.meddling("a", true, nic)
					a.is(Protected)
					w.f.part("a", "b", false)
					a.is(Alone)
					b.is(Waiting)
					h, m := a, ofA
					if side == event.ModeSecondary {
						h, m = b, ofB
					}
					fails := &m.bare
					if when == "in a session" {
						fails = &m.late
					}
					fails.Store(true)
					w.f.join("a", "b")
					time.Sleep(20 * time.Second)
					if q := h.job.Query(); !errors.Is(q.LastError, errBare) {
						t.Error(q.LastError)
					}
					if s := b.job.State(); s != Waiting || !a.job.State().runs() || a.guest.Paused() {
						t.Fatalf("a is %v, paused: %t; b is %v", a.job.State(), a.guest.Paused(), s)
					}
					var told []event.ProtectionRefused
					for _, e := range said[event.ProtectionRefused](h) {
						if strings.Contains(e.Error, errBare.Error()) {
							told = append(told, e)
						}
					}
					if len(told) != 1 || told[0].Mode != side {
						t.Errorf("told: %+v", told)
					}
					w.hearsMore()
					fails.Store(false)
					a.is(Protected)
					b.is(Following)
					w.hearsMore()
					b.halt()
					a.halt()
				})
			}
		}
	}
}

// An unleading network cannot be made ready for a session.
type unleading struct {
	pacedProxy
	fails atomic.Bool
}

func (u *unleading) Lead(ctx context.Context) error {
	if u.fails.Load() {
		return errBare
	}
	return u.pacedProxy.Lead(ctx)
}

// Nor does a network end the job that cannot be made ready for a session.
func TestAGuestWhoseNetworkDoesNotLeadRunsOn(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		w.guest.Interval, w.compared = 20*time.Millisecond, true
		n := new(unleading)
		n.fails.Store(true)
		b := w.boot("b", false, nil)
		a := w.boot("a", true, func(c *Config) {
			n.pacedProxy = c.Network[0].(pacedProxy)
			c.Network = []Network{n}
		})
		a.is(Alone)
		time.Sleep(10 * time.Second)
		all := said[event.ProtectionRefused](a)
		if q := a.job.Query(); q.State != Alone || a.guest.Paused() || !errors.Is(q.LastError, errBare) || len(all) != 1 {
			t.Fatalf("%v, paused: %t, %v, told: %+v", q.State, a.guest.Paused(), q.LastError, all)
		}
		w.hearsMore()
		n.fails.Store(false)
		a.is(Protected)
		b.is(Following)
		w.hearsMore()
		b.halt()
		a.halt()
	})
}

// What cannot be registered when Run begins has never worked: Run says so.
func TestAHostWhoseDevicesCannotBeRegisteredAtFirstIsRefused(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		m := &meddler{job: new(atomic.Pointer[Job])}
		m.bare.Store(true)
		a := w.boot("a", true, func(c *Config) {
			m.VM = c.Guest.(*colotest.VM)
			c.Guest = m
		})
		<-a.done
		if !errors.Is(a.err, errBare) {
			t.Error(a.err)
		}
		a.leave()
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
