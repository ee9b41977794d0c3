package trial

import (
	"bufio"
	"encoding/json"
	"errors"
	"io"
	"time"

	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/internal/guest"
	"github.com/gocolo/lockstep/internal/oracle"
)

// The names of the two hosts of a Run, whose sides they are until one is lost.
const (
	Primary   = string(event.ModePrimary)
	Secondary = string(event.ModeSecondary)
)

// SideConfig is the first line that a host reads from its standard input.
type SideConfig struct {
	Side    string       `json:"side"` // the host's name
	Backend string       `json:"backend"`
	Guest   guest.Params `json:"guest"`
	Memory  uint64       `json:"memory"`         // bytes
	Disk    string       `json:"disk,omitempty"` // this host's image, of Guest.Disk bytes
	Client  string       `json:"client"`         // address that takes the guest's output

	Listen  string        `json:"listen"`  // where it is reached
	Dial    string        `json:"dial"`    // where the other is
	Arbiter string        `json:"arbiter"` // the directory of package sharedfile that decides who goes on
	Start   bool          `json:"start"`   // the guest begins its life here
	Beat    time.Duration `json:"beat"`    // between two heartbeats
	Lost    time.Duration `json:"lost"`    // without one: the other host is lost
	Term    time.Duration `json:"term"`    // of a grant of the arbiter's

	QMP         string `json:"qmp,omitempty"`          // where this host has its monitor
	HTTP        string `json:"http,omitempty"`         // where it has its page
	HTTPControl bool   `json:"http_control,omitempty"` // which has buttons

	Pace        time.Duration `json:"pace,omitempty"` // from one round of a vCPU to the next, on average
	Mode        string        `json:"mode"`
	VLAN        VLAN          `json:"vlan,omitempty"` // of each frame
	Interval    time.Duration `json:"interval"`       // between checkpoints
	EarlyResume bool          `json:"early_resume"`
	Throttle    float64       `json:"throttle"`       // the share of the time that checkpoints may take; 0: any
	Keep        int           `json:"keep,omitempty"` // as in Config
	VerifyDirty bool          `json:"verify_dirty,omitempty"`

	// StopAt, if not empty, is the place of checkpoint StopEpoch at which this
	// host stops and waits to be killed; Seed draws the byte of the stream.
	StopAt    string `json:"stop_at,omitempty"`
	StopEpoch uint64 `json:"stop_epoch,omitempty"`
	Seed      uint64 `json:"seed"`

	// Missed, with VerifyDirty, is called with each page that the dirty log of this process
	// lacks. The process sets it itself.
	Missed func(block string, offset uint64) `json:"-"`
}

// gather returns the time for which the reports of a side gather. Nobody acts on one checkpoint of
// a thousand a second, and a report of each as it comes would cost both hosts and the parent time
// on the CPUs that they share.
func (s *SideConfig) gather() time.Duration {
	if s.Interval < time.Millisecond && s.StopAt == "" {
		return gatherFor
	}
	return 0
}

const gatherFor = 5 * time.Millisecond

// ErrOrphan says that the parent has gone, which ends a side.
var ErrOrphan = errors.New("the parent process has gone")

// Command is any further line. The end of the input means that the parent is
// gone, and ends the side.
type Command struct {
	Cancel     bool `json:"cancel,omitempty"`     // end the protection: the guest goes on here, alone
	Proceed    bool `json:"proceed,omitempty"`    // go on from the place where it stopped
	Switchover bool `json:"switchover,omitempty"` // give the guest to the other; answered by Switched
	Stop       bool `json:"stop,omitempty"`       // pause, say what the guest remembers, and end
}

// Report is a line that a side writes to its standard output: one of these.
type Report struct {
	Event      *event.Record    `json:"event,omitempty"`
	Checkpoint *Checkpoint      `json:"checkpoint,omitempty"`
	Stopped    *Stopped         `json:"stopped,omitempty"`
	Claimed    *Claimed         `json:"claimed,omitempty"`
	Histories  []oracle.History `json:"histories,omitempty"`
	Traffic    *Traffic         `json:"traffic,omitempty"` // beside Histories
	Missed     *MissedPage      `json:"missed,omitempty"`
	Switched   *Switched        `json:"switched,omitempty"`
	Handle     *Handle          `json:"handle,omitempty"`
}

// Handle is where a side is steered or watched. It is told before anything happens to its
// session, and again by a host that comes back.
type Handle struct {
	Name    string `json:"name"`    // "monitor" or "page"
	Address string `json:"address"` // as a program, or a browser, takes it
}

// MissedPage is a page that was written and that the side's dirty log lacked when the
// guest was paused.
type MissedPage struct {
	Block  string `json:"block"`
	Offset uint64 `json:"offset"` // bytes
}

// Switched answers the order to switch over.
type Switched struct {
	DowntimeUS int64  `json:"downtime_us"`     // of the guest, as its old host measures it
	Error      string `json:"error,omitempty"` // it runs where it ran
}

