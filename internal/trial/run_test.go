package trial

import (
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/gocolo/lockstep/event"
)

func TestAFailedRunTellsWhatItsSidesHaveSaid(t *testing.T) {
	r := newCrew()
	r.sides[Primary], r.sides[Secondary] = new(process), new(process)
	r.sides[Primary].stderr.Write([]byte("the reason\n"))
	r.sides[Secondary].stderr.Write([]byte(ErrOrphan.Error() + "\n"))
	lost := errors.New("lost")
	if err := r.explain(lost); !errors.Is(err, lost) || err.Error() != "lost\nthe primary said: the reason" {
		t.Errorf("%q", err)
	}
	if err := r.explain(nil); err != nil {
		t.Errorf("a run that did not fail: %v", err)
	}
}

func TestAMissedPageFailsTheRun(t *testing.T) {
	r := New(Config{}, "sim", 1, nil)
	if err := r.handle(message{side: Secondary, report: Report{Missed: &MissedPage{"guest.ram", 0x5000}}}); err != nil {
		t.Fatal(err)
	}
	if err := r.verified(); err == nil || !strings.Contains(err.Error(), "the secondary's guest.ram at 0x5000") {
		t.Errorf("%v", err)
	}
}

func TestAThrottledGuestIsPartOfTheRun(t *testing.T) {
	r := New(Config{}, "sim", 1, new(Printer))
	at := time.Unix(3, 0)
	e, err := json.Marshal(event.Record{Time: at, Event: event.Throttled{Mode: event.ModePrimary, Percent: 20}})
	if err != nil {
		t.Fatal(err)
	}
	r.out.W = io.Discard
	if err := r.handle(message{side: Primary, event: e}); err != nil {
		t.Fatal(err)
	}
	if len(r.throttled) != 1 || !r.throttled[0].at.Equal(at) || r.throttled[0].percent != 20 {
		t.Errorf("%+v", r.throttled)
	}
}
