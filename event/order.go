package event

import (
	"fmt"
	"slices"
	"time"
)

// An OrderError reports an event that cannot come where it came, or one that had
// to come and has not.
type OrderError struct {
	Event  string // the name of the event that came, empty at the end
	Reason string // what is out of order, in words
}

func (e *OrderError) Error() string {
	if e.Event == "" {
		return "event: at the end: " + e.Reason
	}
	return fmt.Sprintf("event: %s: %s", e.Event, e.Reason)
}

// Order checks that the events of one machine come in an order in which QEMU can
// publish them. It may begin at any moment: about a job, a sleep or a migration that
// began before, it assumes nothing. The rules:
//
//   - STOP and RESUME take turns. What sleeps (SUSPEND) or was reset may RESUME
//     without a STOP, because it was not running.
//   - BLOCK_IO_ERROR with action stop, WATCHDOG with pause and GUEST_PANICKED with
//     pause lead to a STOP, if the machine runs; WATCHDOG with reset to a RESET,
//     with shutdown to a POWERDOWN or SHUTDOWN; GUEST_PANICKED with poweroff and
//     SUSPEND_DISK to a SHUTDOWN. Nothing resumes in between.
//   - A SHUTDOWN settles all debts: the emulator may exit at once.
//   - WAKEUP ends a SUSPEND, once.
//   - JOB_STATUS_CHANGE goes as [JobStatus] may. A job is ready from
//     BLOCK_JOB_READY to BLOCK_JOB_ERROR or its end, and ends once.
//   - MIGRATION begins with setup and ends with completed, failed or cancelled;
//     MIGRATION_PASS counts up in between.
//   - COLO_EXIT comes once for each time that MIGRATION says colo.
//   - VNC and SPICE: what is connected does not connect again before it has
//     disconnected, and is not initialized twice. (Clients of Unix sockets,
//     which have no address, are not checked.)
//
// The rate of some events is limited ([Limiter]): they come late, with the time
// at which they happened. What they lead to may then have come already, with a
// later time.
//
// The zero Order is ready. It belongs to one goroutine, and is for tests and for
// hosts that watch machines which they do not trust: it keeps at most a few thousand
// jobs and connections, and forgets those beyond.
type Order struct {
	running   running
	asleep    bool // SUSPEND or SUSPEND_DISK has come, and WAKEUP has not
	awake     bool // WAKEUP was the last of SUSPEND and WAKEUP
	owed      []debt
	last      map[string]time.Time // when each event that pays debts has happened last
	jobs      map[string]*jobOrder
	clients   map[string]bool // connected; true: initialized
	migration MigrationStatus
	pass      int  // of the last MIGRATION_PASS
	left      bool // COLO_EXIT was the last of MIGRATION colo and COLO_EXIT
}

// running is whether the guest runs, as far as the events have said.
type running int

const (
	unknown running = iota
	yes
	no
)

// debt is an event that must follow: one of pays, since by has come.
type debt struct {
	by   string
	pays []string
}

// jobOrder is the state of a job as its events have reported it.
type jobOrder struct {
	status JobStatus
	ready  bool
	ended  string // the name of the event that has ended the job
}

const maxOrder = 4096

