package event_test

import (
	"testing"
	"time"

	"github.com/gocolo/lockstep/event"
)

func TestWhatALatencyHasCountedSinceIsItself(t *testing.T) {
	var l event.Latency
	for i := range 1000 {
		l.Add(time.Duration(i) * time.Microsecond)
	}
	before := l
	if d := l.Since(&before); d.N() != 0 || d.Max() != 0 || d.Quantile(0.99) != 0 || d.Total() != 0 {
		t.Errorf("nothing was counted since, and it says %d, %v", d.N(), d.Max())
	}
	for range 99 {
		l.Add(20 * time.Microsecond)
	}
	l.Add(300 * time.Microsecond)
	d := l.Since(&before)
	if d.N() != 100 || d.Quantile(0.5) > 21*time.Microsecond || d.Total() != 99*20*time.Microsecond+300*time.Microsecond {
		t.Errorf("%d, median %v, total %v", d.N(), d.Quantile(0.5), d.Total())
	}
	if d.Max() < 300*time.Microsecond || d.Max() > 320*time.Microsecond {
		t.Errorf("the longest since is %v", d.Max())
	}
	l.Add(2 * time.Second)
	if d := l.Since(&before); d.Max() != 2*time.Second {
		t.Errorf("the longest of all is one of the last, and is %v", d.Max())
	}
}

func TestALatencyThatHasBegunAnewIsAllNew(t *testing.T) {
	var old, l event.Latency
	old.Add(time.Second)
	l.Add(time.Millisecond)
	if d := l.Since(&old); d != l {
		t.Errorf("%d since", d.N())
	}
	old.Add(2 * time.Second)
	if d := l.Since(&old); d != l {
		t.Errorf("%d since", d.N())
	}
}

func TestLatenciesOfTwoAreThoseOfBoth(t *testing.T) {
	var a, b, both event.Latency
	for i := range 500 {
		d := time.Duration(i*i) * time.Microsecond
		a.Add(d)
		b.Add(3 * d)
		both.Add(d)
		both.Add(3 * d)
	}
	a.Merge(&b)
	if a != both {
		t.Errorf("%d of %d, %v of %v", a.N(), both.N(), a.Max(), both.Max())
	}
}

func TestTheClassesOfALatencyHaveAllThatWasCounted(t *testing.T) {
	var l event.Latency
	l.Add(-time.Second)
	for i := range 64 {
		l.Add(1 << i)
	}
	n, last := uint64(0), time.Duration(-1)
	l.Each(func(atMost time.Duration, k uint64) {
		if atMost <= last {
			t.Errorf("%v after %v", atMost, last)
		}
		n, last = n+k, atMost
	})
	if n != l.N() || last != l.Max() {
		t.Errorf("%d of %d, up to %v of %v", n, l.N(), last, l.Max())
	}
	if l.Total() != 1<<63-1 {
		t.Errorf("the sum does not stop at the longest duration there is: %v", l.Total())
	}
}

func TestALatencyCountsWithoutMemory(t *testing.T) {
	var l, before event.Latency
	if n := testing.AllocsPerRun(100, func() { l.Add(time.Millisecond); before.Merge(&l) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
