package event

// The events that QEMU has for block devices and block jobs.

// IOOperation is the kind of a request to a block device. (QAPI enums IoOperationType
// and QuorumOpType.)
type IOOperation string

// The operations.
const (
	IORead  IOOperation = "read"
	IOWrite IOOperation = "write"
	IOFlush IOOperation = "flush" // of a quorum only
)

// UnmarshalText accepts any word, listed here or not. A text that is no word gives an
// [*EnumError].
func (o *IOOperation) UnmarshalText(text []byte) error { return word(o, text, "IoOperationType") }

// IOAction is an answer of QEMU to an error of a block device. (QAPI enum
// BlockErrorAction.)
type IOAction string

// The actions.
const (
	IOIgnore IOAction = "ignore" // nothing is done
	IOReport IOAction = "report" // the guest, or the job, gets the error
	IOStop   IOAction = "stop"   // the guest is stopped, or the job paused
)

// UnmarshalText accepts any word, listed here or not. A text that is no word gives an
// [*EnumError].
func (a *IOAction) UnmarshalText(text []byte) error { return word(a, text, "BlockErrorAction") }

// BlockImageCorrupted says that the metadata of an image is damaged. It is published
// once for an image. (QAPI event BLOCK_IMAGE_CORRUPTED.)
type BlockImageCorrupted struct {
	Device   string `json:"device"`              // empty: the node has no device of the old kind
	Msg      string `json:"msg"`                 // in words, for people
	Offset   *int64 `json:"offset,omitempty"`    // of the access, bytes; nil: it was no access
	NodeName string `json:"node-name,omitempty"` // empty: not said
	Fatal    bool   `json:"fatal"`               // the image cannot be written any more
	Size     *int64 `json:"size,omitempty"`      // of the access, bytes; nil: it was no access
}

// Name returns "BLOCK_IMAGE_CORRUPTED".
func (BlockImageCorrupted) Name() string { return "BLOCK_IMAGE_CORRUPTED" }

// BlockIOError says that a request of the guest has failed. When the action is
// to stop, [Stop] follows, and the request is made again when the guest
// resumes. (QAPI event BLOCK_IO_ERROR.)
type BlockIOError struct {
	Device    string      `json:"device"`            // empty: the node has no device of the old kind
	NoSpace   *bool       `json:"nospace,omitempty"` // the host's disk is full; nil: the device never stops
	NodeName  string      `json:"node-name,omitempty"`
	QOMPath   string      `json:"qom-path,omitempty"` // of the device; newer QEMUs, and then the rate is limited
	Reason    string      `json:"reason,omitempty"`   // in words, for people
	Operation IOOperation `json:"operation,omitempty"`
	Action    IOAction    `json:"action,omitempty"`
}

// Name returns "BLOCK_IO_ERROR".
func (BlockIOError) Name() string { return "BLOCK_IO_ERROR" }

// BlockJobCancelled says that a block job has ended because it was told to.
// (QAPI event BLOCK_JOB_CANCELLED.)
type BlockJobCancelled struct {
	Device string  `json:"device"` // the job's name
	Len    int64   `json:"len"`    // all that there was to do
	Offset int64   `json:"offset"` // what has been done of it; may be all
	Speed  int64   `json:"speed"`  // the limit, bytes per second; 0: none
	Type   JobType `json:"type,omitempty"`
}

// Name returns "BLOCK_JOB_CANCELLED".
func (BlockJobCancelled) Name() string { return "BLOCK_JOB_CANCELLED" }

// BlockJobCompleted says that a block job has ended by itself. (QAPI event
// BLOCK_JOB_COMPLETED.)
type BlockJobCompleted struct {
	Device string  `json:"device"`
	Len    int64   `json:"len"`
	Offset int64   `json:"offset"` // equals Len if it has succeeded
	Speed  int64   `json:"speed"`
	Type   JobType `json:"type,omitempty"`
	Error  string  `json:"error,omitempty"` // why it has failed; empty: it has not
}

// Name returns "BLOCK_JOB_COMPLETED".
func (BlockJobCompleted) Name() string { return "BLOCK_JOB_COMPLETED" }

// BlockJobError says that a request of a block job has failed. It may come many
// times for one failure. A job that was ready is not ready any more: the
// next [BlockJobReady] says when it is. (QAPI event BLOCK_JOB_ERROR.)
type BlockJobError struct {
	Device    string      `json:"device"`
	Operation IOOperation `json:"operation,omitempty"`
	Action    IOAction    `json:"action,omitempty"`
}

// Name returns "BLOCK_JOB_ERROR".
func (BlockJobError) Name() string { return "BLOCK_JOB_ERROR" }

// BlockJobReady says that a block job can be completed, until a [BlockJobError]
// or its end. The first documents of COLO show only the device: the rest is zero then.
// (QAPI event BLOCK_JOB_READY.)
type BlockJobReady struct {
	Device string  `json:"device"`
	Len    int64   `json:"len"`
	Offset int64   `json:"offset"`
	Speed  int64   `json:"speed"`
	Type   JobType `json:"type,omitempty"`
}

// Name returns "BLOCK_JOB_READY".
func (BlockJobReady) Name() string { return "BLOCK_JOB_READY" }

// BlockJobPending says that a block job waits to be finalized by hand. (QAPI
// event BLOCK_JOB_PENDING.)
type BlockJobPending struct {
	Type JobType `json:"type,omitempty"`
	ID   string  `json:"id"`
}

// Name returns "BLOCK_JOB_PENDING".
func (BlockJobPending) Name() string { return "BLOCK_JOB_PENDING" }

// QuorumFailure says that a quorum could not agree on a read: too many of its
// children failed or differ. Its rate is limited ([Limiter]). (QAPI event
// QUORUM_FAILURE.)
type QuorumFailure struct {
	Reference    string `json:"reference"`     // the quorum's device or node
	SectorsCount int64  `json:"sectors-count"` // "sector-count" in the first documents
	SectorNum    int64  `json:"sector-num"`    // sectors of 512 bytes
}

// Name returns "QUORUM_FAILURE".
func (QuorumFailure) Name() string { return "QUORUM_FAILURE" }

// QuorumReportBad says that a child of a quorum has failed, or was outvoted. Its
// rate is limited for each child ([Limiter]). (QAPI event QUORUM_REPORT_BAD.)
type QuorumReportBad struct {
	NodeName     string      `json:"node-name"`
	SectorsCount int64       `json:"sectors-count"` // "sector-count" in the first documents
	SectorNum    int64       `json:"sector-num"`    // sectors of 512 bytes
	Type         IOOperation `json:"type,omitempty"`
	Error        string      `json:"error,omitempty"` // in words; empty: it was outvoted
}

// Name returns "QUORUM_REPORT_BAD".
func (QuorumReportBad) Name() string { return "QUORUM_REPORT_BAD" }
