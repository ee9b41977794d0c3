package trial

import (
	"encoding/json"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/internal/guest"
	"github.com/gocolo/lockstep/internal/oracle"
)

func TestChangesOfBothKindsComeByTurns(t *testing.T) {
	for _, test := range []struct {
		c    Config
		want []string
	}{
		{Config{Failovers: 2, Switchovers: 3}, []string{changeKilled, changeSwitched, changeKilled, changeSwitched, changeSwitched}},
		{Config{Failovers: 1, Signal: SignalStop}, []string{changeStopped}},
		{Config{Switchovers: 1}, []string{changeSwitched}},
	} {
		if got := NewSeries(test.c, "sim", 1, new(Printer)).kinds(); !slices.Equal(got, test.want) {
			t.Errorf("%+v: %v, want %v", test.c, got, test.want)
		}
	}
}

// The client waits for the guest's progress before it waits for the protection, which may have come meanwhile.
func TestAHostIsProtectedWhenItSaysSoAndNotWhenThatIsLookedAt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewSeries(Config{}, "sim", 1, new(Printer))
		says := func(state string) {
			b, err := json.Marshal(event.Record{Event: event.JobStatusChange{ID: "a", State: state}})
			if err != nil {
				t.Fatal(err)
			}
			if err := s.handle(message{side: hostB, event: b}); err != nil {
				t.Fatal(err)
			}
		}
		says("synchronising")
		if at, ok := s.again[hostB]; ok {
			t.Fatalf("a host that synchronises is protected at %v", at)
		}
		time.Sleep(time.Second)
		at := time.Now()
		says("protected")
		time.Sleep(time.Second)
		says("protected")
		if s.again[hostB] != at {
			t.Errorf("it is protected at %v, want %v", s.again[hostB], at)
		}
	})
}

func TestWhatTheSidesCountIsAddedUp(t *testing.T) {
	s := NewSeries(Config{}, "sim", 1, new(Printer))
	a, b := new(process), new(process)
	for _, told := range []struct {
		from *process
		t    Traffic
	}{
		{a, Traffic{Matched: 3, AtCheckpoint: 1, Diverged: 1}},
		{a, Traffic{Matched: 5, AtCheckpoint: 1, Diverged: 1}},
		{b, Traffic{Matched: 7, AtCheckpoint: 9}},  // another host
		{b, Traffic{Matched: 2, AtCheckpoint: 10}}, // which leads again: its side is a new one
	} {
		s.count(told.from, told.t)
	}
	if want := (Traffic{Matched: 14, AtCheckpoint: 20, Diverged: 1}); s.traffic != want {
		t.Errorf("%+v, want %+v", s.traffic, want)
	}
}

func TestAHostIsHeardAnewWhenItIsExpected(t *testing.T) {
	o, err := oracle.New(guest.Params{VCPUs: 1, Pages: 8, Touch: 2, Seed: 7})
	if err != nil {
		t.Fatal(err)
	}
	c := newClient(o, hostA)
	at := time.Unix(1, 0)
	c.alone[hostB] = at
	if c.firstAlone(hostB) != at {
		t.Error("not heard")
	}
	c.expect(hostB)
	if !c.firstAlone(hostB).IsZero() || !c.waiting[hostB] {
		t.Error("what it said before counts")
	}
	c.opened[hostB], c.ended[hostB] = 2, 1
	if c.hasEnded(hostB) || c.hasEnded(hostA) {
		t.Error("a host that sends, or has not begun to, has ended")
	}
	c.ended[hostB]++
	if !c.hasEnded(hostB) {
		t.Error("a host has not ended whose connections have")
	}
}

func TestFiguresOfASeriesAreByKind(t *testing.T) {
	r := &Result{unplanned: 1, changes: []Change{
		{Kind: changeKilled, Downtime: 900 * time.Millisecond, Again: 100 * time.Millisecond},
		{Kind: changeSwitched, Downtime: 2 * time.Millisecond, Stood: time.Millisecond, Again: 50 * time.Millisecond},
		{Kind: changeStopped, Downtime: 1100 * time.Millisecond, Again: 300 * time.Millisecond},
	}}
	s := Summarise(Config{Failovers: 2, Switchovers: 1}, "sim", []*Result{r}, 1)
	want := SeriesFigures{
		Failovers: 2, Switchovers: 1, Unplanned: 1, DowntimeP50: 900, DowntimeP99: 1100,
		SwitchoverP50: 2, SwitchoverP99: 2, StoodP50: 1, StoodP99: 1, AgainP50: 100, AgainP99: 300,
	}
	if *s.SeriesFigures != want || s.Failover != 900 || r.failover() != 900*time.Millisecond {
		t.Errorf("%+v, failover %v; want %+v", *s.SeriesFigures, s.Failover, want)
	}
}
