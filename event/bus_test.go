package event_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/event"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestSubscribersSeeEventsInOrderOnThePublishersGoroutine(t *testing.T) {
	var bus event.Bus
	var got []string
	bus.SubscribeAll(func(r event.Record) { got = append(got, "all:"+r.Event.Name()) })
	cancel := event.Subscribe(&bus, func(m event.Migration) { got = append(got, "migration:"+string(m.Status)) })

	bus.Publish(event.Stop{})
	bus.Publish(event.Migration{Status: event.MigrationCOLO})
	cancel()
	cancel()
	bus.Publish(event.Migration{Status: event.MigrationCompleted})

	want := []string{"all:STOP", "all:MIGRATION", "migration:colo", "all:MIGRATION"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestNilBusDiscards(t *testing.T) {
	var bus *event.Bus
	cancel := bus.SubscribeAll(func(event.Record) { t.Error("called") })
	event.Subscribe(bus, func(event.Stop) { t.Error("called") })
	bus.Publish(event.Stop{})
	cancel()
}

func TestRecordsCarryTheTimeOfTheClock(t *testing.T) {
	at := time.Unix(5, 0)
	bus := event.Bus{Now: func() time.Time { return at }}
	var got time.Time
	bus.SubscribeAll(func(r event.Record) { got = r.Time })
	bus.Publish(event.Stop{})
	if !got.Equal(at) {
		t.Errorf("got %v, want %v", got, at)
	}
}

func TestSubscriberMayCancelItselfAndSubscribeOthers(t *testing.T) {
	var bus event.Bus
	var first, second int
	var cancel func()
	cancel = bus.SubscribeAll(func(event.Record) {
		first++
		cancel()
		bus.SubscribeAll(func(event.Record) { second++ })
	})
	bus.Publish(event.Stop{})
	bus.Publish(event.Resume{})
	if first != 1 || second != 1 {
		t.Errorf("first was called %d times, want once; second %d times, want once (the event after it came)", first, second)
	}
}

func TestConcurrentPublishersGiveAllSubscribersOneOrder(t *testing.T) {
	var bus event.Bus
	var a, b []int
	event.Subscribe(&bus, func(p event.MigrationPass) { a = append(a, p.Pass) })
	event.Subscribe(&bus, func(p event.MigrationPass) { b = append(b, p.Pass) })
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 100 {
				bus.Publish(event.MigrationPass{Pass: g*100 + i})
				bus.SubscribeAll(func(event.Record) {})()
			}
		})
	}
	wg.Wait()
	if len(a) != 800 || !slices.Equal(a, b) {
		t.Errorf("%d and %d events, equal: %t", len(a), len(b), slices.Equal(a, b))
	}
}

func TestPublishingAllocatesNothingOfItsOwn(t *testing.T) {
	var bus event.Bus
	bus.SubscribeAll(func(event.Record) {})
	var e event.Event = event.Stop{}
	if n := testing.AllocsPerRun(100, func() { bus.Publish(e) }); n != 0 {
		t.Errorf("%v allocations per event", n)
	}
}

func TestBufferedDropsTheOldestAndSaysWhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var bus event.Bus
		var got []string
		b := event.NewBuffered(3, func(r event.Record, dropped uint64) {
			time.Sleep(time.Second) // a slow subscriber
			got = append(got, fmt.Sprintf("%d after %d", r.Event.(event.MigrationPass).Pass, dropped))
		})
		defer bus.SubscribeAll(b.Put)()
		ctx, cancel := context.WithCancelCause(t.Context())
		done := make(chan error)
		go func() { done <- b.Run(ctx) }()

		bus.Publish(event.MigrationPass{Pass: 0})
		synctest.Wait() // the subscriber is busy with 0 now
		for i := 1; i <= 8; i++ {
			bus.Publish(event.MigrationPass{Pass: i})
		}
		time.Sleep(time.Minute)
		bus.Publish(event.MigrationPass{Pass: 9})
		time.Sleep(time.Minute)
		synctest.Wait()

		want := []string{"0 after 0", "6 after 5", "7 after 0", "8 after 0", "9 after 0"}
		if !slices.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
		if n := b.Dropped(); n != 5 {
			t.Errorf("%d dropped, want 5", n)
		}
		why := errors.New("enough")
		cancel(why)
		if err := <-done; err != why {
			t.Errorf("Run returned %v, want the cause of the end", err)
		}
	})
}

func TestBufferedHandsOverWhatIsThereWhenItsContextEnds(t *testing.T) {
	n := 0
	b := event.NewBuffered(0, func(event.Record, uint64) { n++ })
	b.Put(event.Record{Event: event.Stop{}})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := b.Run(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Run returned %v", err)
	}
	if n != 1 {
		t.Errorf("%d records handed over, want 1", n)
	}
}

