package trial

import (
	"errors"
	"strings"
	"testing"
)

func TestAFailedRunTellsWhatItsSidesHaveSaid(t *testing.T) {
	r := &Run{sides: map[string]*process{Primary: new(process), Secondary: new(process)}}
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
