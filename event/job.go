package event

// JobType names the work of a job. (QAPI enum of the same name.)
type JobType string

// The types.
const (
	JobCommit         JobType = "commit"
	JobStream         JobType = "stream"
	JobMirror         JobType = "mirror"
	JobBackup         JobType = "backup"
	JobCreate         JobType = "create"
	JobAmend          JobType = "amend"
	JobSnapshotLoad   JobType = "snapshot-load"
	JobSnapshotSave   JobType = "snapshot-save"
	JobSnapshotDelete JobType = "snapshot-delete"

	// JobProtect is the protection of a guest, which is this library's own.
	JobProtect JobType = "protect"
)

// UnmarshalText accepts any word, listed here or not. A text that is no word gives an
// [*EnumError].
func (t *JobType) UnmarshalText(text []byte) error { return word(t, text, "JobType") }

// JobStatus is how far a job is. (QAPI enum of the same name.)
type JobStatus string

// The statuses.
const (
	JobUndefined JobStatus = "undefined" // an error: QEMU never shows it
	JobCreated   JobStatus = "created"
	JobRunning   JobStatus = "running"
	JobPaused    JobStatus = "paused"    // from running
	JobReady     JobStatus = "ready"     // can be completed
	JobStandby   JobStatus = "standby"   // paused, from ready
	JobWaiting   JobStatus = "waiting"   // for the other jobs of its transaction
	JobPending   JobStatus = "pending"   // waits to be finalized
	JobAborting  JobStatus = "aborting"  // has failed or was cancelled, and cleans up
	JobConcluded JobStatus = "concluded" // waits to be dismissed
	JobNull      JobStatus = "null"      // the job is gone
)

// UnmarshalText accepts any word, listed here or not. A text that is no word gives an
// [*EnumError].
func (s *JobStatus) UnmarshalText(text []byte) error { return word(s, text, "JobStatus") }

// next lists what each status may be followed by, as QEMU's own jobs are held
// to.
var next = map[JobStatus][]JobStatus{
	JobCreated:   {JobRunning, JobPaused, JobAborting, JobNull},
	JobRunning:   {JobPaused, JobReady, JobWaiting, JobAborting},
	JobPaused:    {JobRunning},
	JobReady:     {JobStandby, JobWaiting, JobAborting},
	JobStandby:   {JobReady},
	JobWaiting:   {JobPending, JobAborting},
	JobPending:   {JobAborting, JobConcluded},
	JobAborting:  {JobAborting, JobConcluded},
	JobConcluded: {JobNull},
	JobNull:      {JobCreated}, // another job of the same name
}

// JobStatusChange says that a job has a new status. The statuses of a job come
// in the order of QEMU's table: created first, null last. (QAPI event
// JOB_STATUS_CHANGE, which has the members status and id only; the others are
// those of the job that protects a guest, whose ID is the guest's name.)
type JobStatusChange struct {
	Status JobStatus `json:"status,omitempty"`
	ID     string    `json:"id"`

	State      string `json:"state,omitempty"`      // of colo/protect, in a word
	Reason     string `json:"reason,omitempty"`     // why, in words
	Generation uint64 `json:"generation,omitempty"` // that this host holds or follows
	Peer       string `json:"peer,omitempty"`       // the other host's name, if there is one
}

// Name returns "JOB_STATUS_CHANGE".
func (JobStatusChange) Name() string { return "JOB_STATUS_CHANGE" }