func TestWhatASubscriberPublishesComesAfterWhatLedToIt(t *testing.T) {
	var bus event.Bus
	var first, second []string
	event.Subscribe(&bus, func(event.Stop) {
		bus.Publish(event.MigrationPass{Pass: 1})
		bus.Publish(event.MigrationPass{Pass: 2})
	})
	event.Subscribe(&bus, func(p event.MigrationPass) {
		if p.Pass == 1 {
			bus.Publish(event.Resume{})
		}
	})
	name := func(e event.Event) string {
		if p, ok := e.(event.MigrationPass); ok {
			return fmt.Sprint("pass ", p.Pass)
		}
		return e.Name()
	}
	bus.SubscribeAll(func(r event.Record) { first = append(first, name(r.Event)) })
	bus.SubscribeAll(func(r event.Record) { second = append(second, name(r.Event)) })
	bus.Publish(event.Stop{})
	want := []string{"STOP", "pass 1", "pass 2", "RESUME"}
	if !slices.Equal(first, want) || !slices.Equal(second, want) {
		t.Errorf("%q and %q, want %q when Publish has returned", first, second, want)
	}
}

func TestSubscribersOfTwoBusesMayPublishOnEachOther(t *testing.T) {
	var a, b event.Bus
	var na, nb atomic.Int64
	event.Subscribe(&a, func(event.Stop) { b.Publish(event.Resume{}) })
	event.Subscribe(&b, func(event.Stop) { a.Publish(event.Resume{}) })
	event.Subscribe(&a, func(event.Resume) { na.Add(1) })
	event.Subscribe(&b, func(event.Resume) { nb.Add(1) })
	var wg sync.WaitGroup
	for _, bus := range []*event.Bus{&a, &b} {
		wg.Go(func() {
			for range 2000 {
				bus.Publish(event.Stop{})
			}
		})
	}
	wg.Wait()
	if na.Load() != 2000 || nb.Load() != 2000 {
		t.Errorf("%d and %d of 2000 events have been delivered", na.Load(), nb.Load())
	}
}

func TestCancelReturnsWhenNoCallIsUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var bus event.Bus
		var busy atomic.Bool
		cancel := bus.SubscribeAll(func(event.Record) {
			busy.Store(true)
			time.Sleep(time.Second)
			busy.Store(false)
		})
		var wg sync.WaitGroup
		wg.Go(func() { bus.Publish(event.Stop{}) })
		synctest.Wait()
		if !busy.Load() {
			t.Fatal("the call has not begun")
		}
		cancel()
		if busy.Load() {
			t.Error("a call is under way when cancel has returned")
		}
		wg.Wait()
	})
}

func TestABusNamesTheGuestOfEachEvent(t *testing.T) {
	at := time.Unix(3, 0)
	bus := event.Bus{Now: func() time.Time { return at }}
	web, db := bus.Guest("web"), bus.Guest("web").Guest("db")
	var all, ofWeb []event.Record
	bus.SubscribeAll(func(r event.Record) { all = append(all, r) })
	cancel := web.SubscribeAll(func(r event.Record) { ofWeb = append(ofWeb, r) })
	web.Publish(event.Stop{})
	db.Publish(event.Resume{})
	bus.Publish(event.MigrationPass{Pass: 1})
	cancel()
	web.Publish(event.Resume{})
	want := []event.Record{{Time: at, Guest: "web", Event: event.Stop{}}, {Time: at, Guest: "db", Event: event.Resume{}},
		{Time: at, Event: event.MigrationPass{Pass: 1}}, {Time: at, Guest: "web", Event: event.Resume{}}}
	if !slices.Equal(all, want) || !slices.Equal(ofWeb, want[:1]) {
		t.Errorf("all: %v; of web: %v", all, ofWeb)
	}
	line, err := json.Marshal(want[0])
	if err != nil || string(line) != `{"timestamp":{"seconds":3,"microseconds":0},"guest":"web","event":"STOP"}` {
		t.Errorf("%s, %v", line, err)
	}
	if r, err := event.Decode(line); err != nil || r.Guest != "web" {
		t.Errorf("%+v, %v", r, err)
	}
	var none *event.Bus
	none.Guest("x").Publish(event.Stop{})
}

// A subscriber that takes its time has the others wait, in a bubble as outside of one.
func TestPublishersWaitForASubscriberThatSleeps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b event.Bus
		var heard []time.Duration
		began := time.Now()
		event.Subscribe(&b, func(event.Resume) {
			time.Sleep(time.Second)
			heard = append(heard, time.Since(began))
		})
		var group sync.WaitGroup
		for range 3 {
			group.Go(func() { b.Publish(event.Resume{}) })
		}
		group.Wait()
		if want := []time.Duration{time.Second, 2 * time.Second, 3 * time.Second}; !slices.Equal(heard, want) {
			t.Errorf("heard after %v, want %v", heard, want)
		}
	})
}
