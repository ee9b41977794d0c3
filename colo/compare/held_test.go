package compare_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/colo/compare"
)

var _ colo.OutputHolder = (*compare.Comparer)(nil)

func TestAComparerTellsWhatItHoldsOfThePrimary(t *testing.T) {
	for name, cfg := range map[string]compare.Config{
		"default": {Marks: true, HoldUncompared: true}, "strict": {Marks: true, Strict: true},
	} {
		t.Run(name, func(t *testing.T) {
			between(t, cfg, func(x *pairing) {
				want := func(why string, packets int, age time.Duration) {
					t.Helper()
					synctest.Wait()
					h := x.HeldOutput()
					if h != (colo.Held{Packets: packets, Bytes: int64(packets * len(udp("a").Data)), Age: age}) {
						t.Errorf("%s: %+v, want %d packets, %v old", why, h, packets, age)
					}
				}
				x.pri <- udp("p").Data
				want("without a session nothing is held", 0, 0)
				x.Mark(0)
				x.Received(0)
				x.SecondaryMark(0)
				x.Loaded(0)
				x.sec <- udp("s").Data
				want("what the secondary's guest says does not count", 0, 0)
				time.Sleep(time.Second)
				x.pri <- udp("a").Data
				time.Sleep(time.Second)
				x.pri <- udp("b").Data
				want("two wait for their twins", 2, time.Second)
				x.Mark(1)
				time.Sleep(time.Second)
				x.pri <- udp("c").Data
				want("and for their checkpoint", 3, 2*time.Second)
				x.Received(1)
				want("which covers two of them", 1, 0)
				x.Failover()
				want("alone, nothing is held", 0, 0)
			})
		})
	}
}

func TestFramesThatCannotBeComparedCountAsHeld(t *testing.T) {
	between(t, compare.Config{HoldUncompared: true}, func(x *pairing) {
		x.Mark(0)
		frame := make([]byte, 60) // of no known EtherType
		x.pri <- frame
		time.Sleep(time.Second)
		if h := x.HeldOutput(); h != (colo.Held{Packets: 1, Bytes: 60, Age: time.Second}) {
			t.Errorf("%+v is held", h)
		}
		x.Failover()
	})
}

func TestTellingWhatAComparerHoldsTakesNoMemory(t *testing.T) {
	c := compare.NewComparer(compare.Config{})
	if err := c.Mark(0); err != nil {
		t.Fatal(err)
	}
	for range 50 {
		if err := c.WritePacket(udp("a").Data); err != nil {
			t.Fatal(err)
		}
	}
	var h colo.Held
	if n := testing.AllocsPerRun(100, func() { h = c.HeldOutput() }); n != 0 || h.Packets != 50 {
		t.Errorf("%v allocations for %+v", n, h)
	}
}
