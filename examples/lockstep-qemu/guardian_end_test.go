package main

import (
	"context"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/colo/standby"
	"github.com/gocolo/lockstep/failover"
	"github.com/gocolo/lockstep/failover/failovertest"
	"github.com/gocolo/lockstep/internal/qemutest"
)

// alone returns a guardian without a guest, of which one part is tested.
func alone(arb failover.Arbiter) *guardian {
	return &guardian{
		protectOptions: &protectOptions{holder: "here", term: 10 * time.Second},
		p:              &printer{terminal: terminal{out: io.Discard, err: io.Discard}},
		told:           make(chan news), over: make(chan struct{}), generation: 1, arb: arb, token: failover.NewToken(),
	}
}

// A guest that stands would stand for good if a question that could not be asked
// were the last.
func TestTheArbiterIsAskedAgainWhenTheQuestionWasWrong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := alone(failover.NewStoreArbiter(new(failovertest.Store)))
		if err := g.hold(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
		defer g.free()
		go g.answered(t.Context(), strings.Repeat("long ", failover.MaxNote))
		select {
		case n := <-g.told:
			if n.in != standby.Granted || g.generation != 2 {
				t.Errorf("%v of generation %d", n.in, g.generation)
			}
		case <-time.After(time.Minute):
			t.Error("nothing has come of it")
		}
	})
}

// The end of a guardian waits for its renewals, which may be telling it that the
// arbiter has refused one.
func TestTheRenewalsEndWhileNobodyHearsOfARefusal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		arb := failover.NewStoreArbiter(new(failovertest.Store))
		g := alone(arb)
		if err := g.hold(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
		if err := arb.Release(t.Context(), failover.Grant{Generation: 1, Token: g.token}, ""); err != nil {
			t.Fatal(err)
		}
		time.Sleep(g.term) // a renewal is refused, and waits to be heard
		synctest.Wait()
		if g.keeper.Generation() != 0 {
			t.Fatal("the grant is not over")
		}
		g.free() // or the bubble is deadlocked
	})
}

// deadline is an arbiter that takes as long as it is given.
type deadline struct{ failover.Arbiter }

func (deadline) Release(ctx context.Context, _ failover.Grant, _ string) error {
	<-ctx.Done()
	return ctx.Err()
}

// systemd kills a guardian that is silent for as long as WatchdogSec says, also one
// that is telling others that its guest is dead.
func TestTheWatchdogIsFedWhileADeathIsTold(t *testing.T) {
	for _, c := range []struct {
		name    string
		arb     failover.Arbiter
		control string
	}{
		{"to the arbiter", deadline{}, ""},
		{"to the standby", nil, "nobody"},
	} {
		t.Run(c.name, func(t *testing.T) {
			sock := filepath.Join(qemutest.Dir(t), "notify")
			l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: sock, Net: "unixgram"})
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			t.Setenv("NOTIFY_SOCKET", sock)
			l.SetReadDeadline(time.Now().Add(time.Minute))
			synctest.Test(t, func(t *testing.T) {
				g := alone(c.arb)
				g.control = c.control
				ctx, cancel := context.WithCancel(t.Context())
				ended := make(chan struct{})
				go func() { defer close(ended); g.ended(ctx, news{in: standby.Died}) }()
				defer func() { cancel(); <-ended }()
				time.Sleep(15 * tick)
				synctest.Wait()
				for range 2 { // again and again
					p := make([]byte, 64)
					n, err := l.Read(p)
					if err != nil || string(p[:n]) != "WATCHDOG=1" {
						t.Fatalf("%q, %v", p[:n], err)
					}
				}
				select {
				case <-ended:
					t.Error("it has ended before")
				default:
				}
			})
		})
	}
}

// Were it not given back, or taken again when the guardian ends, the guest would run nowhere: here it
// was stopped, and there the arbiter is waited for.
func TestAGuestThatWasStoppedForTheStandbyIsTheStandbysAtTheArbiter(t *testing.T) {
	for _, c := range []struct {
		name  string
		leave bool // before the arbiter has been told
	}{{"while the guardian stays", false}, {"when it leaves", true}} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				arb := failover.NewStoreArbiter(new(failovertest.Store))
				g := alone(arb)
				if err := g.hold(t.Context(), 0); err != nil {
					t.Fatal(err)
				}
				g.says(standby.StoodDown, "")
				if c.leave {
					if err := g.leave(); err != nil {
						t.Error(err)
					}
				} else if err := g.act(t.Context(), standby.TellStopped, "promoted"); err != nil {
					t.Error(err)
				}
				g.all.Wait()
				ctx, cancel := context.WithTimeout(t.Context(), 2*g.term)
				defer cancel()
				began := time.Now()
				grant, err := arb.Acquire(ctx, failover.Claim{Holder: "there", Token: failover.NewToken(), After: 1, Note: "a standby"})
				if err != nil || grant.Generation != 2 {
					t.Fatalf("generation %d, %v", grant.Generation, err)
				}
				if waited := time.Since(began); waited > 0 && !c.leave {
					t.Errorf("it was granted after %v", waited)
				}
			})
		})
	}
}
