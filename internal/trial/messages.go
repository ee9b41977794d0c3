package trial

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/gocolo/lockstep/event"
)

// await waits for what must come within one checkpoint interval, or soon; each checkpoint is progress.
func (r *Run) await(ctx context.Context, what string, done func() bool) error {
	w := r.wait(r.handle)
	w.progress, w.look = func() int { return len(r.checkpoints) }, func() { r.out.status(r) }
	return r.states(ctx, r.crew.await(ctx, w, what, done))
}

// sleep waits, and goes on listening.
func (r *Run) sleep(ctx context.Context, d time.Duration) error {
	return r.crew.sleep(ctx, d, r.settling(r.handle))
}

// matters reports whether an event, as it came, is of a kind that handle looks at.
func matters(e json.RawMessage) bool {
	for _, kind := range []event.Event{event.CheckpointStart{}, event.CheckpointCommit{}, event.COLOExit{}, event.Throttled{}, event.JobStatusChange{}} {
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
		r.gone[m.side], r.state[m.side] = true, ""
		killed := m.side == r.victim && r.o.Signal != SignalStop && !r.killed.IsZero()
		if !killed && !(r.closing && m.err == nil) {
			return r.sides[m.side].failure(m.err)
		}
	case rep.Handle != nil:
		r.out.handle(m.side, *rep.Handle)
	case m.event != nil:
		return r.event(m)
	case rep.Checkpoint != nil:
		if r.tookOver {
			break // of a survivor that is protected again
		}
		c := *rep.Checkpoint
		if c.Epoch == 0 {
			r.protected = time.Now()
		}
		r.checkpoints = withStopped(r.checkpoints, c)
		r.traffic = *c.Traffic
		r.out.checkpoint(c)
	case rep.Claimed != nil:
		r.out.claim(*rep.Claimed)
	case rep.Missed != nil:
		r.miss(m.side, *rep.Missed)
	case rep.Stopped != nil:
		r.stopped = rep.Stopped
	case rep.Histories != nil:
		r.histories = rep.Histories
		if m.side == Primary { // it has been that all along; a secondary has counted nothing
			r.traffic = *rep.Traffic
		}
	}
	return nil
}

// event takes an event of a host.
func (r *Run) event(m message) error {
	r.out.event(m.side, m.event)
	if !matters(m.event) {
		return nil
	}
	// Most events are those of checkpoints, so only the fields that are needed are
	// decoded.
	var short struct {
		Event string `json:"event"`
		Data  struct {
			Epoch uint64 `json:"epoch"`
		} `json:"data"`
	}
	if err := json.Unmarshal(m.event, &short); err != nil {
		return fmt.Errorf("an event of the %s: %w", m.side, err)
	}
	switch short.Event {
	case event.CheckpointStart{}.Name():
		if m.side == Primary {
			r.under = short.Data.Epoch
		}
		return nil
	case event.CheckpointCommit{}.Name():
		if m.side == Primary {
			r.under = 0
		}
		if !r.tookOver {
			r.last[m.side] = short.Data.Epoch
		}
		return nil
	}
	var rec event.Record
	if err := json.Unmarshal(m.event, &rec); err != nil {
		return fmt.Errorf("an event of the %s: %w", m.side, err)
	}
	switch e := rec.Event.(type) {
	case event.Throttled:
		r.throttled = append(r.throttled, throttled{rec.Time, e.Percent})
	case event.COLOExit:
		if m.side == r.survivor && r.parted && !r.tookOver {
			r.exit = e
		}
	case event.JobStatusChange:
		return r.moved(m.side, e)
	}
	return nil
}

// The states of package protect that a run looks at, by their names.
const (
	stateProtected  = "protected" // it has the guest, and the other every checkpoint
	stateWaiting    = "waiting"   // it does not have the guest
	stateFollowing  = "following"
	stateAsking     = "asking"
	stateTakingOver = "taking-over"
	stateAlone      = "alone"
	stateConcluded  = "concluded"
)

// moved is called with each new state of a host.
func (r *Run) moved(host string, e event.JobStatusChange) error {
	r.state[host] = e.State
	alone := e.State == stateTakingOver || e.State == stateAlone
	switch {
	case r.protected.IsZero() || r.closing:
	case !r.parted:
		if host == Primary && e.State != stateProtected || host == Secondary && (alone || e.State == stateAsking || e.State == stateConcluded) {
			return fmt.Errorf("the sides parted unasked: the %s is %s: %s", host, e.State, e.Reason)
		}
	case host == r.survivor:
		if e.State == stateAlone {
			r.tookOver = true
		}
		if !r.tookOver && (e.State == stateWaiting || e.State == stateConcluded) {
			return fmt.Errorf("the %s did not take over: %s", host, e.Reason)
		}
	case alone || e.State == stateProtected:
		return fmt.Errorf("the %s goes on too: it is %s", host, e.State)
	case (e.State == stateWaiting || e.State == stateFollowing) && r.gaveUp == "":
		if r.gaveUp = e.Reason; r.gaveUp == "" {
			r.gaveUp = e.State
		}
	}
	return nil
}

// epochs returns how many checkpoints both sides have, the initial synchronisation
// not counted.
func (r *Result) epochs() uint64 {
	if len(r.checkpoints) == 0 {
		return 0
	}
	return r.checkpoints[len(r.checkpoints)-1].Epoch
}
