package failovertest

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/failover"
)

// hung is an arbiter of which one method returns no earlier than over is closed.
type hung struct {
	failover.Arbiter
	method string
	over   chan struct{}
}

func (h hung) wait(method string) {
	if method == h.method {
		<-h.over
	}
}

func (h hung) Acquire(ctx context.Context, c failover.Claim) (failover.Grant, error) {
	h.wait("Acquire")
	return h.Arbiter.Acquire(ctx, c)
}

func (h hung) Renew(ctx context.Context, g failover.Grant, note string) (failover.Grant, error) {
	h.wait("Renew")
	return h.Arbiter.Renew(ctx, g, note)
}

func (h hung) Release(ctx context.Context, g failover.Grant, note string) error {
	h.wait("Release")
	return h.Arbiter.Release(ctx, g, note)
}

func (h hung) Record(ctx context.Context) (failover.Record, error) {
	h.wait("Record")
	return h.Arbiter.Record(ctx)
}

func (h hung) Watch(ctx context.Context, seen failover.Record) (failover.Record, error) {
	h.wait("Watch")
	return h.Arbiter.Watch(ctx, seen)
}

func TestAnArbiterThatHangsIsToldByTheNameOfItsMethod(t *testing.T) {
	const term = time.Second
	for _, method := range []string{"Acquire", "Renew", "Release", "Record", "Watch"} {
		t.Run(method, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began, over := time.Now(), make(chan struct{})
				defer close(over)
				var hangs atomic.Bool
				r := &recorder{TB: t}
				for _, c := range checks {
					store := new(Store)
					two := Two{
						A: hung{failover.NewStoreArbiter(store), method, over},
						B: hung{failover.NewStoreArbiter(store), method, over},
					}
					done := make(chan struct{})
					go func() { // which Fatal ends
						defer close(done)
						check(r, c.fn, term, &hangs, two)
					}()
					<-done
					if hangs.Load() {
						break
					}
				}
				said := strings.Join(r.said, "; ")
				if !strings.Contains(said, method+" has not returned") {
					t.Errorf("said %q", said)
				}
				if took := time.Since(began); took > 3*time.Minute {
					t.Errorf("it took %v of the time of the bubble", took)
				}
			})
		})
	}
}

// hungStore is a store of which one method returns no earlier than over is closed.
type hungStore struct {
	*Store
	method string
	over   chan struct{}
}

func (h hungStore) wait(method string) {
	if method == h.method {
		<-h.over
	}
}

func (h hungStore) Load(ctx context.Context) (failover.Record, error) {
	h.wait("Load")
	return h.Store.Load(ctx)
}

func (h hungStore) Swap(ctx context.Context, old, next failover.Record) (bool, error) {
	h.wait("Swap")
	return h.Store.Swap(ctx, old, next)
}

func TestAStoreThatHangsIsToldByTheNameOfItsMethod(t *testing.T) {
	for _, method := range []string{"Load", "Swap"} {
		t.Run(method, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				over := make(chan struct{})
				defer close(over)
				var hangs atomic.Bool
				r := &recorder{TB: t}
				done := make(chan struct{})
				go func() { // which Fatal ends
					defer close(done)
					store := hungStore{new(Store), method, over}
					checkStore(r, (*stores).loads, &hangs, Stores{store, store})
				}()
				<-done
				if said := strings.Join(r.said, "; "); !hangs.Load() || !strings.Contains(said, method+" has not returned") {
					t.Errorf("said %q", said)
				}
			})
		})
	}
}

func TestACallThatIsNotAnsweredIsToldByTheNameOfItsMethod(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &recorder{TB: t}
		b := &bounded{failover.NewManual(failover.Record{}), &bound{r, time.Minute, new(atomic.Bool)}} // which nobody answers
		_, err := b.Acquire(t.Context(), failover.Claim{Holder: "a", Token: "t"})
		if err == nil || !strings.Contains(err.Error(), "Acquire has not answered for 1m0s") || len(r.said) > 0 {
			t.Errorf("%v; said %q", err, r.said)
		}
	})
}
