package failover_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/gocolo/lockstep/failover"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var errLoad = errors.New("load failed")

// A machine under test, with the statuses that it went through.
type observed struct {
	failover.Machine
	trace []failover.Status
}

func newObserved() *observed {
	o := new(observed)
	o.OnChange = func(s failover.Status) {
		if s != o.Status() {
			panic("OnChange sees another status than Status gives")
		}
		o.trace = append(o.trace, s)
	}
	return o
}

var calls = []struct {
	name string
	do   func(*observed) error
}{
	{"request", func(o *observed) error { return o.Request() }},
	{"begin", func(o *observed) error { _, err := o.Begin(); return err }},
	{"start", func(o *observed) error {
		if had := o.Loading(); o.StartLoad() && had {
			return errors.New("a second load began")
		}
		return nil
	}},
	{"end", func(o *observed) error { o.EndLoad(nil); return nil }},
	{"tear", func(o *observed) error { o.EndLoad(errLoad); return nil }},
	{"complete", func(o *observed) error { return o.Complete() }},
	{"withdraw", func(o *observed) error { return o.Withdraw() }},
	{"reset", func(o *observed) error { return o.Reset() }},
}

// legal lists the transitions of the diagram in the package's comment.
var legal = map[failover.Status][]failover.Status{
	failover.None:      {failover.Require, failover.Torn},
	failover.Require:   {failover.Active, failover.Relaunch, failover.Torn},
	failover.Relaunch:  {failover.None, failover.Torn},
	failover.Active:    {failover.Completed, failover.None},
	failover.Completed: {failover.None},
	failover.Torn:      nil,
}

// A node is one sequence of calls and what it led to.
type node struct {
	path      uint32 // four bits for each call, the last one lowest
	status    failover.Status
	loading   bool
	completed uint8 // how often, in this session
}

func TestEverySequenceOfEightCallsKeepsTheInvariants(t *testing.T) {
	// Breadth-first: all sequences of one length before any of the next, so
	// that the first failure is a shortest one.
	length := 8
	if testing.Short() {
		length = 6
	}
	o := newObserved()
	level := []node{{status: failover.None}}
	count := 0
	// A call in a state that has been met leads where it led before: status and
	// loading are all that a machine has.
	type move struct {
		from node
		call int
	}
	met := map[move]node{}
	for range length {
		next := make([]node, 0, len(level)*len(calls))
		for _, from := range level {
			for c := range calls {
				count++
				m := move{from, c}
				m.from.path = 0
				to, ok := met[m]
				if !ok {
					var err error
					if to, err = step(o, from, c); err != nil {
						t.Fatalf("%s: %v", names(to.path), err)
					}
					met[m] = to
				}
				to.path = from.path<<4 | uint32(c+1)
				next = append(next, to)
			}
		}
		level = next
	}
	t.Logf("%d sequences, %d different moves", count, len(met))
	// And so it is: the sequences again, a sample of them, on machines that are
	// not put into their states.
	for i := 0; i < len(level); i += 97 {
		fresh := newObserved()
		for shift := 4 * (length - 1); shift >= 0; shift -= 4 {
			calls[level[i].path>>shift&15-1].do(fresh)
		}
		if fresh.Status() != level[i].status || fresh.Loading() != level[i].loading {
			t.Fatalf("%s: %v, want %v", names(level[i].path), fresh.Status(), level[i].status)
		}
	}
}

func names(path uint32) string {
	var s []string
	for ; path != 0; path >>= 4 {
		s = append(s, calls[path&15-1].name)
	}
	slices.Reverse(s)
	return strings.Join(s, ", ")
}