// Checkpoint is the report of a primary on a checkpoint that both sides have.
type Checkpoint struct {
	Epoch       uint64      `json:"epoch"`
	Cause       event.Cause `json:"cause"`
	Start       time.Time   `json:"start"`
	PauseAtUS   int64       `json:"pause_at_us"` // from the start
	PauseUS     int64       `json:"pause_us"`
	StoppedUS   int64       `json:"stopped_us"` // what the guest lost: from out of KVM_RUN to in again; 0: not measured
	StoppedIn   uint64      `json:"stopped_in"` // the epoch in whose pause: this one's, or the one before
	TransferUS  int64       `json:"transfer_us"`
	CommitUS    int64       `json:"commit_us"`
	DirtyPages  uint64      `json:"dirty_pages"`
	Bytes       uint64      `json:"bytes"`
	EarlyResume bool        `json:"early_resume"`
	Held        uint64      `json:"held"`    // frames that waited for it
	Traffic     *Traffic    `json:"traffic"` // so far
}

// withStopped appends a checkpoint. If its StoppedUS is about the pause of the checkpoint
// before, it moves the figure there.
func withStopped(list []Checkpoint, c Checkpoint) []Checkpoint {
	if c.StoppedIn != c.Epoch {
		if n := len(list); n > 0 && list[n-1].Epoch == c.StoppedIn {
			list[n-1].StoppedUS, list[n-1].StoppedIn = c.StoppedUS, c.StoppedIn
		}
		c.StoppedUS = 0
	}
	return append(list, c)
}

// Traffic has the counters of a primary for the packets of its guest. Latency is the time for
// which packets were held that left at a match.
type Traffic struct {
	Matched      uint64 `json:"matched"`       // left because both guests had said the same
	AtCheckpoint uint64 `json:"at_checkpoint"` // left because a checkpoint covered them
	Diverged     uint64 `json:"diverged"`      // times that the guests were found to differ
	LatencyP50US int64  `json:"latency_us_p50"`
	LatencyP99US int64  `json:"latency_us_p99"`
}

// Stopped says that the side stands at the place where it is to be killed.
type Stopped struct {
	Epoch  uint64 `json:"epoch"`
	Detail string `json:"detail"`
}

// The first frame on a side's connection to the client is its name, with inputSuffix on the one
// that the client sends by. The other one says that what follows was released after it had
// taken over. The guest's own frames are longer.
const (
	TookOver    = "took over"
	InputSuffix = " input"
)

// Reporter writes reports on a goroutine of its own, since a session should not write
// to a pipe while its guest is paused. It writes all that have gathered together,
// since each write wakes the parent.
type Reporter struct {
	queue chan queued
	now   chan struct{} // of one: what has gathered is to be written
	done  chan struct{}
}

// queued is a report that waits to be written.
type queued struct {
	Report
	written chan struct{} // closed when it is; nil: nobody waits
}

// maxGathered is how many reports may wait to be written before Send waits.
const maxGathered = 256

// NewReporter starts a Reporter. Close ends it. If gather is more than 0, reports gather for
// that long before they are written, so that a side with many reports wakes neither a
// goroutine nor its parent for each.
func NewReporter(w io.Writer, gather time.Duration) *Reporter {
	r := &Reporter{make(chan queued, maxGathered), make(chan struct{}, 1), make(chan struct{})}
	go func() {
		defer close(r.done)
		b := bufio.NewWriterSize(w, 64<<10)
		enc := json.NewEncoder(b)
		var waiting []chan struct{}
		put := func(q queued) {
			enc.Encode(q.Report) // a parent that does not read has gone
			if q.written != nil {
				waiting = append(waiting, q.written)
			}
		}
		for q := range r.queue {
			put(q)
			if gather > 0 && q.written == nil {
				r.wait(gather)
			}
			for n := len(r.queue); n > 0; n-- {
				put(<-r.queue)
			}
			b.Flush()
			for _, w := range waiting {
				close(w)
			}
			waiting = waiting[:0]
		}
	}()
	return r
}

// wait returns when what has gathered is to be written.
func (r *Reporter) wait(gather time.Duration) {
	timer := time.NewTimer(gather)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-r.now:
	}
}

// hurry has what has gathered written.
func (r *Reporter) hurry() {
	select {
	case r.now <- struct{}{}:
	default:
	}
}

// Send queues a report.
func (r *Reporter) Send(rep Report) { r.put(queued{Report: rep}) }

func (r *Reporter) put(q queued) {
	select {
	case r.queue <- q:
	default:
		r.hurry()
		r.queue <- q
	}
}

// SendNow returns when the report, and all before it, have been written.
func (r *Reporter) SendNow(rep Report) {
	written := make(chan struct{})
	r.put(queued{rep, written})
	r.hurry()
	<-written
}

// Close ends the reporter when all is written.
func (r *Reporter) Close() {
	close(r.queue)
	r.hurry()
	<-r.done
}
