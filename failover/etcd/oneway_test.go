package etcd_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/gocolo/lockstep/failover"
	"github.com/gocolo/lockstep/failover/etcd"
)

// The way between the holder and all members loses one of its directions: what it asks
// arrives and is not answered, or what it asks does not arrive. It stops before the other
// host is granted the guest, which is granted it; and when the way is mended, and what
// was under way arrives, nothing of it opens the gate again or prolongs a grant.
func TestAHolderThatIsHeardOrHearsAloneStopsBeforeTheOtherBegins(t *testing.T) {
	t.Parallel()
	for direction, what := range map[int]string{there: "its requests are lost", back: "its answers are lost"} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t)
			ways, through := newRelays(t, c)
			term := time.Second
			a := keep(t, etcd.New(c.client(through...), "g", requests), "a", term)
			acquire(t, a, 0)
			direct := etcd.New(c.client(), "g", patient)
			renewals(t, direct, 2) // in the middle of its life
			for _, w := range ways {
				w.silence(direction, true)
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			takesOver(t, ctx, keep(t, etcd.New(c.client(), "g", requests), "b", term), a)
			for _, w := range ways {
				w.silence(direction, false)
			}
			for a.Generation() != 0 && ctx.Err() == nil {
				if a.Gate().Open() {
					t.Fatal("the gate of the one that was not answered opened again")
				}
				time.Sleep(time.Millisecond)
			}
			if a.Generation() != 0 {
				t.Error("the deposed holder was not told")
			}
			if r := renewals(t, direct, 2); r.Holder != "b" || r.Generation != 2 || a.Gate().Open() {
				t.Errorf("the record is %+v, the gate of the first is open: %v", r, a.Gate().Open())
			}
		})
	}
}

// A direction of the way to one member, the leader or another one, is lost: the holder
// goes on with those that answer.
func TestAHolderThatOneMemberDoesNotAnswerGoesOn(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	ways, through := newRelays(t, c)
	a := keep(t, etcd.New(c.client(through...), "g", requests), "a", 1500*time.Millisecond)
	acquire(t, a, 0)
	direct := etcd.New(c.client(), "g", patient)
	leader := c.leader()
	for _, member := range []int{leader, (leader + 1) % len(ways)} {
		for direction, what := range map[int]string{there: "requests", back: "answers"} {
			ways[member].silence(direction, true)
			name := fmt.Sprintf("the %s of member %d, where %d leads, are lost", what, member, leader)
			if r := renewals(t, direct, 2); r.Generation != 1 || r.Holder != "a" {
				t.Errorf("%s: %+v", name, r)
			}
			ways[member].silence(direction, false)
		}
	}
	if a.Generation() != 1 {
		t.Errorf("it holds generation %d", a.Generation())
	}
}

// A host whose claim is granted, and which is not told, has the guest as soon as it can
// read: it does not ask for what it has.
func TestAClaimWhoseAnswerIsLostIsHeardOfByReading(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	ways, through := newRelays(t, c)
	k := keep(t, failover.NewStoreArbiter(deaf{etcd.Open(c.client(through...), "g", requests), ways}), "a", time.Hour)
	acquire(t, k, 0)
	r, err := etcd.New(c.client(), "g", patient).Record(t.Context())
	if err != nil || r.Generation != 1 || r.Holder != "a" || r.Writes != 1 || !k.Gate().Open() {
		t.Errorf("%+v, %v; the gate is open: %v", r, err, k.Gate().Open())
	}
}

// A deaf store hears no answer to a swap.
type deaf struct {
	*etcd.Store
	ways []*relay
}

func (s deaf) Swap(ctx context.Context, old, next failover.Record) (bool, error) {
	for _, w := range s.ways {
		w.silence(back, true)
		defer w.silence(back, false)
	}
	return s.Store.Swap(ctx, old, next)
}

// renewals waits until the record has been written n times more, and returns it.
func renewals(t *testing.T, arbiter failover.Arbiter, n uint64) failover.Record {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	first, err := arbiter.Record(ctx)
	for r := first; err == nil; r, err = arbiter.Record(ctx) {
		if r.Writes >= first.Writes+n {
			return r
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatalf("the record is not written any more: %v", err)
	return failover.Record{}
}
