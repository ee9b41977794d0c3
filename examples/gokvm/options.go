package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"net"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/gocolo/lockstep/colo"
)

// The modes.
const (
	modeBoot      = "boot"
	modePrimary   = "primary"
	modeSecondary = "secondary"
)

const usage = `Gokvm runs a Linux guest on KVM, alone or protected by a second host.

  gokvm boot -kernel bzImage [-initrd FILE] [-append ARGS] [-disk FILE] [-tap NAME]
  gokvm secondary -listen ADDR ...      on host B, first
  gokvm primary   -peer ADDR ...        on host A

It needs Linux on amd64, /dev/kvm, and for -tap the right to use TAP interfaces.

Two hosts, with a private network between them (10.0.0.1 and .2, say) and the
guest's on a bridge br0 of each; nothing on the private network is encrypted:

  both# ip tuntap add tap0 mode tap && ip link set tap0 master br0 up
  both# truncate -s 1G disk.img         # host A's is the guest's disk
  B# gokvm secondary -listen 10.0.0.2:7654 -mem 512M -vcpus 2 -disk disk.img -tap tap0
  A# gokvm primary   -peer 10.0.0.2:7654 -mem 512M -vcpus 2 -disk disk.img -tap tap0 \
       -kernel vmlinuz -initrd initrd.img -append "console=ttyS0 root=/dev/vda"

Host B's copy of memory and disk is made while the guest boots. From the line
"protected" on either host may die, and the guest goes on on the other one,
unprotected from then on. When the guest switches itself off, both sides end.
The console is on A; Ctrl-A x ends it, Ctrl-A h lists more keys.

A host that does not hear the other for -lost-after takes the guest. If both
live and only the network between them is cut, both would: then -arbiter must
name a command that asks somebody else, who says yes (exit status 0) to one.

It exits with 0 when the guest has ended or the other side has it, with 1 if
something failed, and with 2 for a bad command line.

`

// printUsage explains the program, each flag in one line.
func printUsage(w io.Writer, f *flag.FlagSet) {
	fmt.Fprint(w, usage)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	f.VisitAll(func(f *flag.Flag) {
		arg, text := flag.UnquoteUsage(f)
		if f.DefValue != "" && f.DefValue != "false" && f.DefValue != "0" && f.DefValue != "0s" {
			text += " (default " + f.DefValue + ")"
		}
		fmt.Fprintf(t, "  -%s %s\t%s\n", f.Name, arg, text)
	})
	t.Flush()
}

// options is what the command line says.
type options struct {
	hw   hardware
	mode string
	peer string // of a primary
	on   string // address that a secondary listens on

	kernel, initrd, append string
	mem                    uint64 // bytes
	vcpus                  int
	disk                   string
	tap                    string
	mac                    [6]byte

	journal    string // of a secondary
	overlay    uint64 // bytes
	interval   time.Duration
	atLeast    time.Duration
	continuous bool
	lateResume bool
	beat, lost time.Duration
	patience   time.Duration // with one checkpoint
	arbiter    string
	json       bool
	progress   time.Duration
}

// maxMemory is where gokvm's machine ends: below the hole for devices.
const maxMemory = 3 << 30

// parseOptions reads the command line. Usage goes to help when it is asked for
// (flag.ErrHelp); any other error is one line for the user.
func parseOptions(args []string, help io.Writer) (options, error) {
	o := options{hw: thisHost}
	mem, overlay := size(512<<20), size(256<<20)
	mac := "52:54:00:12:34:56"
	f := flag.NewFlagSet("gokvm", flag.ContinueOnError)
	f.SetOutput(io.Discard)
	f.StringVar(&o.peer, "peer", "", "primary: `address` that the secondary listens on")
	f.StringVar(&o.on, "listen", "", "secondary: `address` to listen on")
	f.StringVar(&o.kernel, "kernel", "", "Linux kernel, a bzImage `file`; not for a secondary")
	f.StringVar(&o.initrd, "initrd", "", "initial RAM disk, a `file`; not for a secondary")
	f.StringVar(&o.append, "append", "console=ttyS0", "the kernel's `arguments`")
	f.Var(&mem, "mem", "`size` of the guest's memory, with K, M or G")
	f.IntVar(&o.vcpus, "vcpus", 1, "`number` of the guest's CPUs")
	f.StringVar(&o.disk, "disk", "", "raw image or block device, a `file`: the guest's /dev/vda")
	f.StringVar(&o.tap, "tap", "", "`name` of the TAP interface for the guest's network card")
	f.StringVar(&mac, "mac", mac, "`address` of the guest's network card")
	f.StringVar(&o.journal, "journal", "", "secondary: keep the disk's overlays in the files `base`.hidden and .active, so that the disk survives a crash of this host")
	f.Var(&overlay, "overlay", "secondary: `size` that each overlay of the disk may grow to between checkpoints")
	f.DurationVar(&o.interval, "interval", time.Second, "primary: `time` from one checkpoint to the next, if nothing asks earlier")
	f.DurationVar(&o.atLeast, "min-interval", 20*time.Millisecond, "primary: no checkpoint because the guests differ sooner than this `time` after the last one")
	f.BoolVar(&o.continuous, "continuous", false, "primary: compare nothing, hold all output until its checkpoint")
	f.BoolVar(&o.lateResume, "late-resume", false, "primary: stand still until the checkpoint is complete, as QEMU does")
	f.DurationVar(&o.beat, "beat", 200*time.Millisecond, "`time` between two signs of life")
	f.DurationVar(&o.lost, "lost-after", 2*time.Second, "`time` without one after which the other side is lost")
	f.DurationVar(&o.patience, "checkpoint-timeout", colo.DefaultCheckpointTimeout, "primary: `time` that a checkpoint, and the output that waits for it, may take before the secondary is given up")
	f.StringVar(&o.arbiter, "arbiter", "", "`command` that is run (sh -c) before this side goes on alone, and must succeed; $LOCKSTEP_MODE, $LOCKSTEP_EPOCH and $LOCKSTEP_CAUSE say what it is about")
	f.BoolVar(&o.json, "json", false, "events and figures as JSON lines on standard output, the console on standard error")
	f.DurationVar(&o.progress, "progress", 10*time.Second, "`time` between two lines of progress where the console is no terminal; 0 for none")

	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		o.mode, args = args[0], args[1:]
	}
	if err := f.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			printUsage(help, f)
		}
		return o, err
	}
	if f.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q", f.Arg(0))
	}
	o.mem, o.overlay = uint64(mem), uint64(overlay)
	hw, err := net.ParseMAC(mac)
	if err != nil || len(hw) != 6 || hw[0]&1 != 0 {
		return o, fmt.Errorf("-mac %s: want the address of one Ethernet card, such as 52:54:00:12:34:56", mac)
	}
	o.mac = [6]byte(hw)
	given := make(map[string]bool)
	f.Visit(func(f *flag.Flag) { given[f.Name] = true })
	return o, o.validate(given)
}

