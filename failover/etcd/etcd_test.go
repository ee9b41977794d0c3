package etcd_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/gocolo/lockstep/failover"
	"github.com/gocolo/lockstep/failover/etcd"
	"github.com/gocolo/lockstep/failover/failovertest"
)

var (
	// requests go on to another member soon: for a cluster that loses some.
	requests = etcd.Config{Timeout: 500 * time.Millisecond}
	// patient waits through an election that a busy machine has caused: for calls that
	// nobody repeats.
	patient = etcd.Config{Timeout: time.Minute}
)

func TestArbiterOverACluster(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	client := c.client()
	guests := 0
	failovertest.TestArbiter(t, 400*time.Millisecond, func(t *testing.T) failovertest.Two {
		guests++
		key := fmt.Sprint("/lockstep/guest ", guests)
		return failovertest.Two{A: etcd.New(client, key, patient), B: etcd.New(client, key, patient)}
	})
}

func keep(t *testing.T, a failover.Arbiter, name string, term time.Duration) *failover.Keeper {
	t.Helper()
	k, err := failover.NewKeeper(failover.KeeperConfig{Arbiter: a, Holder: name, Term: term})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var group sync.WaitGroup
	group.Go(func() { k.Run(ctx) })
	t.Cleanup(func() { cancel(); group.Wait() })
	return k
}

func acquire(t *testing.T, k *failover.Keeper, after uint64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if g, err := k.Acquire(ctx, after); err != nil || g != after+1 {
		t.Fatalf("after %d: %d, %v", after, g, err)
	}
}

// A lost leader, then a lost member, cost the holder nothing but time: it keeps the
// guest, and the other side does not get it.
func TestLossOfTheLeaderDoesNotMoveTheGuest(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	client := c.client()
	a := keep(t, etcd.New(client, "g", requests), "a", patience)
	acquire(t, a, 0)
	b := etcd.New(client, "g", requests)
	c.stop(c.leader())
	outlives(t, a, b, etcd.New(client, "g", patient))
}

// patience is a term that a busy machine lets nobody miss.
const patience = 9 * time.Second

// outlives has a renew for more than its term while b claims the guest, which a keeps.
func outlives(t *testing.T, a *failover.Keeper, b, direct failover.Arbiter) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	claimed := make(chan error, 1)
	go func() {
		for {
			switch g, err := b.Acquire(ctx, failover.Claim{Holder: "b", Token: "b", After: 1, Term: patience}); {
			case err == nil:
				claimed <- fmt.Errorf("b got generation %d while a renews", g.Generation)
				return
			case errors.Is(err, failover.ErrRefused):
				claimed <- err
				return
			case ctx.Err() != nil: // it was not granted
				claimed <- nil
				return
			}
		}
	}()
	renewals(t, direct, 5)
	cancel()
	if err := <-claimed; err != nil {
		t.Error(err)
	}
	if !a.Gate().Open() || a.Generation() != 1 {
		t.Error("a lost the guest with the leader")
	}
}

