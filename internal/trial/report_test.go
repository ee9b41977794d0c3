package trial

import (
	"bytes"
	"encoding/json"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
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
	r := NewReporter(p, 0)
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

// count counts writes, and the lines in them.
type count struct{ writes, lines atomic.Int64 }

func (c *count) Write(b []byte) (int, error) {
	c.writes.Add(1)
	c.lines.Add(int64(bytes.Count(b, []byte("\n"))))
	return len(b), nil
}

func TestReportsGatherWhereThereAreMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c count
		r := NewReporter(&c, 5*time.Millisecond)
		written := func(writes, reports int64) {
			t.Helper()
			synctest.Wait()
			if w, got := c.writes.Load(), c.lines.Load(); w != writes || got != reports {
				t.Errorf("%d reports in %d writes, want %d in %d", got, w, reports, writes)
			}
		}
		for range 4 {
			r.Send(Report{Stopped: &Stopped{}})
			time.Sleep(time.Millisecond)
		}
		written(0, 0)
		time.Sleep(time.Millisecond) // five since the first
		written(1, 4)
		r.Send(Report{Stopped: &Stopped{}})
		r.SendNow(Report{Stopped: &Stopped{}})
		written(2, 6)
		begun := time.Now()
		for range 2 * maxGathered { // more than may wait
			r.Send(Report{Stopped: &Stopped{}})
		}
		if waited := time.Since(begun); waited > 0 {
			t.Errorf("Send has waited for %v", waited)
		}
		r.Close()
		if got := c.lines.Load(); got != 6+2*maxGathered {
			t.Errorf("%d reports written", got)
		}
	})
}

func TestASideIsCalledByItsName(t *testing.T) {
	for side, want := range map[string]string{Primary: "the primary failed: why", hostB: "host b failed: why"} {
		p := process{side: side}
		if got := p.failure(errors.New("why")).Error(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
