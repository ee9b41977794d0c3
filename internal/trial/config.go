// Package trial puts a protected guest on trial: it starts a process for each host, is the client
// that the guest talks to, kills or stops one of them at an instant or a place of a
// checkpoint, sees the other go on, and has package oracle judge all that left.
//
// The processes are the program's own, started again with SideArgument as their
// argument. Such a process calls Serve, which reads from standard input what it is
// to be (SideConfig) and what it is to do (Command), and says on standard output what
// happens to it (Report), one JSON object per line. The program makes the parts of a side: its
// guest, its session, its network and its disk. This package looks at them only from the
// outside:
//
//	config.go, address.go     what a run is to do
//	pair.go                   two hosts, the arbiter that they ask, and all that surrounds them
//	run.go, plot.go           a run, from its processes to the verdict
//	series.go                 a guest that the two take from each other, again and again
//	messages.go, process.go   what comes from the sides
//	report.go, serve.go       what the two say to each other
//	client.go, client_input.go, vlan.go   who the guest talks to
//	claims.go                 what the sides ask the arbiter
//	stall.go                  whether the machine has let them run
//	printer.go, summary.go, timeline.go   what is shown of it
package trial

import (
	"fmt"
	"math"
	"time"

	"github.com/gocolo/lockstep/internal/guest"
)

// A Config says what a run is to do, on either backend.
type Config struct {
	VCPUs       int
	Mem         uint64        // bytes of guest memory
	Dirty       int           // pages that a vCPU touches per round
	Set         int           // of so many; 0: as many as a few hundred rounds visit
	Pace        time.Duration // from one round of a vCPU to the next
	Diverge     float64       // per cent of the rounds, that take in the time-stamp counter
	Disk        uint64        // bytes; 0: none
	DiskDir     string        // where the images stay; "": they do not
	VLAN        int           // of each frame; 0: none
	Seed        uint64        // of the first run
	Mode        string        // when output leaves
	Interval    time.Duration // from one checkpoint to the next
	EarlyResume bool
	Throttle    float64 // per cent of the time that checkpoints may take; 0: any
	Keep        int     // before how many checkpoints a page is written to stay writable; 0: as the library has it; below 0: none does
	VerifyDirty bool    // compare the dirty log with what was written
	QMP         string  // where the primary, or host a, has its monitor; "": nowhere
	HTTP        string  // where it has its page; "": nowhere
	HTTPControl bool    // the pages have buttons

	Checkpoints int           // before the kill; 0: each run draws its own
	Kill        string        // a side, or killNone
	KillAt      string        // a place of a checkpoint
	Lost        time.Duration // without a heartbeat, and a side is lost
	Signal      string        // what the victim is sent
	StopFor     time.Duration // with signalStop; 0: until the other side has gone on
	Repeat      int           // number of runs

	Term        time.Duration // for which the arbiter gives the guest to a host
	Failovers   int           // how often one host takes the guest from the other by death; with these Kill and KillAt are not used
	Switchovers int           // and in good order
}

// When output leaves.
const (
	ModeCOLO       = "colo"       // when both guests have said the same, or at a checkpoint
	ModeCompare    = "compare"    // the same, and no flow is given up
	ModeContinuous = "continuous" // at a checkpoint
)

// What happens to the victim, and that there is none.
const (
	KillNone = "none"

	SignalKill = "kill"
	SignalStop = "stop"
)

// RepeatCheckpoints is how many checkpoints a run makes at most that draws its own
// number.
const RepeatCheckpoints = 6

// diskEvery is how many rounds of a vCPU there are to a write of the disk.
const diskEvery = 8

// The working set of each vCPU, unless Config.Set says otherwise, is at least this many pages, and twice what a
// round touches, so that a few hundred rounds visit all of it.
const workingSet = 1024

// Guest returns the test program that the run protects.
func (c *Config) Guest(seed uint64) guest.Params {
	every := 0
	if c.Disk > 0 {
		every = diskEvery
	}
	set := c.Set
	if set == 0 {
		set = max(workingSet, 2*c.Dirty)
	}
	return guest.Params{
		VCPUs:       c.VCPUs,
		Pages:       set,
		Touch:       c.Dirty,
		TSCPerMille: int(math.Round(c.Diverge * 10)),
		Seed:        seed,
		Disk:        c.Disk,
		DiskEvery:   every,
	}
}

// says returns a sentence that describes the run.
func (c *Config) says() string {
	var does string
	switch {
	case c.Failovers+c.Switchovers > 0:
		does = "Two hosts, a process each, take a guest from each other: the one that has it is killed and comes back, or hands it over."
		if c.Signal == SignalStop {
			does = "Two hosts, a process each, take a guest from each other: the one that has it is stopped for too long, or hands it over."
		}
	case c.Kill == KillNone:
		does = "A guest runs in two processes that are kept in step; the primary goes on alone by order."
	case c.Signal == SignalStop:
		does = fmt.Sprintf("A guest runs in two processes that are kept in step; the %s is stopped.", c.Kill)
	default:
		does = fmt.Sprintf("A guest runs in two processes that are kept in step; the %s is killed, and the other goes on.", c.Kill)
	}
	return does + " What has left is checked against what the last one remembers. (-h explains.)"
}

// rounds returns how many rounds of each vCPU after the kill must be right: some
// hundred, and enough to visit nearly all of the working set.
func (c *Config) rounds() uint64 {
	const some = 300
	if c.Dirty == 0 {
		return some
	}
	return max(some, uint64(4*c.Guest(0).Pages/c.Dirty))
}
