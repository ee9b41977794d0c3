package trial

import (
	"bytes"
	"encoding/json"
	"errors"
	"testing"
)

// slowPipe is a pipe whose first write waits.
type slowPipe struct {
	began, let chan struct{}
	writes     int
	bytes.Buffer
}

func (p *slowPipe) Write(b []byte) (int, error) {
	if p.writes++; p.writes == 1 {
		close(p.began)
		<-p.let
	}
	return p.Buffer.Write(b)
}

func TestReportsThatHaveGatheredAreWrittenTogetherAndInOrder(t *testing.T) {
	p := &slowPipe{began: make(chan struct{}), let: make(chan struct{})}
	r := NewReporter(p)
	r.Send(Report{Stopped: &Stopped{Epoch: 0}})
	<-p.began
	const more = 100
	for i := range uint64(more) {
		r.Send(Report{Stopped: &Stopped{Epoch: i + 1}})
	}
	close(p.let)
	r.SendNow(Report{Stopped: &Stopped{Epoch: more + 1}})
	if dec := json.NewDecoder(bytes.NewReader(p.Bytes())); p.writes > 3 { // the first, those that gathered, and the last
		t.Errorf("%d writes", p.writes)
	} else {
		for i := range uint64(more + 2) {
			var got Report
			if err := dec.Decode(&got); err != nil || got.Stopped == nil || got.Stopped.Epoch != i {
				t.Fatalf("report %d: %+v, %v", i, got.Stopped, err)
			}
		}
	}
	r.Close()
}

func TestASideIsCalledByItsName(t *testing.T) {
	for side, want := range map[string]string{Primary: "the primary failed: why", hostB: "host b failed: why"} {
		p := process{side: side}
		if got := p.failure(errors.New("why")).Error(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
