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

// await waits for what must come within one checkpoint interval, or soon; each checkpoint is progress.
func (r *Run) await(ctx context.Context, what string, done func() bool) error {
	return r.crew.await(ctx, wait{
		handle: r.handle, limit: patience + 2*r.o.Interval,
		progress: func() int { return len(r.checkpoints) }, look: func() { r.out.status(r) },
	}, what, done)
}

// sleep waits, and goes on listening.
func (r *Run) sleep(ctx context.Context, d time.Duration) error {
	return r.crew.sleep(ctx, d, r.handle)
}

// matters reports whether an event, as it came, is of a kind that handle looks at.
func matters(e json.RawMessage) bool {
	for _, kind := range []event.Event{event.CheckpointStart{}, event.CheckpointCommit{}, event.COLOExit{}, event.Throttled{}} {
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
	case rep.Handle != nil:
		r.out.handle(m.side, *rep.Handle)
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
			r.throttled = append(r.throttled, throttled{rec.Time, e.Percent})
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
