package qmp_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/event/qmp"
)

type job struct {
	status event.JobStatus
	asked  []string
}

func (j *job) ID() string { return "j" }

func (j *job) Type() event.JobType { return event.JobProtect }

func (j *job) Status() event.JobStatus { return j.status }

func (j *job) Progress() (current, total int64) { return 3, 4 }

func (j *job) Err() error { return errors.New("why") }

func (j *job) ask(verb string) error { j.asked = append(j.asked, verb); return nil }

func (j *job) Pause(context.Context) error { return j.ask("pause") }

func (j *job) Resume(context.Context) error { return j.ask("resume") }

func (j *job) Cancel(context.Context) error { return j.ask("cancel") }

func (j *job) Complete(context.Context) error { return j.ask("complete") }

func (j *job) Finalize(context.Context) error { return j.ask("finalize") }

func (j *job) Dismiss(context.Context) error { return j.ask("dismiss") }

// The table was measured with jobs of a QEMU 7.2.22.
func TestJobsAreAskedForWhatTheirStatusAllows(t *testing.T) {
	verbs := []string{"pause", "resume", "cancel", "complete", "finalize", "dismiss"}
	allowed := map[event.JobStatus]string{
		event.JobRunning: "pause cancel", event.JobPaused: "resume cancel", event.JobReady: "pause cancel complete",
		event.JobStandby: "resume cancel complete", event.JobPending: "cancel finalize", event.JobConcluded: "dismiss",
		event.JobAborting: "",
	}
	synctest.Test(t, func(t *testing.T) {
		h, s := newHost()
		j := &job{}
		h.jobs = []qmp.Job{j}
		conn, r, end := attach(t, s)
		defer end()
		r.ReadString('\n')
		say(t, conn, r, `{"execute":"qmp_capabilities"}`)
		for status, may := range allowed {
			for _, verb := range verbs {
				j.status, j.asked = status, nil
				got := say(t, conn, r, `{"execute":"job-`+verb+`","arguments":{"id":"j"}}`)
				want, asked := `{"return": {}}`, []string{verb}
				if !slices.Contains(strings.Fields(may), verb) {
					text := fmt.Sprintf("Job 'j' in state '%s' cannot accept command verb '%s'", status, verb)
					switch {
					case verb == "resume":
						text = "Can't resume a job that was not paused"
					case verb == "pause" && (status == event.JobPaused || status == event.JobStandby):
						text = "Job is already paused"
					}
					want, asked = `{"error": {"class": "GenericError", "desc": "`+text+`"}}`, nil
				}
				if got != want || !slices.Equal(j.asked, asked) {
					t.Errorf("%s in %s: %s, asked %v; want %s", verb, status, got, j.asked, want)
				}
			}
		}
		j.status = event.JobReady
		if got, want := say(t, conn, r, `{"execute":"query-jobs"}`), `{"return": [{"current-progress": 3, "status": "ready", "total-progress": 4, "type": "protect", "id": "j", "error": "why"}]}`; !sameMembers(got, want) {
			t.Errorf("got %s, want %s", got, want)
		}
	})
}
