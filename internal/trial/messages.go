package trial

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/gocolo/lockstep/event"
)

// sleep waits, and goes on listening.
func (r *Run) sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	for {
		select {
		case m := <-r.inbox:
			if err := r.handle(m); err != nil {
				return err
			}
		case <-timer.C:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// await handles what comes until done. What does not come in time is an error.
func (r *Run) await(ctx context.Context, what string, done func() bool) error {
	limit := time.NewTimer(patience + 2*r.o.Interval)
	defer limit.Stop()
	// Frames do not go through the inbox, so done is also asked now and then.
	look := time.NewTicker(2 * time.Millisecond)
	defer look.Stop()
	have := len(r.checkpoints)
	for !done() {
		select {
		case m := <-r.inbox:
			if err := r.handle(m); err != nil {
				return err
			}
			if len(r.checkpoints) != have { // each checkpoint is progress
				have = len(r.checkpoints)
				limit.Reset(patience + 2*r.o.Interval)
			}
		case <-look.C:
			r.out.status(r)
		case <-limit.C:
			return fmt.Errorf("waited in vain for %s", what)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// matters reports whether an event, as it came, is of a kind that handle looks at.
func matters(e json.RawMessage) bool {
	for _, kind := range []event.Event{event.CheckpointStart{}, event.CheckpointCommit{}, event.COLOExit{}} {
		if bytes.Contains(e, []byte(`"`+kind.Name()+`"`)) {
			return true
		}
	}
	return false
}

// handle takes one message of a process.
func (r *Run) handle(m message) error {
	rep := m.report
	switch {
	case m.ended:
		r.gone[m.side] = true
		expected := m.side == r.victim && !r.killed.IsZero() || m.err == nil && r.ends[m.side] != nil
		if !expected {
			return r.sides[m.side].failure(m.err)
		}
	case rep.Listening != nil:
		r.listening = rep.Listening
	case m.event != nil:
		r.out.event(m.side, m.event)
		if !matters(m.event) {
			break
		}
		var rec event.Record
		if err := json.Unmarshal(m.event, &rec); err != nil {
			return fmt.Errorf("an event of the %s: %w", m.side, err)
		}
		switch e := rec.Event.(type) {
		case event.CheckpointStart:
			if m.side == Primary {
				r.under = e.Epoch
			}
		case event.CheckpointCommit:
			if m.side == Primary {
				r.under = 0
			}
		case event.Throttled:
			r.throttled = append(r.throttled, throttled{rep.Event.Time, e.Percent})
		case event.COLOExit:
			if m.side != r.victim && !(r.victim == "" && m.side == Secondary) {
				r.exit = e
			}
		}
	case rep.Checkpoint != nil:
		c := *rep.Checkpoint
		if c.Epoch == 0 {
			r.protected = time.Now()
		}
		r.checkpoints = append(r.checkpoints, c)
		r.traffic = *c.Traffic
		r.out.checkpoint(c)
	case rep.Missed != nil:
		r.missed = append(r.missed, fmt.Sprintf("the %s's %s at %#x", m.side, rep.Missed.Block, rep.Missed.Offset))
	case rep.Stopped != nil:
		r.stopped = rep.Stopped
	case rep.Ended != nil:
		r.ends[m.side] = rep.Ended
		if !rep.Ended.TookOver && !rep.Ended.Refused {
			return fmt.Errorf("the %s: %s", m.side, rep.Ended.Error)
		}
		if r.victim != "" && r.killed.IsZero() {
			return errors.New("the sides parted before the kill")
		}
	case rep.Histories != nil:
		r.histories = rep.Histories
		if rep.Traffic != nil {
			r.traffic = *rep.Traffic
		}
	}
	return nil
}

// epochs is how many checkpoints both sides have, the initial synchronisation
// not counted.
func (r *Result) epochs() uint64 {
	if len(r.checkpoints) == 0 {
		return 0
	}
	return r.checkpoints[len(r.checkpoints)-1].Epoch
}
