package main

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/gocolo/lockstep/internal/cli"
	"github.com/gocolo/lockstep/internal/guest"
	"github.com/gocolo/lockstep/internal/killpoint"
	"github.com/gocolo/lockstep/internal/trial"
)

const about = `Lockstep runs a guest in two processes that are kept in step, kills one of them
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
  go run ./examples/lockstep -failovers 10                      kill the host with the guest, have it back, and again
  go run ./examples/lockstep -switchover 10                     the same in good order
  go run ./examples/lockstep -timeline run.svg                  a picture of the run
  go run ./examples/lockstep -http 8080 -checkpoints 5000       a page on which to watch it
  go run ./examples/lockstep -json                              events and figures, a line each

A killed primary's grant of the guest lasts on for a while (-term): the secondary waits for that,
so a failover takes about as long. A primary whose secondary is killed waits for nothing.

It exits with 0 if every frame that left is confirmed by the survivor, and the
survivor's disk is what its memory says; with 1 if not or if a run failed,
with 2 for wrong arguments, and with 130, 143 or 129 if it was interrupted.

`

// options has the command line.
type options struct {
	trial.Config
	backend  string
	json     bool
	timeline string
}

// What -backend, -mode, -kill and -signal take.
var (
	backends = []string{"auto", "kvm", "sim"}
	modes    = []string{trial.ModeCOLO, trial.ModeCompare, trial.ModeContinuous}
	victims  = []string{trial.Primary, trial.Secondary, trial.KillNone}
	signals  = []string{trial.SignalKill, trial.SignalStop}
)

// Repeated runs are short ones unless the flags say otherwise.
const (
	defaultInterval    = 60 * time.Millisecond
	defaultCheckpoints = 80
	repeatInterval     = 10 * time.Millisecond
)

// defaultPace is how often a vCPU has a round unless the flags say otherwise: the guest has
// nothing else to wait for, and would keep a CPU of the host busy on each side.
const defaultPace = 250 * time.Microsecond

// What a run has unless the flags say otherwise. A host that is silent is lost after longer than
// a process may have to wait for a CPU of a busy machine; one that is killed is noticed at once,
// because its connections end. Either way the other goes on when the grant is over: until then
// the dead one might act for the guest, as far as the arbiter knows.
const (
	defaultLost = 10 * time.Second
	minLost     = 400 * time.Millisecond
	defaultTerm = 400 * time.Millisecond
	minTerm     = 100 * time.Millisecond
)

// What a series of failovers has: whoever loses the guest to a host that had no CPU for too long
// has not been killed.
const (
	defaultDisk = cli.Bytes(4 << 20)
	seriesLost  = 2 * time.Second
	seriesTerm  = 2 * time.Second
)

// notInSeries are flags that belong to a run with one loss.
var notInSeries = []string{"kill", "kill-at", "stop-for", "timeline"}

// A victim that is stopped for longer would be given up.
const maxStop = 4 * time.Second

// The guests of a run with a disk differ a little unless the flags say otherwise: if
// they did not, what a dead primary's guest has written too far would be what the
// survivor writes next.
const (
	diskDiverge = 10 // per cent
	minDisk     = 64 << 10
	maxDisk     = 256 << 20
)

