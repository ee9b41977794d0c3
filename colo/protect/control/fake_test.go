package control

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/colo/protect"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/event/qmp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fake is a job that says what it is told to say, and notes what it is ordered.
type fake struct {
	mu     sync.Mutex
	info   protect.Info
	orders []string
	refuse error

	run chan error // what Run returns
}

func newJob(s protect.State) *fake {
	return &fake{run: make(chan error, 1), info: protect.Info{
		Guest: "db1", Host: "a", Peer: "b", State: s, Role: event.ModePrimary, Generation: 3,
		Session: &colo.Info{State: colo.StateProtected, Mode: event.ModePrimary, LastMode: event.ModePrimary, Reason: event.ExitNone, Epoch: 12},
	}}
}

func (j *fake) set(change func(in *protect.Info)) {
	j.mu.Lock()
	defer j.mu.Unlock()
	change(&j.info)
}

func (j *fake) Query() protect.Info {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.info
}

func (j *fake) order(ctx context.Context, s string) error {
	if _, ok := ctx.Deadline(); !ok {
		return errors.New("an order that may have no end")
	}
	return j.note(s)
}

// note notes an order.
func (j *fake) note(s string) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.orders = append(j.orders, s)
	return j.refuse
}

func (j *fake) ordered() []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Clone(j.orders)
}

var _ Runner = (*protect.Job)(nil)

func (j *fake) Pause(ctx context.Context, why string) error { return j.order(ctx, "pause "+why) }

func (j *fake) Resume() error { return j.note("resume") }

func (j *fake) Complete(ctx context.Context) error { return j.order(ctx, "complete") }

func (j *fake) Checkpoint() error { return j.note("checkpoint") }

func (j *fake) Failover() error { return j.note("failover") }

func (j *fake) Fenced() error { return j.note("fenced") }

func (j *fake) Switchover(ctx context.Context) error { return j.order(ctx, "switchover") }

func (j *fake) Run(ctx context.Context) error {
	select {
	case err := <-j.run:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// A richer job has the verbs that not every job has.
type richer struct{ *fake }

func (j richer) Cancel(ctx context.Context) error { return j.order(ctx, "cancel") }

func (j richer) Migrate(ctx context.Context) error { return j.order(ctx, "migrate") }

func (j richer) SetDelay(d time.Duration) error { return j.note("delay " + d.String()) }

func (j richer) Grow(ctx context.Context, disk string, size int64) error {
	return j.order(ctx, fmt.Sprint("grow ", disk, " to ", size))
}

// vm counts pauses as a colo.VM does.
type vm struct {
	mu     sync.Mutex
	pauses int
}

func (v *vm) Pause(context.Context) error { v.mu.Lock(); defer v.mu.Unlock(); v.pauses++; return nil }

func (v *vm) Resume(context.Context) error { v.mu.Lock(); defer v.mu.Unlock(); v.pauses--; return nil }

func (v *vm) paused() int { v.mu.Lock(); defer v.mu.Unlock(); return v.pauses }

// connect serves a monitor and returns a client of it.
func connect(t *testing.T, m *Monitor) *qmp.Client {
	t.Helper()
	near, far := net.Pipe()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	s := m.Server()
	wg.Go(func() { s.ServeConn(ctx, far) })
	c, err := qmp.NewClient(t.Context(), near)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); cancel(); wg.Wait(); m.Close() })
	return c
}

// do returns what a command answers, as JSON or as the text of its error.
func do(t *testing.T, c *qmp.Client, command string, args any) string {
	t.Helper()
	var out any
	if err := c.Do(t.Context(), command, args, &out); err != nil {
		var e *qmp.Error
		if !errors.As(err, &e) {
			t.Fatalf("%s: %v", command, err)
		}
		return string(e.Class) + ": " + e.Desc
	}
	return fmt.Sprint(out)
}

type id struct {
	ID string `json:"id"`
}