// onlyFor says which flags are of which mode; the others are of all.
var onlyFor = map[string]string{
	"peer": modePrimary, "interval": modePrimary, "min-interval": modePrimary, "continuous": modePrimary, "late-resume": modePrimary, "checkpoint-timeout": modePrimary,
	"listen": modeSecondary, "journal": modeSecondary, "overlay": modeSecondary,
}

// maxVCPUs is what this program was tried with, and somewhat more.
const maxVCPUs = 8

func (o *options) validate(given map[string]bool) error {
	switch o.mode {
	case modeBoot, modePrimary, modeSecondary:
	case "":
		return errors.New("want boot, primary or secondary")
	default:
		return fmt.Errorf("%s: want boot, primary or secondary", o.mode)
	}
	for name := range given {
		if m, ok := onlyFor[name]; ok && m != o.mode {
			return fmt.Errorf("-%s is for the %s, not for %s", name, m, o.mode)
		}
		if o.mode == modeSecondary && (name == "kernel" || name == "initrd" || name == "append") {
			return fmt.Errorf("-%s: a secondary's guest comes from the primary", name)
		}
		if o.mode == modeBoot && (name == "beat" || name == "lost-after" || name == "arbiter") {
			return fmt.Errorf("-%s: an unprotected guest has no other side", name)
		}
	}
	switch {
	case o.mode == modePrimary && o.peer == "":
		return errors.New("a primary needs -peer")
	case o.mode == modeSecondary && o.on == "":
		return errors.New("a secondary needs -listen")
	case o.mode != modeSecondary && o.kernel == "":
		return fmt.Errorf("%s needs -kernel", o.mode)
	case o.mem%(1<<20) != 0 || o.mem < 32<<20 || o.mem > maxMemory:
		return fmt.Errorf("-mem %v: want whole megabytes, %v to %v", size(o.mem), size(32<<20), size(maxMemory))
	case o.vcpus < 1 || o.vcpus > maxVCPUs:
		return fmt.Errorf("-vcpus %d: want 1 to %d", o.vcpus, maxVCPUs)
	case len(o.tap) > 15:
		return fmt.Errorf("-tap %s: the name of an interface has at most 15 letters", o.tap)
	case o.interval <= 0:
		return fmt.Errorf("-interval %v: want more than 0", o.interval)
	case o.atLeast < 0 || o.atLeast > o.interval:
		return fmt.Errorf("-min-interval %v: want 0 to -interval, %v", o.atLeast, o.interval)
	case o.beat <= 0 || o.lost <= o.beat:
		return fmt.Errorf("-beat %v -lost-after %v: want more than 0, and more than that", o.beat, o.lost)
	case o.patience <= o.atLeast:
		return fmt.Errorf("-checkpoint-timeout %v: want more than -min-interval, %v", o.patience, o.atLeast)
	case o.journal != "" && o.disk == "":
		return errors.New("-journal without -disk")
	case o.overlay < 1<<20:
		return fmt.Errorf("-overlay %v: want at least %v", size(o.overlay), size(1<<20))
	case o.progress < 0:
		return fmt.Errorf("-progress %v: want 0 or more", o.progress)
	}
	return nil
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
	digits := strings.ToUpper(v)
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