// parseOptions reads the command line. Help is printed where it is asked for (flag.ErrHelp);
// any other error says what is wrong.
func parseOptions(args []string, help io.Writer) (options, error) {
	var o options
	mem, disk := cli.Bytes(16<<20), cli.Bytes(0)
	f := flag.NewFlagSet("lockstep", flag.ContinueOnError)
	f.StringVar(&o.backend, "backend", "auto", "`where` the guest runs: auto, kvm or sim (a guest in Go)")
	f.StringVar(&o.Mode, "mode", trial.ModeCOLO, "`when` output leaves: colo (when both guests have said the same, or at a checkpoint; a flow that never agrees with the checkpoints only), compare (the same, but no flow is given up) or continuous (at a checkpoint; the secondary's guest stands still until it takes over)")
	f.IntVar(&o.VCPUs, "vcpus", 1, "`number` of the guest's vCPUs")
	f.Var(&mem, "mem", "`size` of the guest's memory in bytes, with K, M or G; the default grows with what the guest does")
	f.IntVar(&o.Dirty, "dirty", 8, "`pages` that each vCPU touches per round")
	f.IntVar(&o.Set, "set", 0, "`pages` from which each vCPU takes those, at random; the same number as -dirty: all of them in each round; 0: 1024, or twice as many as -dirty")
	f.DurationVar(&o.Pace, "pace", defaultPace, "`time` from one round of a vCPU to the next, on average; the vCPU waits in between, out of the guest, and takes no processor")
	f.DurationVar(&o.Interval, "interval", defaultInterval, "`time` from one checkpoint to the next; with -repeat "+repeatInterval.String())
	f.IntVar(&o.Checkpoints, "checkpoints", defaultCheckpoints, "`number` of checkpoints before the kill; with -repeat 1 to "+strconv.Itoa(trial.RepeatCheckpoints)+", at random")
	f.StringVar(&o.Kill, "kill", trial.Primary, "`who` is killed: primary, secondary or none")
	f.StringVar(&o.KillAt, "kill-at", killpoint.AtAny, "`where` in a checkpoint: any (a random instant), request, ram, device, received, loaded, the name of a step (such as capture), or each (step, one a run)")
	f.DurationVar(&o.Lost, "lost-after", defaultLost, "`time` without a heartbeat after which a side is lost")
	f.StringVar(&o.Signal, "signal", trial.SignalKill, "`signal` that the victim is sent: kill, or stop (SIGSTOP, and SIGCONT later: it must not say what the survivor does not know)")
	f.DurationVar(&o.StopFor, "stop-for", 0, "`time` that a stopped victim stands; less than 5s, and the pair goes on; 0: until the other side has gone on")
	f.IntVar(&o.Repeat, "repeat", 1, "`runs`, each with processes of its own")
	f.IntVar(&o.Failovers, "failovers", 0, "`number` of times that the host with the guest is killed, or stopped, and comes back and protects the other; without -signal stop with a disk of "+defaultDisk.String())
	f.IntVar(&o.Switchovers, "switchover", 0, "`number` of times that it hands the guest over to the other; with -failovers by turns")
	f.DurationVar(&o.Term, "term", defaultTerm, "`time` for which a host is given the guest: when it is lost, the other goes on after that at the latest; with -failovers and -switchover "+seriesTerm.String())
	f.BoolVar(&o.json, "json", false, "print events and figures as JSON, one object per line")
	f.StringVar(&o.timeline, "timeline", "", "draw the run to this SVG `file`")
	f.StringVar(&o.QMP, "qmp", "", "serve a QMP monitor of the primary, or of host a, at `unix:PATH|HOST:PORT`, and the other one's at PATH.secondary, PATH.b or the next port")
	f.StringVar(&o.HTTP, "http", "", "serve a page to watch the primary, or host a, at `[HOST:]PORT`, and the other one's at the next port; HOST is this machine alone unless it is given, and a PORT 0 any that is free")
	f.BoolVar(&o.HTTPControl, "http-control", false, "the pages of -failovers and -switchover have buttons; a change of sides that they order is one that nobody planned")
	f.Float64Var(&o.Diverge, "diverge", 0, "`percentage` of the rounds that take in the time-stamp counter, so that the guests differ; with -disk "+strconv.Itoa(diskDiverge))
	f.IntVar(&o.VLAN, "vlan", 0, "`number` of the VLAN that each frame is tagged with")
	f.Var(&disk, "disk", "`size` of a disk that the guest writes too, replicated over NBD")
	f.StringVar(&o.DiskDir, "disk-dir", "", "`directory` where the two disk images stay, of the last run")
	f.BoolVar(&o.EarlyResume, "early-resume", true, "the primary runs on before its state is sent; false: after, as QEMU does it")
	f.Float64Var(&o.Throttle, "throttle", 0, "`percentage` of the time that checkpoints may take: a guest that makes them take more is slowed down; 0: never")
	f.IntVar(&o.Keep, "keep", 0, "`checkpoints` in turn before which a page is written to stay writable, which saves the guest a fault for each; 1 where faults are dear, to 7; 0: 4; -1: no page does")
	f.BoolVar(&o.VerifyDirty, "verify-dirty", false, "compare the dirty log of each side with what the kernel saw written (userfaultfd, Linux 6.7), and fail with the pages that it lacks")
	f.Uint64Var(&o.Seed, "seed", 0, "`number` that random choices start from; 0: a new one, printed")
	if err := cli.Parse(f, about, args, help); err != nil {
		return o, err
	}
	o.Mem, o.Disk = uint64(mem), uint64(disk)
	given := make(map[string]bool)
	f.Visit(func(f *flag.Flag) { given[f.Name] = true })
	if !given["mem"] {
		o.Mem = max(o.Mem, o.Guest(0).MemSize())
	}
	series := o.Failovers != 0 || o.Switchovers != 0
	if series {
		for _, name := range notInSeries {
			if given[name] {
				return o, fmt.Errorf("-%s is not for -failovers and -switchover", name)
			}
		}
		o.Kill = trial.KillNone
		if !given["disk"] && o.Signal != trial.SignalStop {
			o.Disk = uint64(defaultDisk)
		}
		if !given["lost-after"] {
			o.Lost = seriesLost
		}
		if !given["term"] {
			o.Term = seriesTerm
		}
	} else if given["http-control"] {
		return o, errors.New("-http-control is for -failovers and -switchover")
	}
	short := series || o.Repeat > 1
	if o.Disk > 0 && !given["diverge"] {
		o.Diverge = diskDiverge
	}
	if o.KillAt == killpoint.AtEach && !given["repeat"] {
		o.Repeat = max(1, len(killpoint.Steps[o.Kill]))
	}
	if short && !given["interval"] {
		o.Interval = repeatInterval
	}
	if short && !given["checkpoints"] {
		o.Checkpoints = 0 // each run draws its own
	}
	if o.Seed == 0 {
		var b [4]byte // short enough to be typed again
		rand.Read(b[:])
		o.Seed = uint64(binary.LittleEndian.Uint32(b[:])) | 1
	}
	if f.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q", f.Arg(0))
	}
	return o, o.validate(given["checkpoints"])
}