func step(o *observed, from node, c int) (node, error) {
	o.Put(from.status, from.loading)
	o.trace = o.trace[:0]
	err := calls[c].do(o)
	to := node{from.path<<4 | uint32(c+1), o.Status(), o.Loading(), from.completed}

	var se *failover.StatusError
	if err != nil {
		switch {
		case !errors.As(err, &se):
			return to, err
		case se.Have != from.status || len(o.trace) != 0 || to.loading != from.loading:
			return to, fmt.Errorf("refused with %v in %v, and moved %v", err, from.status, o.trace)
		case errors.Is(err, failover.ErrTorn) != (from.status == failover.Torn):
			return to, fmt.Errorf("refused with %v in %v", err, from.status)
		}
	}
	at := from.status
	for _, s := range o.trace {
		if !slices.Contains(legal[at], s) {
			return to, fmt.Errorf("%v became %v", at, s)
		}
		if at = s; s == failover.Completed {
			to.completed++
		}
	}
	if to.completed > 1 {
		return to, errors.New("completed twice")
	}
	if calls[c].name == "reset" && err == nil {
		to.completed = 0 // another session
	}
	switch {
	case at != to.status:
		return to, fmt.Errorf("OnChange said %v, and the status is %v", at, to.status)
	case to.loading && (to.status == failover.Active || to.status == failover.Completed || to.status == failover.Torn):
		return to, fmt.Errorf("%v while loading", to.status)
	case !to.loading && to.status == failover.Relaunch:
		return to, errors.New("relaunch without a load to wait for")
	case from.status == failover.Torn && to.status != failover.Torn:
		return to, errors.New("torn was not final")
	case to.loading && !from.loading && from.status != failover.None:
		return to, fmt.Errorf("a load began in %v", from.status)
	}
	return to, nil
}

func TestFailoverDuringALoadWaitsForItsEnd(t *testing.T) {
	o := newObserved()
	if !o.StartLoad() {
		t.Fatal("a load may begin when nothing was requested")
	}
	if err := o.Request(); err != nil {
		t.Fatal(err)
	}
	if s, err := o.Begin(); s != failover.Relaunch || err != nil {
		t.Fatalf("begin during a load: %v, %v; want relaunch", s, err)
	}
	if !o.EndLoad(nil) {
		t.Fatal("the end of the load did not say that the failover goes on")
	}
	if err := o.Complete(); err != nil {
		t.Fatal(err)
	}
	want := []failover.Status{failover.Require, failover.Relaunch, failover.None, failover.Require, failover.Active, failover.Completed}
	if !slices.Equal(o.trace, want) {
		t.Errorf("the statuses were %v, want %v", o.trace, want)
	}
	if o.StartLoad() {
		t.Error("a load began on the side that has taken over")
	}
}

func TestTornGuestRefusesEverything(t *testing.T) {
	var m failover.Machine
	m.StartLoad()
	m.Request()
	m.Begin()
	if m.EndLoad(errLoad) {
		t.Error("a torn guest was told to take over")
	}
	for _, err := range []error{m.Request(), second(m.Begin()), m.Complete(), m.Reset()} {
		if !errors.Is(err, failover.ErrTorn) || errors.Is(err, failover.ErrInProgress) {
			t.Errorf("%v, want ErrTorn", err)
		}
	}
	if m.StartLoad() {
		t.Error("a load began")
	}
}

func second[A any](_ A, err error) error { return err }

func TestSecondRequestIsInProgress(t *testing.T) {
	var m failover.Machine
	m.Request()
	if err := m.Request(); !errors.Is(err, failover.ErrInProgress) {
		t.Errorf("%v, want ErrInProgress", err)
	}
	if err := m.Complete(); errors.Is(err, failover.ErrInProgress) || err == nil {
		t.Errorf("%v: to complete what has not begun is a mistake, not a failover in progress", err)
	}
}

func TestStatusesHaveTheirQAPINames(t *testing.T) {
	want := []string{"none", "require", "active", "completed", "relaunch"} // QAPI enum FailoverStatus, by value
	for i, w := range want {
		if s := failover.Status(i).String(); s != w {
			t.Errorf("%d is %q, want %q", i, s, w)
		}
	}
}

// One goroutine loads, others request and begin: the race that the lock is for.
func TestConcurrentRequestNeverOverlapsWithALoad(t *testing.T) {
	tries := 500
	if testing.Short() {
		tries = 100
	}
	for range tries {
		var m failover.Machine
		var wg sync.WaitGroup
		took := make(chan string, 4)
		for range 2 {
			wg.Go(func() {
				if m.Request() != nil {
					return
				}
				if s, err := m.Begin(); err != nil {
					t.Error(err)
				} else if s == failover.Active {
					took <- "begin"
				}
			})
		}
		wg.Go(func() {
			for m.StartLoad() {
				if s := m.Status(); s == failover.Active || s == failover.Completed {
					t.Errorf("%v while loading", s)
				}
				if m.EndLoad(nil) {
					took <- "end of load"
				}
			}
		})
		wg.Wait()
		if len(took) != 1 {
			t.Fatalf("%d took over, want one", len(took))
		}
		if err := m.Complete(); err != nil {
			t.Fatal(err)
		}
	}
}
