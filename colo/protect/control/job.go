package control

import (
	"context"
	"errors"

	"github.com/gocolo/lockstep/colo/protect"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/event/qmp"
)

// jobs returns the one job, until it is dismissed.
func (m *Monitor) jobs() []qmp.Job {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.dismissed {
		return nil
	}
	return []qmp.Job{job{m}}
}

// job makes the one job of a monitor a qmp.Job.
type job struct{ m *Monitor }

var errNotThisJob = errors.New("the protection of a guest has no such step")

func (j job) ID() string          { return j.m.job.Query().Guest }
func (j job) Type() event.JobType { return event.JobProtect }

func (j job) Status() event.JobStatus {
	return event.JobStatus(j.m.job.Query().State.JobStatus())
}

// Progress returns how far a synchronisation is, in bytes. It returns 0, 0 if none is
// under way.
func (j job) Progress() (current, total int64) {
	p := j.m.job.Query().Progress
	if p == nil {
		return 0, 0
	}
	return int64(p.Total - min(p.Total, p.Remaining)), int64(p.Total)
}

// Err returns the error with which the job ended.
func (j job) Err() error {
	if in := j.m.job.Query(); in.State == protect.Concluded {
		return in.LastError
	}
	return nil
}

func (j job) Pause(ctx context.Context) error {
	return j.m.ordered("job-pause", within(ctx, asking, func(ctx context.Context) error { return j.m.job.Pause(ctx, "by the monitor") }))
}

func (j job) Resume(context.Context) error {
	return j.m.ordered("job-resume", j.m.job.Resume())
}

func (j job) Cancel(ctx context.Context) error {
	c, ok := j.m.job.(canceller)
	if !ok {
		return errNotThisJob
	}
	return j.m.ordered("job-cancel", within(ctx, asking, c.Cancel))
}

func (j job) Complete(ctx context.Context) error {
	return j.m.ordered("job-complete", within(ctx, moving, j.m.job.Switchover))
}

func (job) Finalize(context.Context) error { return errNotThisJob }

func (j job) Dismiss(context.Context) error {
	j.m.mu.Lock()
	done := j.m.dismissed
	j.m.dismissed = true
	j.m.mu.Unlock()
	if !done {
		j.m.cfg.Events.Publish(event.JobStatusChange{ID: j.ID(), Status: event.JobNull})
	}
	return nil
}
