package event

// JobStatusChange says that the job that protects a guest has come to another
// state. (QAPI event JOB_STATUS_CHANGE; QEMU has the members id and status only.)
type JobStatusChange struct {
	ID     string `json:"id"`     // the guest's name
	Status string `json:"status"` // QAPI enum JobStatus

	State      string `json:"state"`                // of colo/protect, in a word
	Reason     string `json:"reason,omitempty"`     // why, in words
	Generation uint64 `json:"generation,omitempty"` // that this host holds or follows
	Peer       string `json:"peer,omitempty"`       // the other host's name, if there is one
}

// Name returns "JOB_STATUS_CHANGE".
func (JobStatusChange) Name() string { return "JOB_STATUS_CHANGE" }
