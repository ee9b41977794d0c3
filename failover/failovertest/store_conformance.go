package failovertest

import (
	"context"
	"fmt"
	"math"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gocolo/lockstep/failover"
)

// Stores are the stores of two hosts for one guest, as if in two processes.
type Stores struct{ A, B failover.Store }

// TestStore checks an implementation of failover.Store against its contract: that it compares
// the whole record, that it shows at once what it has answered, and that it waits. newTwo makes
// the stores for a guest that was never granted and frees them with t.Cleanup. An arbiter over
// such stores is then right as well, but for its times, which [TestArbiter] checks. A store that
// compares less than the record can pass that one, and let two hosts go on. The test takes
// some tenths of a second of real time. Where a call does not return though its context has ended, it
// fails with the name of the method, leaves the goroutine of that call behind, and makes no more checks.
func TestStore(t *testing.T, newTwo func(t *testing.T) Stores) {
	var hangs atomic.Bool
	for _, c := range storeChecks {
		t.Run(c.name, func(t *testing.T) { checkStore(t, c.fn, &hangs, newTwo(t)) })
		if hangs.Load() {
			return
		}
	}
}

// checkStore makes one check. hangs is set if a call has not returned.
func checkStore(t testing.TB, fn func(*stores), hangs *atomic.Bool, two Stores) {
	ctx, cancel := context.WithTimeout(t.Context(), storeBound)
	defer cancel()
	b := &bound{t, 2 * storeBound, hangs} // what is said of Changed when ctx ends comes first
	two = Stores{A: &boundedStore{two.A, b}, B: &boundedStore{two.B, b}}
	fn(&stores{TB: t, Stores: two, ctx: ctx})
}

// storeBound is how long one check may take. A store that answers is done much earlier.
const storeBound = 30 * time.Second

var storeChecks = []struct {
	name string
	fn   func(*stores)
}{
	{"a new store has the zero record", (*stores).zero},
	{"a swap is what both load next", (*stores).loads},
	{"a record comes back as it was", (*stores).wholeRecords},
	{"a swap from any other record changes nothing", (*stores).otherRecords},
	{"of swaps from one record one is made", (*stores).oneSwap},
	{"changed returns the other host's swap", (*stores).changes},
	{"changed waits while nothing changes", (*stores).waits},
}

// stores is a test of a store, with the Stores of two hosts over one place.
type stores struct {
	testing.TB
	Stores
	ctx context.Context
}

// side returns the stores by turns.
func (s *stores) side(i int) (on, other failover.Store) {
	if i%2 == 0 {
		return s.A, s.B
	}
	return s.B, s.A
}

func (s *stores) load(on failover.Store, want failover.Record, when string) {
	s.Helper()
	if r, err := on.Load(s.ctx); err != nil {
		s.Fatalf("%s: load: %v", when, err)
	} else if r != want {
		s.Fatalf("%s: the record is %+v, want %+v", when, r, want)
	}
}

func (s *stores) swap(on failover.Store, old, next failover.Record) {
	s.Helper()
	if swapped, err := on.Swap(s.ctx, old, next); err != nil || !swapped {
		s.Fatalf("swap from the present record: %v, %v", swapped, err)
	}
}

// grant returns the record after r in which another host has the guest.
func grant(r failover.Record) failover.Record {
	n := r.Generation + 1
	return failover.Record{Generation: n, Holder: fmt.Sprint("host", n%2), Token: fmt.Sprint("token", n), Term: time.Second, Note: "granted", Writes: r.Writes + 1}
}

// renewed returns the record after a renewal.
func renewed(r failover.Record, note string) failover.Record {
	r.Note = note
	r.Writes++
	return r
}

// after returns the i-th record of a row: two grants, and a renewal between them.
func after(old failover.Record, i int) failover.Record {
	if i%3 == 1 {
		return renewed(old, "renewed")
	}
	return grant(old)
}

func (s *stores) zero() {
	s.load(s.A, failover.Record{}, "before the first swap")
	s.load(s.B, failover.Record{}, "before the first swap")
	first := grant(failover.Record{})
	if swapped, err := s.A.Swap(s.ctx, first, grant(first)); err != nil || swapped {
		s.Errorf("swap from a record that never was: %v, %v, want false", swapped, err)
	}
	s.load(s.B, failover.Record{}, "after a swap from a record that never was")
}

func (s *stores) loads() {
	old := failover.Record{}
	for i := range 10 {
		on, other := s.side(i)
		next := after(old, i)
		s.swap(on, old, next)
		s.load(other, next, "right after the other host's swap")
		s.load(on, next, "right after a swap")
		old = next
	}
}

