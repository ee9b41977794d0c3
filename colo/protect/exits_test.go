package protect

import (
	"context"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/colo/colotest"
	"github.com/gocolo/lockstep/failover"
	"github.com/gocolo/lockstep/failover/failovertest"
)

// descriptors returns how many descriptors this process has open.
func descriptors(t *testing.T) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if errors.Is(err, fs.ErrNotExist) {
		t.Skip("no /proc/self/fd here")
	}
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

// Two hosts reach each other by TCP, and both are stopped at any moment: while they wait, make their
// connections, synchronise or are in step. No descriptor stays open.
func TestTheEndOfRunGivesAllDescriptorsBack(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	once := func(after time.Duration) {
		store := new(failovertest.Store)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var ports [2]*Port
		for i := range ports {
			var err error
			if ports[i], err = Listen("127.0.0.1:0", PortConfig{Insecure: true}); err != nil {
				t.Fatal(err)
			}
		}
		var group sync.WaitGroup
		for i, name := range []string{"a", "b"} {
			guest, err := colotest.NewVM(colotest.VMConfig{Pages: 4, Touch: 2, Seed: 1, Interval: time.Millisecond})
			if err != nil {
				t.Fatal(err)
			}
			job, err := New(Config{
				Name: "guest", Host: name, Guest: guest, Start: i == 0, Arbiter: failover.NewStoreArbiter(store),
				Peer: Peer{Port: ports[i], Dial: ports[1-i].Addr().String(), PortConfig: PortConfig{Insecure: true}},
			})
			if err != nil {
				t.Fatal(err)
			}
			group.Go(func() { guest.Run(ctx) })
			group.Go(func() { ports[i].Serve(ctx) })
			group.Go(func() {
				if err := job.Run(ctx); !errors.Is(err, context.Canceled) {
					t.Errorf("Run of %s: %v", name, err)
				}
				guest.Close()
			})
		}
		time.Sleep(after)
		cancel()
		group.Wait()
	}
	once(100 * time.Millisecond) // what is opened once in a process is open then
	before, pairs := descriptors(t), 20
	if testing.Short() {
		pairs = 5
	}
	for range pairs {
		once(time.Duration(rng.IntN(1500)) * 100 * time.Microsecond)
	}
	if after := descriptors(t); after > before {
		t.Errorf("%d descriptors are open, and before %d pairs of hosts there were %d", after, pairs, before)
	}
}

// stoppedAtResume is a guest whose job is stopped, and concluded, before it has been resumed.
type stoppedAtResume struct {
	Guest
	stop func()
}

func (g stoppedAtResume) Resume(ctx context.Context) error {
	g.stop()
	return g.Guest.Resume(context.WithoutCancel(ctx))
}

func TestAJobThatIsStoppedWhileItStartsItsGuestReturnsWhyItWasStopped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		var a *host
		booted := make(chan struct{})
		a = w.boot("a", true, func(c *Config) {
			c.Guest = stoppedAtResume{c.Guest, func() {
				<-booted
				a.stop(errHalt)
				a.is(Concluded)
			}}
		})
		close(booted)
		<-a.done
		if a.err != errHalt {
			t.Errorf("Run returned %v", a.err)
		}
		if !a.guest.Paused() {
			t.Error("the guest runs")
		}
	})
}

func TestAJobThatIsStoppedWhileItTakesOverReturnsWhyItWasStopped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		var b *host
		a := w.boot("a", true, nil)
		b = w.boot("b", false, func(c *Config) {
			c.Guest = stoppedAtResume{c.Guest, func() {
				if b.job.State() == TakingOver {
					b.stop(errHalt)
					b.is(Concluded)
				}
			}}
		})
		b.is(Following)
		a.is(Protected)
		a.kill(false)
		<-b.done
		if b.err != errHalt {
			t.Errorf("Run returned %v", b.err)
		}
		if !b.guest.Paused() {
			t.Error("the guest runs")
		}
	})
}