func (o *options) validate(counted bool) error {
	_, monitors := trial.MonitorOf(o.QMP, trial.Secondary)
	_, pages := trial.PageOf(o.HTTP, trial.Secondary)
	switch {
	case !slices.Contains(backends, o.backend):
		return fmt.Errorf("-backend %s: want %s", o.backend, strings.Join(backends, ", "))
	case !slices.Contains(modes, o.Mode):
		return fmt.Errorf("-mode %s: want %s", o.Mode, strings.Join(modes, ", "))
	case !slices.Contains(victims, o.Kill):
		return fmt.Errorf("-kill %s: want %s", o.Kill, strings.Join(victims, ", "))
	case !slices.Contains(killpoint.Places, o.KillAt) && !slices.Contains(killpoint.Steps[o.Kill], o.KillAt):
		return fmt.Errorf("-kill-at %s: want %s, or a step of the %s: %s", o.KillAt, strings.Join(killpoint.Places, ", "), o.Kill, strings.Join(killpoint.Steps[o.Kill], ", "))
	case o.Lost < minLost || o.Lost > time.Minute:
		return fmt.Errorf("-lost-after %v: want %v to 1m", o.Lost, minLost)
	case !slices.Contains(signals, o.Signal):
		return fmt.Errorf("-signal %s: want %s", o.Signal, strings.Join(signals, ", "))
	case o.StopFor != 0 && o.Signal != trial.SignalStop:
		return errors.New("-stop-for without -signal stop")
	case o.StopFor < 0 || o.StopFor > maxStop:
		return fmt.Errorf("-stop-for %v: want less than %v, or 0 for until the other side has gone on", o.StopFor, maxStop)
	case o.Kill == trial.KillNone && o.KillAt != killpoint.AtAny:
		return fmt.Errorf("-kill-at %s: nobody is to be killed", o.KillAt)
	case o.Failovers < 0 || o.Failovers > 1e6:
		return fmt.Errorf("-failovers %d: want 0 to 1000000", o.Failovers)
	case o.Switchovers < 0 || o.Switchovers > 1e6:
		return fmt.Errorf("-switchover %d: want 0 to 1000000", o.Switchovers)
	case o.Term < minTerm || o.Term > time.Minute:
		return fmt.Errorf("-term %v: want %v to 1m", o.Term, minTerm)
	case o.VCPUs < 1 || o.VCPUs > guest.MaxVCPUs:
		return fmt.Errorf("-vcpus %d: want 1 to %d", o.VCPUs, guest.MaxVCPUs)
	case o.Dirty < 0 || o.Dirty > guest.MaxMemory/guest.PageSize:
		return fmt.Errorf("-dirty %d: want 0 to %d", o.Dirty, guest.MaxMemory/guest.PageSize)
	case o.Set < 0 || o.Set > guest.MaxMemory/guest.PageSize || o.Set > 0 && o.Set < o.Dirty:
		return fmt.Errorf("-set %d: want at least -dirty, %d, or 0 for the default", o.Set, o.Dirty)
	case o.Pace <= 0 || o.Pace > time.Second:
		return fmt.Errorf("-pace %v: want more than 0 and at most 1s", o.Pace)
	case o.Interval <= 0 || o.Interval > time.Minute:
		return fmt.Errorf("-interval %v: want more than 0 and at most 1m", o.Interval)
	case counted && (o.Checkpoints < 1 || o.Checkpoints > 1e6):
		return fmt.Errorf("-checkpoints %d: want 1 to 1000000", o.Checkpoints)
	case o.Repeat < 1 || o.Repeat > 1e6:
		return fmt.Errorf("-repeat %d: want 1 to 1000000", o.Repeat)
	case o.Repeat > 1 && o.timeline != "":
		return errors.New("-timeline draws one run, not -repeat")
	case o.Repeat > 1 && o.QMP != "":
		return errors.New("-qmp is for one run, not -repeat")
	case o.Repeat > 1 && o.HTTP != "":
		return errors.New("-http is for one run, not -repeat")
	case monitors != nil:
		return fmt.Errorf("-qmp %s: %w", o.QMP, monitors)
	case pages != nil:
		return fmt.Errorf("-http %s: %w", o.HTTP, pages)
	case o.HTTPControl && o.HTTP == "":
		return errors.New("-http-control without -http")
	case !(o.Diverge >= 0 && o.Diverge <= 100):
		return fmt.Errorf("-diverge %v: want 0 to 100 per cent", o.Diverge)
	case !(o.Throttle >= 0 && o.Throttle <= 100):
		return fmt.Errorf("-throttle %v: want 0 to 100 per cent", o.Throttle)
	case o.Keep < -1 || o.Keep > 7:
		return fmt.Errorf("-keep %d: want 1 to 7, 0 for the default, or -1 for none", o.Keep)
	case o.VLAN < 0 || o.VLAN > trial.MaxVLAN:
		return fmt.Errorf("-vlan %d: want 1 to %d, or 0 for none", o.VLAN, trial.MaxVLAN)
	case o.Disk%guest.PageSize != 0 || o.Disk > maxDisk || o.Disk > 0 && o.Disk < minDisk:
		return fmt.Errorf("-disk %v: want whole blocks of %v, %v to %v", cli.Bytes(o.Disk), cli.Bytes(guest.PageSize), cli.Bytes(minDisk), cli.Bytes(maxDisk))
	case o.Disk == 0 && o.DiskDir != "":
		return errors.New("-disk-dir without -disk")
	case o.DiskDir != "" && !isDirectory(o.DiskDir):
		return fmt.Errorf("-disk-dir %s: there is no such directory", o.DiskDir)
	case o.Mem%guest.PageSize != 0 || o.Mem > guest.MaxMemory:
		return fmt.Errorf("-mem %v: want whole pages, at most %v", cli.Bytes(o.Mem), cli.Bytes(guest.MaxMemory))
	}
	p := o.Guest(0)
	if err := p.Validate(); err != nil {
		return fmt.Errorf("-vcpus %d -dirty %d: %w", o.VCPUs, o.Dirty, err)
	}
	if need := p.MemSize(); o.Mem < need {
		return fmt.Errorf("-mem %v: %d vCPUs that touch %d pages a round need %v", cli.Bytes(o.Mem), o.VCPUs, o.Dirty, cli.Bytes(need))
	}
	return nil
}