// Check takes the next record, in the order of arrival. An error is an
// [*OrderError]; the record counts all the same.
func (o *Order) Check(r Record) error {
	name := r.Event.Name()
	var reason string
	switch e := r.Event.(type) {
	case Stop:
		if o.running == no {
			reason = "it was stopped already"
		}
		o.running = no
	case Resume:
		if o.running == yes && !o.asleep {
			reason = "it ran already"
		}
		if by := o.owes(); by != "" {
			reason = "nothing stopped it after " + by
			o.owed = nil
		}
		o.running, o.asleep = yes, false
	case Reset:
		if o.asleep {
			o.running = unknown
		}
		o.asleep, o.awake = false, false
	case Suspend:
		if o.asleep {
			reason = "it slept already"
		}
		o.asleep, o.awake = true, false
	case Wakeup:
		if o.awake {
			reason = "it was awake already"
		}
		o.asleep, o.awake = false, true
	case Shutdown:
		o.owed = nil
	case SuspendDisk:
		o.owe(r, "SHUTDOWN")
	case BlockIOError:
		if e.Action == IOStop {
			o.oweStop(r)
		}
	case Watchdog:
		switch e.Action {
		case WatchdogReset:
			o.owe(r, "RESET")
		case WatchdogShutdown:
			o.owe(r, "POWERDOWN", "SHUTDOWN")
		case WatchdogPause:
			o.oweStop(r)
		}
	case GuestPanicked:
		switch e.Action {
		case PanicPause:
			o.oweStop(r)
		case PanicPoweroff:
			o.owe(r, "SHUTDOWN")
		}
	case JobStatusChange:
		reason = o.job(e.ID).change(e.Status)
		if e.Status == JobNull {
			delete(o.jobs, e.ID)
		}
	case BlockJobReady:
		reason = o.job(e.Device).becomeReady()
	case BlockJobError:
		j := o.job(e.Device)
		if j.ready = false; j.ended != "" {
			reason = "the job has ended with " + j.ended
		}
	case BlockJobCompleted:
		reason = o.job(e.Device).end(name, JobPending, JobAborting)
	case BlockJobCancelled:
		reason = o.job(e.Device).end(name, JobAborting)
	case BlockJobPending:
		if j := o.job(e.ID); j.status != "" && j.status != JobPending {
			reason = fmt.Sprintf("the job is %s", j.status)
		}
	case Migration:
		reason = o.migrate(e.Status)
	case MigrationPass:
		switch {
		case e.Pass <= o.pass:
			reason = fmt.Sprintf("pass %d after pass %d", e.Pass, o.pass)
		case ended(o.migration):
			reason = fmt.Sprintf("a pass after %s", o.migration)
		}
		o.pass = e.Pass
	case COLOExit:
		if o.left {
			reason = "the session was over already"
		}
		o.left = true
	case VNCConnected:
		reason = o.connect(clientName("VNC", e.Client.Family, e.Client.Host, e.Client.Service))
	case VNCInitialized:
		reason = o.initialize(clientName("VNC", e.Client.Family, e.Client.Host, e.Client.Service))
	case VNCDisconnected:
		delete(o.clients, clientName("VNC", e.Client.Family, e.Client.Host, e.Client.Service))
	case SPICEConnected:
		reason = o.connect(clientName("SPICE", e.Client.Family, e.Client.Host, e.Client.Port))
	case SPICEInitialized:
		reason = o.initialize(clientName("SPICE", e.Client.Family, e.Client.Host, e.Client.Port))
	case SPICEDisconnected:
		delete(o.clients, clientName("SPICE", e.Client.Family, e.Client.Host, e.Client.Port))
	}
	o.pay(name, r.Time)
	if reason != "" {
		return &OrderError{Event: name, Reason: reason}
	}
	return nil
}

// End says that no event follows, and returns an [*OrderError] if one had to. Do not
// call it for an emulator that was killed.
func (o *Order) End() error {
	if len(o.owed) > 0 {
		d := o.owed[0]
		return &OrderError{Reason: fmt.Sprintf("no %s after %s", d.pays[0], d.by)}
	}
	return nil
}

// Ready reports whether a block job can be completed, as far as its events tell.
func (o *Order) Ready(device string) bool {
	j := o.jobs[device]
	return j != nil && j.ready
}

// owe notes that one of the events pays must follow r, unless one of them that
// happened later than r has come already.
func (o *Order) owe(r Record, pays ...string) {
	for _, name := range pays {
		if at, ok := o.last[name]; ok && !r.Time.IsZero() && !at.IsZero() && !at.Before(r.Time) {
			return
		}
	}
	if len(o.owed) < maxOrder {
		o.owed = append(o.owed, debt{r.Event.Name(), pays})
	}
}

