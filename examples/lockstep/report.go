package main

import (
	"bufio"
	"encoding/json"
	"io"
	"time"

	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/internal/guest"
)

// The names of the two sides.
const (
	primary   = string(event.ModePrimary)
	secondary = string(event.ModeSecondary)
)

// sideConfig is the first line that a side reads from its standard input.
type sideConfig struct {
	Side    string       `json:"side"`
	Backend string       `json:"backend"`
	Guest   guest.Params `json:"guest"`
	Memory  uint64       `json:"memory"`         // bytes
	Disk    string       `json:"disk,omitempty"` // this side's image, of Guest.Disk bytes

	Client     string `json:"client"`  // address that takes the guest's output
	Witness    string `json:"witness"` // address that decides who goes on
	Generation uint64 `json:"generation"`

	QMP string `json:"qmp,omitempty"` // where this side has its monitor

	Mode        string        `json:"mode"`
	VLAN        vlan          `json:"vlan,omitempty"` // of each frame
	Interval    time.Duration `json:"interval"`       // between checkpoints
	Lost        time.Duration `json:"lost"`           // without a heartbeat: the other side is lost
	EarlyResume bool          `json:"early_resume"`
	Throttle    float64       `json:"throttle"` // the share of the time that checkpoints may take; 0: any
	VerifyDirty bool          `json:"verify_dirty,omitempty"`

	// StopAt, if not empty, is the place of checkpoint StopEpoch at which this
	// side stops and waits to be killed; Seed draws the byte of the stream.
	StopAt    string `json:"stop_at,omitempty"`
	StopEpoch uint64 `json:"stop_epoch,omitempty"`
	Seed      uint64 `json:"seed"`

	missed func(block string, offset uint64) // with VerifyDirty, of this process
}

// command is any further line. The end of the input means that the parent is
// gone, and ends the side.
type command struct {
	Connect  *addresses `json:"connect,omitempty"`  // primary: where the secondary listens
	Failover bool       `json:"failover,omitempty"` // go on alone
	Proceed  bool       `json:"proceed,omitempty"`  // go on from the place where it stopped
	Stop     bool       `json:"stop,omitempty"`     // pause, say what the guest remembers, and end
}

// addresses are where a secondary listens.
type addresses struct {
	COLO      string `json:"colo"`
	Heartbeat string `json:"heartbeat"`
	Disk      string `json:"disk"` // NBD
	Packets   string `json:"packets"`
}

// report is a line that a side writes to its standard output: one of these.
type report struct {
	Listening  *addresses    `json:"listening,omitempty"`
	Event      *event.Record `json:"event,omitempty"`
	Checkpoint *checkpoint   `json:"checkpoint,omitempty"`
	Stopped    *stopped      `json:"stopped,omitempty"`
	Ended      *ended        `json:"ended,omitempty"`
	Histories  []history     `json:"histories,omitempty"`
	Traffic    *traffic      `json:"traffic,omitempty"` // beside Histories
	Missed     *missedPage   `json:"missed,omitempty"`
}

// missedPage is a page that was written and that the side's dirty log lacked when the
// guest was paused.
type missedPage struct {
	Block  string `json:"block"`
	Offset uint64 `json:"offset"` // bytes
}

// checkpoint is what the primary tells of a checkpoint that both sides have.
type checkpoint struct {
	Epoch       uint64      `json:"epoch"`
	Cause       event.Cause `json:"cause"`
	Start       time.Time   `json:"start"`
	PauseAtUS   int64       `json:"pause_at_us"` // from the start
	PauseUS     int64       `json:"pause_us"`
	StoppedUS   int64       `json:"stopped_us"` // what the guest lost: from out of KVM_RUN to in again; 0: not measured
	TransferUS  int64       `json:"transfer_us"`
	CommitUS    int64       `json:"commit_us"`
	DirtyPages  uint64      `json:"dirty_pages"`
	Bytes       uint64      `json:"bytes"`
	EarlyResume bool        `json:"early_resume"`
	Held        uint64      `json:"held"`    // frames that waited for it
	Traffic     *traffic    `json:"traffic"` // so far
}

// traffic is what the primary counts of its guest's packets. Latency is how long
// those were held that left at a match.
type traffic struct {
	Matched      uint64 `json:"matched"`       // left because both guests had said the same
	AtCheckpoint uint64 `json:"at_checkpoint"` // left because a checkpoint covered them
	Diverged     uint64 `json:"diverged"`      // times that the guests were found to differ
	LatencyP50US int64  `json:"latency_us_p50"`
	LatencyP99US int64  `json:"latency_us_p99"`
}

// stopped says that the side stands at the place where it is to be killed.
type stopped struct {
	Epoch  uint64 `json:"epoch"`
	Detail string `json:"detail"`
}

// ended says that a side's session is over.
type ended struct {
	TookOver bool   `json:"took_over"`
	Refused  bool   `json:"refused,omitempty"` // by the witness
	Error    string `json:"error,omitempty"`
	Epoch    uint64 `json:"epoch"` // the last checkpoint that it has
}

// The first frame on a side's connection to the client is its name, with
// inputSuffix on the one that the client sends by. The other one says that what follows was released after it had taken over. The guest's own
// frames are longer.
const (
	tookOver    = "took over"
	inputSuffix = " input"
)

// reporter writes reports off the goroutine of the session, in whose pauses no pipe
// should be written to; those that have gathered meanwhile together, since each write
// wakes the parent.
type reporter struct {
	queue chan queued
	done  chan struct{}
}

type queued struct {
	report
	written chan struct{} // closed when it is; nil: nobody waits
}

func newReporter(w io.Writer) *reporter {
	r := &reporter{make(chan queued, 256), make(chan struct{})}
	go func() {
		defer close(r.done)
		b := bufio.NewWriterSize(w, 64<<10)
		enc := json.NewEncoder(b)
		for q := range r.queue {
			enc.Encode(q.report) // a parent that does not read has gone
			if q.written != nil || len(r.queue) == 0 {
				b.Flush()
			}
			if q.written != nil {
				close(q.written)
			}
		}
	}()
	return r
}

// send queues a report.
func (r *reporter) send(rep report) { r.queue <- queued{report: rep} }

// sendNow returns when the report, and all before it, have been written.
func (r *reporter) sendNow(rep report) {
	written := make(chan struct{})
	r.queue <- queued{rep, written}
	<-written
}

// close ends the reporter when all is written.
func (r *reporter) close() {
	close(r.queue)
	<-r.done
}