// A leader that hears its clients, and not the other members, grants nothing, renews
// nothing and refuses nothing for good. The holder, which may ask any member, goes on
// with the others.
func TestPartitionedLeaderDecidesNothing(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	client := c.client()
	g, err := etcd.New(client, "g", patient).Acquire(ctx, failover.Claim{Holder: "a", Token: "a", Term: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	alone := c.leader()
	c.partition(alone)

	lonely := etcd.New(c.client(c.clients[alone]), "g", requests)
	if got, err := lonely.Renew(ctx, g, "of the member that is alone"); err == nil || errors.Is(err, failover.ErrRefused) {
		t.Errorf("the member that is alone renews: %+v, %v", got, err)
	}
	if got, err := lonely.Acquire(ctx, failover.Claim{Holder: "b", Token: "b", After: 1, Term: time.Minute}); err == nil || errors.Is(err, failover.ErrRefused) {
		t.Errorf("the member that is alone grants: %+v, %v", got, err)
	}
	// By turns the client asks the one that is alone, too.
	all := etcd.New(client, "g", requests)
	for {
		_, err := all.Renew(ctx, g, "of the others")
		if err == nil {
			break
		}
		if ctx.Err() != nil || errors.Is(err, failover.ErrRefused) {
			t.Fatal(err)
		}
	}
	others := slices.Delete(slices.Clone(c.clients), alone, alone+1)
	r, err := etcd.New(c.client(others...), "g", patient).Record(ctx)
	if err != nil || r.Generation != 1 || r.Holder != "a" || r.Note != "of the others" {
		t.Errorf("the others have %+v, %v", r, err)
	}
}

// takesOver has b take the guest of generation 1 over from a, which hears nothing of it.
func takesOver(t *testing.T, ctx context.Context, b, a *failover.Keeper) {
	t.Helper()
	g, err := b.Acquire(ctx, 1)
	if a.Gate().Open() {
		t.Error("both gates are open")
	}
	if err != nil || g != 2 {
		t.Fatal(g, err)
	}
}

// A host that is cut off from all members stops by its own clock before the other
// side is granted the guest, and finds itself deposed when it is back.
func TestHolderThatIsCutOffStopsBeforeTheOtherBegins(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	ways, through := newRelays(t, c)
	term := time.Second
	a := keep(t, etcd.New(c.client(through...), "g", requests), "a", term)
	acquire(t, a, 0)
	for _, w := range ways {
		w.set(true)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	b := keep(t, etcd.New(c.client(), "g", requests), "b", term)
	takesOver(t, ctx, b, a)
	for _, w := range ways {
		w.set(false)
	}
	for a.Generation() != 0 && ctx.Err() == nil {
		if a.Gate().Open() {
			t.Fatal("the gate of the one that was cut off opened again")
		}
		time.Sleep(time.Millisecond)
	}
	if a.Generation() != 0 {
		t.Error("the deposed holder was not told")
	}
	select {
	case <-b.Gate().Opened(): // again, if b was late to renew
	case <-ctx.Done():
		t.Error("the one that goes on has its gate shut")
	}
}

// Without a majority nobody is granted anything, and the holder stops.
func TestWithoutAMajorityNobodyGoesOn(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	client := c.client()
	term := time.Second
	a := keep(t, etcd.New(client, "g", requests), "a", term)
	acquire(t, a, 0)
	c.stop(0)
	c.stop(1)
	ctx, cancel := context.WithTimeout(t.Context(), 3*term)
	defer cancel()
	k, err := failover.NewKeeper(failover.KeeperConfig{Arbiter: etcd.New(client, "g", requests), Holder: "b", Term: term})
	if err != nil {
		t.Fatal(err)
	}
	if g, err := k.Acquire(ctx, 1); err == nil || errors.Is(err, failover.ErrRefused) {
		t.Errorf("generation %d, %v", g, err)
	}
	if a.Gate().Open() {
		t.Error("the holder goes on without an arbiter after its term")
	}
}

// What comes late is counted from when it was asked for.
func TestAnswerThatIsLateIsCountedFromItsRequest(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	a := etcd.New(c.client(), "g", patient)
	g, err := a.Acquire(t.Context(), failover.Claim{Holder: "a", Token: "a", Term: time.Second})
	answered := time.Now()
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(300 * time.Millisecond) // a garbage collection, say
	var h failover.Holder
	h.Granted(g)
	if h.Until().After(answered.Add(time.Second)) {
		t.Errorf("ends %v after the answer", h.Until().Sub(answered))
	}
	if g.Sent.After(answered) {
		t.Error("counts from the answer")
	}
}

// A key that was deleted, or restored from an old backup, grants the guest to
// nobody who has a copy of it.
func TestLostKeyRefuses(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	client := c.client()
	a := keep(t, etcd.New(client, "g", requests), "a", time.Second)
	acquire(t, a, 0)
	if _, err := client.Delete(t.Context(), "g"); err != nil {
		t.Fatal(err)
	}
	b := etcd.New(client, "g", patient)
	if _, err := b.Acquire(t.Context(), failover.Claim{Holder: "b", Token: "b", After: 1, Term: time.Second}); !errors.Is(err, failover.ErrRefused) {
		t.Errorf("%v, want a refusal", err)
	}
	if _, err := client.Put(t.Context(), "g", "something else"); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Record(t.Context()); !errors.Is(err, failover.ErrRecord) || errors.Is(err, failover.ErrRefused) {
		t.Errorf("%v, want ErrRecord", err)
	}
}

// A person writes a record as a person does: in another spacing, another order, without
// the end of the line.
func TestARecordWrittenByHandIsSwapped(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	client := c.client()
	for name, text := range map[string]string{
		"without the end of the line": `{"format":"lockstep-arbiter-1","generation":7,"writes":7}`,
		"in another spacing":          "{ \"format\": \"lockstep-arbiter-1\", \"generation\": 7,\r\n  \"writes\": 7 }\r\n",
		"in another order":            `{"writes":7,"generation":7,"format":"lockstep-arbiter-1"}` + "\n",
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := client.Put(t.Context(), name, text); err != nil {
				t.Fatal(err)
			}
			store := etcd.Open(client, name, patient)
			written := failover.Record{Generation: 7, Writes: 7}
			for what, other := range map[string]failover.Record{
				"an earlier record": {Generation: 6, Writes: 6}, "another record": {Generation: 7, Note: "x", Writes: 7}, "no record": {},
			} {
				if ok, err := store.Swap(t.Context(), other, failover.Record{Generation: 9, Writes: 9}); ok || err != nil {
					t.Errorf("it takes the place of %s: %t, %v", what, ok, err)
				}
			}
			next := failover.Record{Generation: 7, Note: "next", Writes: 8}
			if ok, err := store.Swap(t.Context(), written, next); !ok || err != nil {
				t.Errorf("it is not swapped: %t, %v", ok, err)
			}
			if ok, err := store.Swap(t.Context(), written, next); ok || err != nil {
				t.Errorf("it is swapped twice: %t, %v", ok, err)
			}
			if r, err := store.Load(t.Context()); r != next || err != nil {
				t.Errorf("%+v, %v", r, err)
			}
		})
	}
	t.Run("of no guest yet", func(t *testing.T) {
		const key = "none yet"
		if _, err := client.Put(t.Context(), key, `{"format":"lockstep-arbiter-1","generation":0,"writes":0}`); err != nil {
			t.Fatal(err)
		}
		store := etcd.Open(client, key, patient)
		first := failover.Record{Generation: 1, Holder: "a", Token: "1", Writes: 1}
		if ok, err := store.Swap(t.Context(), failover.Record{}, first); !ok || err != nil {
			t.Errorf("it is not swapped: %t, %v", ok, err)
		}
		if ok, err := store.Swap(t.Context(), failover.Record{}, first); ok || err != nil {
			t.Errorf("it is swapped twice: %t, %v", ok, err)
		}
	})
}