func (o *Order) oweStop(r Record) {
	if o.running != no {
		o.owe(r, "STOP")
	}
}

func (o *Order) owes() (by string) {
	for _, d := range o.owed {
		if d.pays[0] == "STOP" {
			return d.by
		}
	}
	return ""
}

func (o *Order) pay(name string, at time.Time) {
	switch name {
	case "STOP", "RESET", "SHUTDOWN", "POWERDOWN":
		if o.last == nil {
			o.last = make(map[string]time.Time)
		}
		o.last[name] = at
		o.owed = slices.DeleteFunc(o.owed, func(d debt) bool { return slices.Contains(d.pays, name) })
	}
}

// job returns what is known of a job.
func (o *Order) job(id string) *jobOrder {
	j := o.jobs[id]
	if j == nil {
		j = new(jobOrder)
		if o.jobs == nil {
			o.jobs = make(map[string]*jobOrder)
		}
		if len(o.jobs) < maxOrder {
			o.jobs[id] = j
		}
	}
	return j
}

func (j *jobOrder) change(to JobStatus) (reason string) {
	if may, known := next[j.status]; known && !slices.Contains(may, to) {
		if _, known := next[to]; known {
			reason = fmt.Sprintf("a job goes from %s to %s", j.status, to)
		}
	}
	switch to {
	case JobCreated:
		*j = jobOrder{}
	case JobAborting, JobConcluded, JobNull:
		j.ready = false
	}
	j.status = to
	return reason
}

func (j *jobOrder) becomeReady() (reason string) {
	switch {
	case j.ended != "":
		reason = "the job has ended with " + j.ended
	case j.ready:
		reason = "the job was ready already"
	case j.status != "" && j.status != JobReady && j.status != JobStandby:
		reason = fmt.Sprintf("the job is %s", j.status)
	}
	j.ready = true
	return reason
}

// end takes the event that ends a job, which comes in one of some statuses.
func (j *jobOrder) end(event string, in ...JobStatus) (reason string) {
	switch {
	case j.ended != "" && j.status != "":
		reason = "the job has ended with " + j.ended
	case j.status != "" && !slices.Contains(in, j.status):
		reason = fmt.Sprintf("the job is %s", j.status)
	}
	// Where the statuses are not said, another job of the name may follow.
	if j.ready = false; j.status != "" {
		j.ended = event
	}
	return reason
}

func ended(s MigrationStatus) bool {
	return s == MigrationCompleted || s == MigrationFailed || s == MigrationCancelled
}

func (o *Order) migrate(to MigrationStatus) (reason string) {
	switch {
	case to == MigrationSetup && o.migration != "" && !ended(o.migration):
		reason = fmt.Sprintf("another begins while one is %s", o.migration)
	case to != MigrationSetup && ended(o.migration):
		reason = fmt.Sprintf("%s after %s", to, o.migration)
	case to == MigrationCancelled && o.migration != "" && o.migration != "cancelling":
		reason = fmt.Sprintf("%s after %s", to, o.migration)
	}
	switch to {
	case MigrationSetup:
		o.pass = 0
	case MigrationCOLO:
		o.left = false
	}
	o.migration = to
	return reason
}

func clientName(what string, family AddressFamily, host, port string) string {
	if family == FamilyUnix {
		return ""
	}
	return what + " " + host + " " + port
}

func (o *Order) connect(client string) (reason string) {
	if client == "" {
		return ""
	}
	if _, ok := o.clients[client]; ok {
		reason = "the client was connected already"
	}
	if o.clients == nil {
		o.clients = make(map[string]bool)
	}
	if len(o.clients) < maxOrder {
		o.clients[client] = false
	}
	return reason
}

func (o *Order) initialize(client string) (reason string) {
	initialized, ok := o.clients[client]
	if initialized {
		reason = "the client was initialized already"
	}
	if ok {
		o.clients[client] = true
	}
	return reason
}
