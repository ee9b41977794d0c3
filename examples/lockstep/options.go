package main

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/gocolo/lockstep/internal/guest"
)

const usage = `Lockstep runs a guest in two processes that are kept in step, kills one of them
with SIGKILL, and checks that the other goes on and that no output is lost.

  go run ./examples/lockstep                                    the default run
  go run ./examples/lockstep -kill secondary -vcpus 2           the other side, two vCPUs
  go run ./examples/lockstep -mode continuous                   nothing is compared, all output waits
  go run ./examples/lockstep -diverge 20                        guests that differ, and checkpoints on demand
  go run ./examples/lockstep -diverge 20 -mode compare          the same, and no flow is given up
  go run ./examples/lockstep -kill primary -kill-at received    at a point of a checkpoint
  go run ./examples/lockstep -kill-at each                      before every step of a checkpoint, one a run
  go run ./examples/lockstep -signal stop                       stopped until the other has gone on, and woken
  go run ./examples/lockstep -repeat 200 -mem 8M                200 kills at random instants
  go run ./examples/lockstep -disk 4M                           with a disk in two copies
  go run ./examples/lockstep -timeline run.svg                  a picture of the run
  go run ./examples/lockstep -json                              events and figures, a line each

It exits with 0 if every frame that left is confirmed by the survivor, and the
survivor's disk is what its memory says; with 1 if not or if a run failed,
with 2 for wrong arguments, and with 130, 143 or 129 if it was interrupted.

`

// printUsage explains the program, each flag in one line.
func printUsage(w io.Writer, f *flag.FlagSet) {
	fmt.Fprint(w, usage)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	f.VisitAll(func(f *flag.Flag) {
		arg, text := flag.UnquoteUsage(f)
		if f.DefValue != "" && f.DefValue != "false" && f.DefValue != "0" {
			text += " (default " + f.DefValue + ")"
		}
		fmt.Fprintf(t, "  -%s %s\t%s\n", f.Name, arg, text)
	})
	t.Flush()
}

// options is what the command line says.
type options struct {
	backend     string
	vcpus       int
	mem         uint64 // bytes of guest memory
	dirty       int    // pages that a vCPU touches per round
	interval    time.Duration
	checkpoints int // before the kill
	kill        string
	killAt      string
	lost        time.Duration // without a heartbeat, and a side is lost
	signal      string        // what the victim is sent
	stopFor     time.Duration // with signalStop; 0: until the other side has gone on
	repeat      int
	json        bool
	timeline    string
	diverge     float64 // per cent of the rounds
	vlan        int     // of each frame, 0 for none
	earlyResume bool
	throttle    float64 // per cent of the time that checkpoints may take, 0 for any
	disk        uint64  // bytes, 0 for none
	diskDir     string  // where the images stay
	verifyDirty bool
	seed        uint64
	mode        string
	qmp         string
}

// What -mode, -kill and -kill-at take.
const (
	modeCOLO       = "colo"
	modeCompare    = "compare"
	modeContinuous = "continuous"

	killNone = "none"

	signalKill = "kill"
	signalStop = "stop"

	atAny      = "any"
	atEach     = "each" // step, one after the other
	atRequest  = "request"
	atRAM      = "ram"
	atDevice   = "device"
	atReceived = "received"
	atLoaded   = "loaded"
)

var (
	backends = []string{"auto", "kvm", "sim"}
	modes    = []string{modeCOLO, modeCompare, modeContinuous}
	victims  = []string{primary, secondary, killNone}
	signals  = []string{signalKill, signalStop}
	places   = []string{atAny, atEach, atRequest, atRAM, atDevice, atReceived, atLoaded}
)

// The working set of each vCPU is at least this many pages, and twice what a
// round touches, so that a few hundred rounds visit all of it.
const workingSet = 1024

// Repeated runs are short ones unless the flags say otherwise.
const (
	defaultInterval    = 60 * time.Millisecond
	defaultCheckpoints = 80
	repeatInterval     = 10 * time.Millisecond
	repeatCheckpoints  = 6
)

// A victim that is stopped for longer would be given up.
const maxStop = 4 * time.Second