func isDirectory(name string) bool {
	st, err := os.Stat(name)
	return err == nil && st.IsDir()
}

// again returns the command line that repeats one run with its random choices.
func (o *options) again(backend string, checkpoints int, seed uint64) string {
	more := ""
	if o.Disk > 0 {
		more = fmt.Sprintf(" -disk %v", cli.Bytes(o.Disk))
	}
	if o.VLAN > 0 {
		more += fmt.Sprintf(" -vlan %d", o.VLAN)
	}
	if o.Signal != trial.SignalKill {
		more += " -signal " + o.Signal
	}
	if o.StopFor > 0 {
		more += fmt.Sprintf(" -stop-for %v", o.StopFor)
	}
	if o.Throttle > 0 {
		more += fmt.Sprintf(" -throttle %v", o.Throttle)
	}
	if o.Set != 0 {
		more += fmt.Sprintf(" -set %d", o.Set)
	}
	if o.Pace != defaultPace {
		more += fmt.Sprintf(" -pace %v", o.Pace)
	}
	if o.Keep != 0 {
		more += fmt.Sprintf(" -keep %d", o.Keep)
	}
	if o.VerifyDirty {
		more += " -verify-dirty"
	}
	if o.Failovers+o.Switchovers > 0 {
		return fmt.Sprintf("-backend %s -mode %s -vcpus %d -mem %v -dirty %d -interval %v -checkpoints %d -failovers %d -switchover %d -term %v -lost-after %v -diverge %v -early-resume=%v%s -seed %d",
			backend, o.Mode, o.VCPUs, cli.Bytes(o.Mem), o.Dirty, o.Interval, checkpoints, o.Failovers, o.Switchovers, o.Term, o.Lost, o.Diverge, o.EarlyResume, more, seed)
	}
	if o.Lost != defaultLost {
		more += fmt.Sprintf(" -lost-after %v", o.Lost)
	}
	if o.Term != defaultTerm {
		more += fmt.Sprintf(" -term %v", o.Term)
	}
	return fmt.Sprintf("-backend %s -mode %s -vcpus %d -mem %v -dirty %d -interval %v -checkpoints %d -kill %s -kill-at %q -diverge %v -early-resume=%v%s -seed %d",
		backend, o.Mode, o.VCPUs, cli.Bytes(o.Mem), o.Dirty, o.Interval, checkpoints, o.Kill, o.KillAt, o.Diverge, o.EarlyResume, more, seed)
}
