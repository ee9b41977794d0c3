package failover_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/failover"
)

// barSteps are what can happen to a keeper's gate. bars has those that its twin, whose gate is
// never barred, is not told.
var barSteps = []struct {
	name string
	bars bool
	do   func(t *testing.T, k *failover.Keeper)
}{
	{"bar", true, func(_ *testing.T, k *failover.Keeper) { k.Bar() }},
	{"unbar", true, func(_ *testing.T, k *failover.Keeper) { k.Unbar() }},
	{"acquire", false, func(t *testing.T, k *failover.Keeper) {
		if _, err := k.Acquire(t.Context(), k.Generation()); err != nil {
			k.Drop() // a word of which nobody has told the arbiter
		}
	}},
	{"promise", false, func(_ *testing.T, k *failover.Keeper) {
		k.Promised(k.Generation(), time.Now(), 1500*time.Millisecond)
	}},
	{"fenced", false, func(_ *testing.T, k *failover.Keeper) { k.Fenced(k.Generation()) }},
	{"drop", false, func(_ *testing.T, k *failover.Keeper) { k.Drop() }},
	{"shut", false, func(_ *testing.T, k *failover.Keeper) { k.Gate().Shut() }},
	{"time", false, func(*testing.T, *failover.Keeper) {}},
}

// A gate that is barred is shut, and one that is not any more is what it would be if it had never
// been: of two keepers to whom the same happens only one is barred, in every order of steps.
func TestABarredGateIsShutAndIsThenWhatItWouldBe(t *testing.T) {
	length := 5
	if testing.Short() {
		length = 4
	}
	sequences := 1
	for range length {
		sequences *= len(barSteps)
	}
	synctest.Test(t, func(t *testing.T) {
		for n := range sequences {
			k, _ := keeper(t, time.Second)
			twin, _ := keeper(t, time.Second)
			barred, path := false, ""
			for i, rest := 0, n; i < length; i, rest = i+1, rest/len(barSteps) {
				s := barSteps[rest%len(barSteps)]
				path += " " + s.name
				opened := k.Gate().Opened()
				s.do(t, k)
				switch {
				case !s.bars:
					s.do(t, twin)
				default:
					barred = s.name == "bar"
				}
				if s.name == "time" {
					time.Sleep(600 * time.Millisecond)
				}
				open := k.Gate().Open()
				if want := twin.Gate().Open() && !barred; open != want {
					t.Fatalf("after%s: open is %v, want %v", path, open, want)
				}
				select {
				case <-opened:
				default:
					if open {
						t.Fatalf("after%s: it is open, and who waited was not told", path)
					}
				}
				if k.Generation() != twin.Generation() || !k.Until().Equal(twin.Until()) {
					t.Fatalf("after%s: what is held differs", path)
				}
			}
		}
	})
}

// The grant lives on while the gate is barred: what follows does not have to be asked for.
func TestABarredGateIsNotOpenedByARenewal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, store := keeper(t, time.Second)
		defer run(t, k)()
		k.Bar()
		if _, err := k.Acquire(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
		for range 20 {
			time.Sleep(300 * time.Millisecond)
			if k.Gate().Open() {
				t.Fatal("open while it is barred")
			}
		}
		if r, err := store.Load(t.Context()); err != nil || r.Writes < 10 {
			t.Errorf("it was not renewed: %+v, %v", r, err)
		}
		k.Unbar()
		if !k.Gate().Open() {
			t.Error("shut, with a grant that was renewed")
		}
	})
}