func (s *stores) wholeRecords() {
	every := make([]byte, failover.MaxNote)
	for i := range every {
		every[i] = byte(i)
	}
	old := failover.Record{}
	for _, next := range []failover.Record{
		{Generation: 1, Holder: "a", Token: "token"}, // until it is released
		{Generation: 1, Note: "released"},
		{Generation: 2, Holder: strings.Repeat("é", failover.MaxName/2), Token: strings.Repeat("t", failover.MaxName), Term: math.MaxInt64, Note: string(every)},
		{Generation: 3, Holder: "a\"\n\\", Token: "</script>", Term: time.Nanosecond, Note: "\n"},
	} {
		next.Writes = old.Writes + 1
		s.swap(s.A, old, next)
		s.load(s.B, next, "a record of the other host")
		s.swap(s.B, next, renewed(next, next.Note)) // and it is the old one of a swap
		s.load(s.A, renewed(next, next.Note), "its renewal")
		old = renewed(next, next.Note)
	}
}

func (s *stores) otherRecords() {
	first := grant(failover.Record{})
	now := renewed(first, "renewed")
	s.swap(s.A, failover.Record{}, first)
	s.swap(s.A, first, now)
	branch := now
	branch.Token = "token of another"
	for _, c := range []struct {
		what string
		old  failover.Record
	}{
		{"no record", failover.Record{}},
		{"the record before the last renewal", first},
		{"a record with another token", branch},
		{"the record of a renewal that was not", renewed(now, "renewed")},
		{"the record of the next grant", grant(now)},
	} {
		for i := range 2 {
			on, other := s.side(i)
			if swapped, err := on.Swap(s.ctx, c.old, grant(c.old)); err != nil || swapped {
				s.Fatalf("swap from %s: %v, %v, want false", c.what, swapped, err)
			}
			s.load(other, now, "after a swap from "+c.what)
		}
	}
	s.swap(s.B, now, grant(now))
}

func (s *stores) oneSwap() {
	old := failover.Record{}
	for range 5 {
		var group sync.WaitGroup
		var made [8]failover.Record
		for i := range made {
			group.Go(func() {
				on, _ := s.side(i)
				next := grant(old)
				next.Token = fmt.Sprint("token of claim ", i)
				if swapped, err := on.Swap(s.ctx, old, next); err != nil {
					s.Errorf("swap beside others: %v", err)
				} else if swapped {
					made[i] = next
				}
			})
		}
		group.Wait()
		n := 0
		for _, r := range made {
			if r != (failover.Record{}) {
				n, old = n+1, r
			}
		}
		if n != 1 {
			s.Fatalf("%d of %d swaps from the same record were made", n, len(made))
		}
		s.load(s.A, old, "after the swap that was made")
		s.load(s.B, old, "after the swap that was made")
	}
}

func (s *stores) changes() {
	old := failover.Record{}
	for i := range 10 {
		on, other := s.side(i)
		next := after(old, i)
		type answer struct {
			r   failover.Record
			err error
		}
		answers := make(chan answer, 1)
		go func() {
			r, err := other.Changed(s.ctx, old)
			answers <- answer{r, err}
		}()
		s.swap(on, old, next)
		select {
		case a := <-answers:
			if a.err != nil || a.r != next {
				s.Fatalf("changed: %+v, %v, want %+v", a.r, a.err, next)
			}
		case <-s.ctx.Done():
			s.Fatal("changed did not return after the other host's swap, nor when its context ended")
		}
		// What has changed before the call is returned as well.
		if r, err := other.Changed(s.ctx, old); err != nil || r != next {
			s.Fatalf("changed of an older record: %+v, %v, want %+v", r, err, next)
		}
		old = next
	}
}

func (s *stores) waits() {
	now := failover.Record{}
	for i := range 2 {
		on, other := s.side(i)
		ctx, cancel := context.WithCancel(s.ctx) // without a deadline, which a network could tell earlier
		time.AfterFunc(50*time.Millisecond, cancel)
		ended := make(chan error, 1)
		go func() {
			r, err := on.Changed(ctx, now)
			if err == nil {
				err = fmt.Errorf("changed returned the record that was seen, %+v", r)
			} else if ctx.Err() != nil {
				err = nil
			}
			ended <- err
		}()
		next := grant(now)
		select {
		case err := <-ended:
			if err != nil {
				s.Error(err)
			}
		case <-s.ctx.Done():
			s.Errorf("changed did not return when its context ended")
			s.ctx = context.WithoutCancel(s.ctx) // the swap lets it go
			other.Swap(s.ctx, now, next)
			return
		}
		s.swap(other, now, next)
		now = next
	}
}
