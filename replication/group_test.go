package replication

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// journal records the calls that reach the members of a group.
type callLog struct {
	mu    sync.Mutex
	calls []string
}

func (l *callLog) add(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.calls = append(l.calls, fmt.Sprintf(format, args...))
}

func (l *callLog) take() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	calls := l.calls
	l.calls = nil
	return calls
}

// member is a Replicator that fails where it is told to.
type member struct {
	name string
	log  *callLog
	fail map[string]error
}

func (m *member) do(op string, detail any) error {
	m.log.add("%s %s %v", m.name, op, detail)
	return m.fail[op]
}

func (m *member) Start(context.Context) error                  { return m.do("start", "") }
func (m *member) Checkpoint(_ context.Context, e uint64) error { return m.do("checkpoint", e) }
func (m *member) Stop(_ context.Context, failover bool) error  { return m.do("stop", failover) }
func (m *member) Err() error                                   { return m.fail["err"] }

// marked is a member that is a Marker and a Preparer too.
type marked struct{ member }

func (m *marked) Mark(_ context.Context, e uint64) error    { return m.do("mark", e) }
func (m *marked) Loaded(_ context.Context, e uint64) error  { return m.do("loaded", e) }
func (m *marked) Prepare(_ context.Context, e uint64) error { return m.do("prepare", e) }

func newGroup() (Group, *callLog, []map[string]error) {
	log := &callLog{}
	fails := []map[string]error{{}, {}, {}}
	return Group{
		&marked{member{"a", log, fails[0]}},
		&member{"b", log, fails[1]},
		&marked{member{"c", log, fails[2]}},
	}, log, fails
}

func wantCalls(t *testing.T, why string, log *callLog, want ...string) {
	t.Helper()
	got := log.take()
	for i := range got {
		got[i] = strings.TrimSpace(got[i])
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("%s (-want +got):\n%s", why, d)
	}
}

func TestGroupStartsAllOrNone(t *testing.T) {
	g, log, fails := newGroup()
	ctx := context.Background()
	if err := g.Start(ctx); err != nil {
		t.Fatal(err)
	}
	wantCalls(t, "all start, in order", log, "a start", "b start", "c start")

	bad, worse := errors.New("bad"), errors.New("worse")
	fails[2]["start"], fails[0]["stop"] = bad, worse
	err := g.Start(ctx)
	if !errors.Is(err, bad) || !errors.Is(err, worse) {
		t.Errorf("error %v, want both the cause and what the roll-back met", err)
	}
	var me *MemberError
	if !errors.As(err, &me) || me.Index != 2 || me.Op != "start" {
		t.Errorf("error %v does not name disk 2", err)
	}
	wantCalls(t, "those that had started are stopped, last first", log,
		"a start", "b start", "c start", "b stop false", "a stop false")
}

func TestGroupRollsBackAStartThoughTheContextIsDone(t *testing.T) {
	g, _, fails := newGroup()
	ctx, cancel := context.WithCancel(context.Background())
	fails[1]["start"] = context.Canceled
	stopped := false
	g[0] = stopFunc{g[0], func(ctx context.Context) { stopped = ctx.Err() == nil }}
	cancel()
	if err := g.Start(ctx); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if !stopped {
		t.Error("the roll-back was handed a context that is already done")
	}
}

type stopFunc struct {
	Replicator
	stop func(context.Context)
}

func (s stopFunc) Stop(ctx context.Context, _ bool) error { s.stop(ctx); return nil }

func TestGroupStopsAllAndJoinsErrors(t *testing.T) {
	g, log, fails := newGroup()
	e0, e2 := errors.New("e0"), errors.New("e2")
	fails[0]["stop"], fails[2]["stop"] = e0, e2
	err := g.Stop(context.Background(), true)
	if !errors.Is(err, e0) || !errors.Is(err, e2) {
		t.Errorf("error %v, want both", err)
	}
	calls := log.take() // all at the same time
	slices.Sort(calls)
	if !slices.Equal(calls, []string{"a stop true", "b stop true", "c stop true"}) {
		t.Errorf("calls %q: an error stops nobody else from stopping", calls)
	}
}

func TestGroupCheckpointsNoneUnlessAllAreReady(t *testing.T) {
	g, log, fails := newGroup()
	ctx := context.Background()
	bad := errors.New("bad")

	fails[2]["prepare"] = bad
	if err := g.Checkpoint(ctx, 7); !errors.Is(err, bad) {
		t.Fatal(err)
	}
	if slices.ContainsFunc(log.take(), func(s string) bool { return strings.Contains(s, "checkpoint") }) {
		t.Error("a disk was checkpointed although another could not be prepared")
	}

	delete(fails[2], "prepare")
	fails[1]["err"] = bad
	if err := g.Checkpoint(ctx, 7); !errors.Is(err, bad) {
		t.Fatal(err)
	}
	if slices.ContainsFunc(log.take(), func(s string) bool { return strings.Contains(s, "checkpoint") }) {
		t.Error("a disk was checkpointed although another had an error")
	}

	delete(fails[1], "err")
	if err := g.Checkpoint(ctx, 7); err != nil {
		t.Fatal(err)
	}
	calls := log.take()
	wantTail := []string{"a checkpoint 7", "b checkpoint 7", "c checkpoint 7"}
	if len(calls) != 5 || !slices.Equal(calls[2:], wantTail) {
		t.Errorf("calls %q, want two prepares and then %q", calls, wantTail)
	}
}

func TestGroupMarksTheMembersThatAreMarkers(t *testing.T) {
	g, log, fails := newGroup()
	ctx := context.Background()
	if err := g.Mark(ctx, 3); err != nil {
		t.Fatal(err)
	}
	calls := log.take()
	slices.Sort(calls)
	if !slices.Equal(calls, []string{"a mark 3", "c mark 3"}) {
		t.Errorf("calls %q", calls)
	}
	if err := g[1:2].Loaded(ctx, 3); err != nil {
		t.Fatal(err)
	}
	wantCalls(t, "a disk that is no Marker is not asked", log)
	bad := errors.New("bad")
	fails[0]["loaded"] = bad
	if err := g.Loaded(ctx, 3); !errors.Is(err, bad) {
		t.Errorf("error %v", err)
	}
}

func TestEmptyGroupIsAlwaysReady(t *testing.T) {
	var g Group
	ctx := context.Background()
	if err := errors.Join(g.Start(ctx), g.Mark(ctx, 0), g.Checkpoint(ctx, 0), g.Loaded(ctx, 0), g.Err(), g.Stop(ctx, true)); err != nil {
		t.Error(err)
	}
}

// cuttable is a member whose guest may wait for the other side.
type cuttable struct{ member }

func (m *cuttable) Cut() { m.do("cut", "") }

func TestGroupCutsThoseThatCanBeCut(t *testing.T) {
	log := &callLog{}
	g := Group{&member{name: "a", log: log}, &cuttable{member{name: "b", log: log}}, &cuttable{member{name: "c", log: log}}}
	g.Cut()
	wantCalls(t, "cut", log, "b cut", "c cut")
	Group(nil).Cut()
}