// A guest with a disk writes it every diskEvery rounds of a vCPU. Its guests
// differ a little unless the flags say otherwise: if they did not, what a dead
// primary's guest has written too far would be what the survivor writes next.
const (
	diskEvery   = 8
	diskDiverge = 10 // per cent
	minDisk     = 64 << 10
	maxDisk     = 256 << 20
)

// parseOptions reads the command line. Usage goes to help when it is asked for
// (flag.ErrHelp); any other error is one line for the user.
func parseOptions(args []string, help io.Writer) (options, error) {
	var o options
	mem, disk := size(16<<20), size(0)
	f := flag.NewFlagSet("lockstep", flag.ContinueOnError)
	f.SetOutput(io.Discard)
	f.StringVar(&o.backend, "backend", "auto", "`where` the guest runs: auto, kvm or sim (a guest in Go)")
	f.StringVar(&o.mode, "mode", modeCOLO, "`when` output leaves: colo (when both guests have said the same, or at a checkpoint; a flow that never agrees with the checkpoints only), compare (the same, but no flow is given up) or continuous (at a checkpoint; the secondary's guest stands still until it takes over)")
	f.IntVar(&o.vcpus, "vcpus", 1, "`number` of the guest's vCPUs")
	f.Var(&mem, "mem", "`size` of the guest's memory in bytes, with K, M or G; the default grows with what the guest does")
	f.IntVar(&o.dirty, "dirty", 8, "`pages` that each vCPU touches per round")
	f.DurationVar(&o.interval, "interval", defaultInterval, "`time` from one checkpoint to the next; with -repeat "+repeatInterval.String())
	f.IntVar(&o.checkpoints, "checkpoints", defaultCheckpoints, "`number` of checkpoints before the kill; with -repeat 1 to "+strconv.Itoa(repeatCheckpoints)+", at random")
	f.StringVar(&o.kill, "kill", primary, "`who` is killed: primary, secondary or none")
	f.StringVar(&o.killAt, "kill-at", atAny, "`where` in a checkpoint: any (a random instant), request, ram, device, received, loaded, the name of a step (such as capture), or each (step, one a run)")
	f.DurationVar(&o.lost, "lost-after", beatTimeout, "`time` without a heartbeat after which a side is lost")
	f.StringVar(&o.signal, "signal", signalKill, "`signal` that the victim is sent: kill, or stop (SIGSTOP, and SIGCONT later: it must not say what the survivor does not know)")
	f.DurationVar(&o.stopFor, "stop-for", 0, "`time` that a stopped victim stands; less than 5s, and the pair goes on; 0: until the other side has gone on")
	f.IntVar(&o.repeat, "repeat", 1, "`runs`, each with processes of its own")
	f.BoolVar(&o.json, "json", false, "print events and figures as JSON, one object per line")
	f.StringVar(&o.timeline, "timeline", "", "draw the run to this SVG `file`")
	f.StringVar(&o.qmp, "qmp", "", "serve the primary's QMP monitor at `unix:PATH|HOST:PORT`, and the secondary's at PATH.secondary or the next port")
	f.Float64Var(&o.diverge, "diverge", 0, "`percentage` of the rounds that take in the time-stamp counter, so that the guests differ; with -disk "+strconv.Itoa(diskDiverge))
	f.IntVar(&o.vlan, "vlan", 0, "`number` of the VLAN that each frame is tagged with")
	f.Var(&disk, "disk", "`size` of a disk that the guest writes too, replicated over NBD")
	f.StringVar(&o.diskDir, "disk-dir", "", "`directory` where the two disk images stay, of the last run")
	f.BoolVar(&o.earlyResume, "early-resume", true, "the primary runs on before its state is sent; false: after, as QEMU does it")
	f.Float64Var(&o.throttle, "throttle", 0, "`percentage` of the time that checkpoints may take: a guest that makes them take more is slowed down; 0: never")
	f.BoolVar(&o.verifyDirty, "verify-dirty", false, "compare the dirty log of each side with what the kernel saw written (userfaultfd, Linux 6.7), and fail with the pages that it lacks")
	f.Uint64Var(&o.seed, "seed", 0, "`number` that random choices start from; 0: a new one, printed")
	if err := f.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			printUsage(help, f)
		}
		return o, err
	}
	o.mem, o.disk = uint64(mem), uint64(disk)
	given := make(map[string]bool)
	f.Visit(func(f *flag.Flag) { given[f.Name] = true })
	if !given["mem"] {
		o.mem = max(o.mem, o.guest(0).MemSize())
	}
	if o.disk > 0 && !given["diverge"] {
		o.diverge = diskDiverge
	}
	if o.killAt == atEach && !given["repeat"] {
		o.repeat = max(1, len(steps[o.kill]))
	}
	if o.repeat > 1 && !given["interval"] {
		o.interval = repeatInterval
	}
	if o.repeat > 1 && !given["checkpoints"] {
		o.checkpoints = 0 // each run draws its own
	}
	if o.seed == 0 {
		var b [4]byte // short enough to be typed again
		rand.Read(b[:])
		o.seed = uint64(binary.LittleEndian.Uint32(b[:])) | 1
	}
	if f.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q", f.Arg(0))
	}
	return o, o.validate(given["checkpoints"])
}

