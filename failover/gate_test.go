package failover_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/failover"
)

func TestGateIsOpenUntilItsTimeAndNotAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := failover.NewGate()
		if g.Open() {
			t.Error("a new gate is open")
		}
		g.Until(time.Now().Add(time.Second))
		time.Sleep(time.Second - time.Nanosecond)
		if !g.Open() {
			t.Error("shut before its time")
		}
		time.Sleep(time.Nanosecond)
		if g.Open() {
			t.Error("open after its time")
		}
		g.Until(time.Now().Add(time.Second))
		g.Shut()
		if g.Open() {
			t.Error("open after Shut")
		}
	})
}

// Nothing runs while a process is stopped, no timer of its own either: what it
// asks first when it goes on must know.
func TestStoppedProcessFindsTheGateShut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, _ := keeper(t, time.Second)
		ctx, cancel := context.WithCancel(t.Context())
		stopped := make(chan error, 1)
		if _, err := k.Acquire(ctx, 0); err != nil {
			t.Fatal(err)
		}
		// Run does not run: this is a process that was stopped right here.
		time.Sleep(2 * time.Second)
		if k.Gate().Open() {
			t.Error("open though nothing was renewed for two terms")
		}
		go func() { stopped <- k.Run(ctx) }() // and it goes on
		synctest.Wait()
		if !k.Gate().Open() {
			t.Error("nobody else took the guest, so that the renewal opens the gate again")
		}
		cancel()
		<-stopped
	})
}

func TestOpenedTellsEveryOpening(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := failover.NewGate()
		for range 3 {
			a, b := g.Opened(), g.Opened()
			g.Until(time.Now().Add(-1)) // which is no opening
			select {
			case <-a:
				t.Fatal("told of an opening that was none")
			default:
			}
			g.Until(time.Now().Add(time.Second))
			<-a
			<-b
			<-g.Opened() // open already
			time.Sleep(2 * time.Second)
		}
	})
}

func TestOpenAllocatesNothing(t *testing.T) {
	g := failover.NewGate()
	g.Until(time.Now().Add(time.Hour))
	if n := testing.AllocsPerRun(100, func() { g.Open() }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkGate(b *testing.B) {
	g := failover.NewGate()
	g.Until(time.Now().Add(time.Hour))
	for b.Loop() {
		g.Open()
	}
}
