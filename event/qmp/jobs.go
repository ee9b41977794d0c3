package qmp

import (
	"context"
	"fmt"
	"slices"

	"github.com/gocolo/lockstep/event"
)

// A Job is a long task that clients can steer: the protection of a guest, say.
// Its methods may be called from any goroutine. Those that steer it are called only in a
// status that allows it, according to QEMU's table; an error that one returns then is the
// answer. Jobs publish [event.JobStatusChange].
type Job interface {
	ID() string
	Type() event.JobType
	Status() event.JobStatus
	// Progress returns how much is done, and how much there is to do in total, in a unit
	// that the job chooses.
	Progress() (current, total int64)
	// Err returns why the job has failed or was cancelled, nil if it has not and was not.
	Err() error

	Pause(ctx context.Context) error  // running to paused, ready to standby
	Resume(ctx context.Context) error // and back, if a client has paused it
	Cancel(ctx context.Context) error
	// Complete ends it well: for the protection of a guest it is the switchover.
	Complete(ctx context.Context) error
	Finalize(ctx context.Context) error // pending to concluded
	Dismiss(ctx context.Context) error  // concluded to gone
}

// jobInfo is an element of the answer to query-jobs. (QAPI type JobInfo.)
type jobInfo struct {
	ID              string          `json:"id"`
	Type            event.JobType   `json:"type"`
	Status          event.JobStatus `json:"status"`
	CurrentProgress int64           `json:"current-progress"`
	TotalProgress   int64           `json:"total-progress"`
	Error           string          `json:"error,omitempty"`
}

// jobID has the arguments of the commands about one job.
type jobID struct {
	ID string `json:"id"`
}

// verbs has, for each verb, the statuses that allow it, and what is answered
// otherwise; an empty text is QEMU's usual one.
var verbs = []struct {
	name      string
	in        []event.JobStatus
	otherwise func(event.JobStatus) string
	do        func(Job, context.Context) error
}{
	{"pause", []event.JobStatus{event.JobCreated, event.JobRunning, event.JobReady}, alreadyPaused, Job.Pause},
	{"resume", []event.JobStatus{event.JobPaused, event.JobStandby}, notPaused, Job.Resume},
	{"cancel", []event.JobStatus{event.JobCreated, event.JobRunning, event.JobPaused, event.JobReady, event.JobStandby,
		event.JobWaiting, event.JobPending}, nil, Job.Cancel},
	{"complete", []event.JobStatus{event.JobReady, event.JobStandby}, nil, Job.Complete},
	{"finalize", []event.JobStatus{event.JobPending}, nil, Job.Finalize},
	{"dismiss", []event.JobStatus{event.JobConcluded}, nil, Job.Dismiss},
}

func alreadyPaused(s event.JobStatus) string {
	if s == event.JobPaused || s == event.JobStandby {
		return "Job is already paused"
	}
	return ""
}

func notPaused(event.JobStatus) string { return "Can't resume a job that was not paused" }

// RegisterJobs adds query-jobs, job-pause, job-resume, job-cancel, job-complete,
// job-finalize and job-dismiss for the jobs that jobs returns, which is called
// for each command, from any goroutine.
func RegisterJobs(c *Commands, jobs func() []Job) {
	Register(c, "query-jobs", func(context.Context, None) ([]jobInfo, error) {
		all := []jobInfo{}
		for _, j := range jobs() {
			i := jobInfo{ID: j.ID(), Type: j.Type(), Status: j.Status()}
			i.CurrentProgress, i.TotalProgress = j.Progress()
			if err := j.Err(); err != nil {
				i.Error = err.Error()
			}
			all = append(all, i)
		}
		return all, nil
	})
	for _, v := range verbs {
		Register(c, "job-"+v.name, func(ctx context.Context, a jobID) (None, error) {
			all := jobs()
			i := slices.IndexFunc(all, func(j Job) bool { return j.ID() == a.ID })
			if i < 0 {
				return None{}, refuse("Job not found")
			}
			status := all[i].Status()
			if slices.Contains(v.in, status) {
				return None{}, v.do(all[i], ctx)
			}
			text := ""
			if v.otherwise != nil {
				text = v.otherwise(status)
			}
			if text == "" {
				text = fmt.Sprintf("Job '%s' in state '%s' cannot accept command verb '%s'", a.ID, status, v.name)
			}
			return None{}, refuse("%s", text)
		})
	}
}