func (o *options) validate(counted bool) error {
	_, monitors := monitorOf(o.qmp, secondary)
	switch {
	case !slices.Contains(backends, o.backend):
		return fmt.Errorf("-backend %s: want %s", o.backend, strings.Join(backends, ", "))
	case !slices.Contains(modes, o.mode):
		return fmt.Errorf("-mode %s: want %s", o.mode, strings.Join(modes, ", "))
	case !slices.Contains(victims, o.kill):
		return fmt.Errorf("-kill %s: want %s", o.kill, strings.Join(victims, ", "))
	case !slices.Contains(places, o.killAt) && !slices.Contains(steps[o.kill], o.killAt):
		return fmt.Errorf("-kill-at %s: want %s, or a step of the %s: %s", o.killAt, strings.Join(places, ", "), o.kill, strings.Join(steps[o.kill], ", "))
	case o.lost < 2*beatInterval || o.lost > time.Minute:
		return fmt.Errorf("-lost-after %v: want %v to 1m", o.lost, 2*beatInterval)
	case !slices.Contains(signals, o.signal):
		return fmt.Errorf("-signal %s: want %s", o.signal, strings.Join(signals, ", "))
	case o.stopFor != 0 && o.signal != signalStop:
		return errors.New("-stop-for without -signal stop")
	case o.stopFor < 0 || o.stopFor > maxStop:
		return fmt.Errorf("-stop-for %v: want less than %v, or 0 for until the other side has gone on", o.stopFor, maxStop)
	case o.kill == killNone && o.killAt != atAny:
		return fmt.Errorf("-kill-at %s: nobody is to be killed", o.killAt)
	case o.vcpus < 1 || o.vcpus > guest.MaxVCPUs:
		return fmt.Errorf("-vcpus %d: want 1 to %d", o.vcpus, guest.MaxVCPUs)
	case o.dirty < 0 || o.dirty > guest.MaxMemory/guest.PageSize:
		return fmt.Errorf("-dirty %d: want 0 to %d", o.dirty, guest.MaxMemory/guest.PageSize)
	case o.interval <= 0 || o.interval > time.Minute:
		return fmt.Errorf("-interval %v: want more than 0 and at most 1m", o.interval)
	case counted && (o.checkpoints < 1 || o.checkpoints > 1e6):
		return fmt.Errorf("-checkpoints %d: want 1 to 1000000", o.checkpoints)
	case o.repeat < 1 || o.repeat > 1e6:
		return fmt.Errorf("-repeat %d: want 1 to 1000000", o.repeat)
	case o.repeat > 1 && o.timeline != "":
		return errors.New("-timeline draws one run, not -repeat")
	case o.repeat > 1 && o.qmp != "":
		return errors.New("-qmp is for one run, not -repeat")
	case monitors != nil:
		return fmt.Errorf("-qmp %s: %w", o.qmp, monitors)
	case !(o.diverge >= 0 && o.diverge <= 100):
		return fmt.Errorf("-diverge %v: want 0 to 100 per cent", o.diverge)
	case !(o.throttle >= 0 && o.throttle <= 100):
		return fmt.Errorf("-throttle %v: want 0 to 100 per cent", o.throttle)
	case o.vlan < 0 || o.vlan > maxVLAN:
		return fmt.Errorf("-vlan %d: want 1 to %d, or 0 for none", o.vlan, maxVLAN)
	case o.disk%guest.PageSize != 0 || o.disk > maxDisk || o.disk > 0 && o.disk < minDisk:
		return fmt.Errorf("-disk %v: want whole blocks of %v, %v to %v", size(o.disk), size(guest.PageSize), size(minDisk), size(maxDisk))
	case o.disk == 0 && o.diskDir != "":
		return errors.New("-disk-dir without -disk")
	case o.mem%guest.PageSize != 0 || o.mem > guest.MaxMemory:
		return fmt.Errorf("-mem %v: want whole pages, at most %v", size(o.mem), size(guest.MaxMemory))
	}
	p := o.guest(0)
	if err := p.Validate(); err != nil {
		return fmt.Errorf("-vcpus %d -dirty %d: %w", o.vcpus, o.dirty, err)
	}
	if need := p.MemSize(); o.mem < need {
		return fmt.Errorf("-mem %v: %d vCPUs that touch %d pages a round need %v", size(o.mem), o.vcpus, o.dirty, size(need))
	}
	return nil
}

