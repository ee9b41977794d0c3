package failover_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/failover"
)

func TestManualArbiterWaitsForTheOperatorsWord(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := failover.NewManual(failover.Record{})
		var asked []failover.Claim
		m.Asked = func(c failover.Claim) { asked = append(asked, c) }
		k, err := failover.NewKeeper(failover.KeeperConfig{Arbiter: m, Holder: "a", Term: -1})
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Grant(); err != failover.ErrNobodyAsks {
			t.Errorf("yes to nobody: %v", err)
		}
		got := make(chan uint64)
		ask := func(after uint64) {
			go func() {
				g, err := k.Acquire(t.Context(), after)
				if err != nil && !errors.Is(err, failover.ErrRefused) {
					t.Error(err)
				}
				got <- g
			}()
			time.Sleep(time.Hour) // nobody answers for him
			if c, ok := m.Waiting(); !ok || c.After != after || k.Gate().Open() != (k.Generation() != 0) {
				t.Errorf("%+v waits (%v), the gate is open: %v", c, ok, k.Gate().Open())
			}
		}
		ask(7) // the record is this host's: what it has followed counts
		if err := m.Grant(); err != nil {
			t.Fatal(err)
		}
		if g := <-got; g != 8 {
			t.Errorf("generation %d, want 8", g)
		}
		time.Sleep(24 * time.Hour)
		if !k.Gate().Open() {
			t.Error("an operator's word has run out")
		}
		ask(8)
		if err := m.Refuse(); err != nil {
			t.Fatal(err)
		}
		if g := <-got; g != 0 || k.Gate().Open() {
			t.Errorf("refused, generation %d, the gate is open: %v", g, k.Gate().Open())
		}
		if len(asked) != 2 {
			t.Errorf("told of %d claims", len(asked))
		}
	})
}

func TestManualClaimEndsWithItsContextOrTheNextClaim(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := failover.NewManual(failover.Record{})
		claim := failover.Claim{Holder: "a", Token: "a"}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := m.Acquire(ctx, claim); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		if _, ok := m.Waiting(); ok {
			t.Error("what was given up still waits")
		}
		first := make(chan error)
		go func() { _, err := m.Acquire(t.Context(), claim); first <- err }()
		synctest.Wait()
		go func() { _, err := m.Acquire(t.Context(), claim); first <- err }()
		if err := <-first; err != failover.ErrNobodyAsks {
			t.Errorf("the first claim: %v", err)
		}
		m.Grant()
		if err := <-first; err != nil {
			t.Errorf("the second claim: %v", err)
		}
	})
}

func TestManualGrantIsRevokedAndReleased(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := failover.NewManual(failover.Record{Generation: 3, Writes: 3})
		acquire := func() failover.Grant {
			got := make(chan failover.Grant)
			go func() {
				g, err := m.Acquire(t.Context(), failover.Claim{Holder: "a", Token: "a", After: 3, Term: time.Second})
				if err != nil {
					t.Error(err)
				}
				got <- g
			}()
			synctest.Wait()
			m.Grant()
			return <-got
		}
		g := acquire()
		if g.Generation != 4 || g.Term != 0 {
			t.Errorf("%+v", g)
		}
		seen, _ := m.Record(t.Context())
		g, err := m.Renew(t.Context(), g, "checkpoint 1")
		if err != nil {
			t.Fatal(err)
		}
		changed := make(chan failover.Record)
		go func() { r, _ := m.Watch(t.Context(), seen); changed <- r }()
		synctest.Wait()
		m.Revoke()
		if r := <-changed; r.Held() || r.Generation != 4 || r.Note != "checkpoint 1" {
			t.Errorf("%+v", r)
		}
		if _, err := m.Renew(t.Context(), g, ""); !errors.Is(err, failover.ErrRefused) {
			t.Error(err)
		}
		if g = acquire(); g.Generation != 5 {
			t.Errorf("%+v", g)
		}
		if err := m.Release(t.Context(), g, ""); err != nil {
			t.Error(err)
		}
	})
}
