package filter_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/colo/filter"
)

var _ colo.OutputHolder = (*filter.Buffer)(nil)

func (x *bench) wantHeld(why string, packets int, bytes int64, age time.Duration) {
	x.t.Helper()
	if got, want := x.HeldOutput(), (colo.Held{Packets: packets, Bytes: bytes, Age: age}); got != want {
		x.t.Errorf("%s: %+v, want %+v", why, got, want)
	}
}

func (x *bench) must(err error) {
	x.t.Helper()
	if err != nil {
		x.t.Fatal(err)
	}
}

func TestAPrimaryTellsWhatItHoldsAndForHowLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := start(t, filter.NewBuffer(filter.BufferConfig{}))
		second := func() { time.Sleep(time.Second) }
		x.send("before")
		second()
		x.wantHeld("without a session nothing is held", 0, 0, 0)
		x.must(x.Mark(0))
		x.wantHeld("the guest has said nothing since", 0, 0, 0)
		second()
		x.send("one")
		second()
		x.send("two!")
		second()
		x.wantHeld("in the first epoch", 2, 7, 2*time.Second)
		x.must(x.Received(0))
		x.wantHeld("what the synchronisation does not cover", 2, 7, 2*time.Second)
		x.must(x.Mark(1))
		second()
		x.wantHeld("a mark alone lets nothing leave", 2, 7, 3*time.Second)
		x.send("three")
		second()
		x.wantHeld("of two epochs", 3, 12, 4*time.Second)
		x.must(x.Received(1))
		x.wantHeld("the later one is left", 1, 5, time.Second)
		x.must(x.Mark(2))
		x.must(x.Mark(3)) // an epoch without output
		second()
		x.send("four")
		x.must(x.Received(2))
		x.wantHeld("of the first epoch that has any", 1, 4, 0)
		second()
		x.wantHeld("its age grows", 1, 4, time.Second)
		x.must(x.Mark(0))
		x.wantHeld("a session that begins anew has taken it over", 1, 4, time.Second)
		x.must(x.Received(0))
		x.wantHeld("and covers it", 0, 0, 0)
		second()
		x.send("five")
		second()
		x.wantHeld("the oldest is never one that has left", 1, 4, time.Second)
		x.must(x.Failover())
		x.wantHeld("alone, nothing is held", 0, 0, 0)
		second()
		x.must(x.Mark(0))
		x.send("six")
		second()
		x.wantHeld("protected again", 1, 3, time.Second)
		x.end()
	})
}

func TestASecondaryTellsWhatItsGuestHasSaidSinceTheCommit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := start(t, filter.NewBuffer(filter.BufferConfig{}))
		x.must(x.Commit(0))
		x.wantHeld("it has said nothing", 0, 0, 0)
		time.Sleep(time.Second)
		x.send("one")
		time.Sleep(time.Second)
		x.send("two")
		x.wantHeld("two packets", 2, 6, time.Second)
		x.must(x.Commit(1))
		x.wantHeld("they are void", 0, 0, 0)
		time.Sleep(time.Second)
		x.send("three")
		time.Sleep(2 * time.Second)
		x.wantHeld("what it has said since", 1, 5, 2*time.Second)
		x.must(x.Failover())
		x.wantHeld("it has taken over", 0, 0, 0)
		x.end()
	})
}

func TestTellingWhatIsHeldTakesNoMemory(t *testing.T) {
	b := filter.NewBuffer(filter.BufferConfig{})
	if err := b.Mark(0); err != nil {
		t.Fatal(err)
	}
	for range 100 {
		if err := b.WritePacket(make([]byte, 60)); err != nil {
			t.Fatal(err)
		}
	}
	var h colo.Held
	if n := testing.AllocsPerRun(100, func() { h = b.HeldOutput() }); n != 0 || h.Packets != 100 {
		t.Errorf("%v allocations for %+v", n, h)
	}
}