// guest is the test program that the run protects.
func (o *options) guest(seed uint64) guest.Params {
	every := 0
	if o.disk > 0 {
		every = diskEvery
	}
	return guest.Params{
		VCPUs:       o.vcpus,
		Pages:       max(workingSet, 2*o.dirty),
		Touch:       o.dirty,
		TSCPerMille: int(math.Round(o.diverge * 10)),
		Seed:        seed,
		Disk:        o.disk,
		DiskEvery:   every,
	}
}

// rounds is how many rounds of each vCPU after the kill must be right: some
// hundred, and enough to visit nearly all of the working set.
func (o *options) rounds() uint64 {
	const some = 300
	if o.dirty == 0 {
		return some
	}
	return max(some, uint64(4*o.guest(0).Pages/o.dirty))
}

// again is the command line that repeats one run with its random choices.
func (o *options) again(backend string, checkpoints int, seed uint64) string {
	more := ""
	if o.disk > 0 {
		more = fmt.Sprintf(" -disk %v", size(o.disk))
	}
	if o.vlan > 0 {
		more += fmt.Sprintf(" -vlan %d", o.vlan)
	}
	if o.signal != signalKill {
		more += " -signal " + o.signal
	}
	if o.stopFor > 0 {
		more += fmt.Sprintf(" -stop-for %v", o.stopFor)
	}
	if o.throttle > 0 {
		more += fmt.Sprintf(" -throttle %v", o.throttle)
	}
	if o.lost != beatTimeout {
		more += fmt.Sprintf(" -lost-after %v", o.lost)
	}
	return fmt.Sprintf("-backend %s -mode %s -vcpus %d -mem %v -dirty %d -interval %v -checkpoints %d -kill %s -kill-at %q -diverge %v -early-resume=%v%s -seed %d",
		backend, o.mode, o.vcpus, size(o.mem), o.dirty, o.interval, checkpoints, o.kill, o.killAt, o.diverge, o.earlyResume, more, seed)
}

// size is a number of bytes that people write as 64M.
type size uint64

func (s size) String() string {
	for _, u := range []struct {
		name  string
		shift uint
	}{{"G", 30}, {"M", 20}, {"K", 10}} {
		if s != 0 && s%(1<<u.shift) == 0 {
			return strconv.FormatUint(uint64(s)>>u.shift, 10) + u.name
		}
	}
	return strconv.FormatUint(uint64(s), 10)
}

// Set parses a number with an optional unit.
func (s *size) Set(v string) error {
	shift := uint(0)
	digits := strings.ToUpper(strings.TrimSuffix(strings.TrimSuffix(strings.ToUpper(v), "B"), "I"))
	for unit, sh := range map[string]uint{"K": 10, "M": 20, "G": 30} {
		if d, ok := strings.CutSuffix(digits, unit); ok {
			digits, shift = d, sh
			break
		}
	}
	n, err := strconv.ParseUint(digits, 10, 64)
	if err != nil || n > math.MaxUint64>>shift {
		return errors.New("want a number of bytes such as 64M")
	}
	*s = size(n << shift)
	return nil
}
