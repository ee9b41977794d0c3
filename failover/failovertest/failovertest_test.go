package failovertest_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/failover"
	"github.com/gocolo/lockstep/failover/failovertest"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestArbiterOverAStoreInMemory(t *testing.T) {
	inMemory := func(t *testing.T) failovertest.Two {
		s := new(failovertest.Store)
		return failovertest.Two{A: failover.NewStoreArbiter(s), B: failover.NewStoreArbiter(s)}
	}
	t.Run("in a bubble", func(t *testing.T) { failovertest.TestArbiterInBubble(t, time.Minute, inMemory) })
	t.Run("in real time", func(t *testing.T) {
		if testing.Short() {
			t.Skip("short: the same in a bubble")
		}
		failovertest.TestArbiter(t, 50*time.Millisecond, inMemory)
	})
}

// A claimant that watched the record before it claims has seen the silence
// already.
func TestClaimAfterWatchingWaitsNoLongerThanOneTerm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := new(failovertest.Store)
		a, b := failover.NewStoreArbiter(s), failover.NewStoreArbiter(s)
		if _, err := a.Acquire(t.Context(), failover.Claim{Holder: "a", Token: "a", Term: time.Second}); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Record(t.Context()); err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		time.Sleep(900 * time.Millisecond)
		if _, err := b.Acquire(t.Context(), failover.Claim{Holder: "b", Token: "b", After: 1, Term: time.Second}); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(begin); d != time.Second {
			t.Errorf("granted %v after the record was seen, want its term, 1 s", d)
		}
	})
}
