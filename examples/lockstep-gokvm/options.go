package main

import (
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"strings"
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/colo/protect/control"
	"github.com/gocolo/lockstep/examples/internal/arbiter"
	"github.com/gocolo/lockstep/failover"
	"github.com/gocolo/lockstep/internal/cli"
)

// The modes.
const (
	modeBoot      = "boot"
	modePrimary   = "primary"
	modeSecondary = "secondary"
	modeMigrate   = "migrate"
	modeReceive   = "receive"
)

const about = `Lockstep-gokvm runs a Linux guest on KVM, alone or protected by a second host.

  lockstep-gokvm boot -kernel bzImage [-initrd FILE] [-append ARGS] [-disk FILE] [-tap NAME]
  lockstep-gokvm secondary -listen ADDR -peer ADDR ...              on host B
  lockstep-gokvm primary   -listen ADDR -peer ADDR -kernel FILE ... on host A, which starts the guest
  lockstep-gokvm receive -listen ADDR ...                           on host B: no protection, but
  lockstep-gokvm migrate -peer ADDR -kernel FILE ...                a guest of host A that can move there

It needs Linux on amd64, /dev/kvm, and for -tap the right to use TAP interfaces.

Two hosts, with a private network between them (10.0.0.1 and .2, say) and the
guest's on a bridge br0 of each; the certificates are for the names "a" and "b":

  both# ip tuntap add tap0 mode tap && ip link set tap0 master br0 up
  both# truncate -s 1G disk.img         # host A's is the guest's disk
  B# lockstep-gokvm secondary -listen 10.0.0.2:7654 -peer 10.0.0.1:7654 -peer-name a \
       -cert b.pem -key b.key -ca ca.pem -mem 512M -vcpus 2 -disk disk.img -tap tap0
  A# lockstep-gokvm primary   -listen 10.0.0.1:7654 -peer 10.0.0.2:7654 -peer-name b \
       -cert a.pem -key a.key -ca ca.pem -mem 512M -vcpus 2 -disk disk.img -tap tap0 \
       -kernel vmlinuz -initrd initrd.img -append "console=ttyS0 root=/dev/vda"

The guest boots, and host B's copy of memory and disk is made meanwhile.
From the line "protected" on either host may die, and the guest goes on on the
other one. Start the dead one again, as a secondary, and it is protected again:
the two change their sides any number of times. SIGUSR2, Ctrl-A s, or job-complete
of -qmp hands the guest over to the other host; so does the end of the program by
a signal where the guest is protected. When the guest switches itself off, both
sides end. The console is where the guest runs; Ctrl-A x ends it, Ctrl-A h lists
more keys. What the guest says there is shown at once, and waits for no checkpoint:
after a takeover some of it may be missing, or come twice. The command block_resize of
-qmp, with {"device": "disk", "size": BYTES}, makes the disk of both hosts longer while the
guest runs, and tells the guest ("grown").

Who goes on? A host that has not heard the other one for -lost-after waits until that
one may not act for the guest any more (-term), and takes the guest. If both live, and
only the network between them is cut, both would take it. So that one of them does,
-arbiter names a place that both reach: file:DIR, a directory (what is above it must be
there); etcd:HOST:PORT,..., an etcd cluster, by the program lockstep-etcd, which is
beside this one or on the PATH, and the key /lockstep/NAME; store:COMMAND, another
program that keeps the record. Or -arbiter-command is a command that says yes (exit
status 0) to one host only. Each question has a $LOCKSTEP_GENERATION of its own. A
command that was ended before it answered may be asked again by the same host,
$LOCKSTEP_HOST, and must then answer the same. One that is killed by a signal, exits
with 126, 127 or more, or takes longer than a minute has not answered. One whose host is
killed goes on to its end, so that it is not cut off while it fences the other one; what
it says then nobody hears, and that host, started again, may ask it once more. Without
an arbiter two hosts that were parted both run the guest, and still do when the network
is whole again: each says "split". What the two guests have done since cannot be put
together. A person ends one host, and starts it again with a new image: with the old one
it may be refused. A host that says anything at all, even something that cannot be
understood, counts as alive, and keeps the guest.

Who starts it? A primary, or a host with -kernel that has been the guest's, asks the
other one first, for as long as it takes: that may run the guest, or have the newer
disk. "undecided" says what it waits for. A primary whose image file no guest has
ever used does not wait for a host that is not heard. If the other host is dead, or
has never had this guest and will not come up, -start says so. With two that would
start the guest from disks equally new, the one whose -host sorts first goes first.
A host whose disk is older than the other's, or new, is refused, unless with -start.

Ctrl-A w, where -save names a file, or protection-save of -qmp, saves the guest: it
ends here, in the file. A primary with -resume in place of -kernel goes on with it,
once, from the disk as it was left. With -lazy it runs before its memory has been read,
however large that is: what is read first is what the guest touches. It is protected when
all has been read; the host needs the right to use userfaultfd. If the file cannot
be read then, the guest stands still, and is lost.
A guest that was granted to this host, but could not be run ("start the guest"), is as the
file has it, and is refused all the same, as one that has gone on: "the disks here are of
generation 2, the guest of generation 1". If it surely has not run, -resume-generation 2
says so; if it has, its disk is no more that of the file, and is spoilt by it.

If a guest switches itself off while its secondary cannot be told, the secondary may
take over and go on from its last checkpoint.

A host of an earlier version of this program, without -offload, can be followed by one of
this version with -offload=false, and can never follow it. Upgrade the secondary first,
hand the guest over to it, and upgrade the other one. Both hosts, and so the guest, are
started anew to have -offload.

Nobody protects a guest of lockstep-gokvm migrate. SIGUSR2, or Ctrl-A s, moves it while it runs
to the host of -peer, where lockstep-gokvm receive waits for it with the same -name, -mem, -vcpus
and -tap; a receive that has a -peer too can move it on. The guest stands still for a
moment at the end. A -disk is storage that both hosts reach, such as a file on a network's file
system: the host that has the guest holds its lock. (A guest with a disk on each host
moves between a primary and a secondary.) If the connection breaks while the guest
still runs on A, it stays there; later, the two ask each other who has it, and it
stands still until that is known. With -postcopy the guest goes after one pass over its
memory, and the rest follows: it stands still for less, however large it is and however
much it writes. But until the rest has come it needs both hosts, and is lost if one of
them dies; connections may break. B waits for A then, for -give-up at most, or 5 seconds
after an order to end; A calls B, and Ctrl-A g there, if B is dead, lets the guest go
on from where it stood still. B needs the right to use userfaultfd.

With -insecure in place of -cert, -key and -ca the connections are plain, and whoever
reaches the port can read and replace the guest. Without -listen, or -peer, a host
cannot be followed by the other after its first failover.

It exits with 0 when the guest has ended or the other side has it, with 1 if
something failed, and with 2 for a bad command line.

`

// options has the command line.
type options struct {
	hw   hardware
	mode string
	name string // the guest's
	host string // this host's name
	peer string // address of the other host; "": this one is only reached
	on   string // address to listen on; "": this one only reaches

	cert, key, ca, peerName string
	insecure                bool
	handles                 *control.Handles

	kernel, initrd, append string
	save, resume           string
	lazy                   bool   // the guest of resume runs before its memory is read
	resumeAt               uint64 // the generation in which it was granted, and has not run; 0: none
	postcopy               bool
	maxDowntime            time.Duration
	giveUp                 time.Duration // how long a guest waits for the other host in postcopy; 0: for ever
	sharedDisk             bool          // -disk is the same storage on both hosts, whatever its lock says
	mem                    uint64        // size of the guest's memory in bytes
	vcpus                  int
	disk                   string
	tap                    string
	offload                bool // the tap leaves checksums and segmentation to the guest's card
	mac                    [6]byte

	journal    string
	overlay    uint64 // size that an overlay may grow to, in bytes
	interval   time.Duration
	atLeast    time.Duration
	continuous bool
	lateResume bool
	beat, lost time.Duration
	patience   time.Duration // how long a checkpoint may take
	term       time.Duration
	arbiter    string
	place      string // of -arbiter, unless it is a command: where the record is
	command    string // of -arbiter, or -arbiter-command
	anyway     bool   // -start: a start without the other host's answer
	json       bool
	progress   time.Duration
}

// maxMemory is the most memory of gokvm's machine: it ends below the hole for devices.
const maxMemory = 3 << 30

// parseOptions reads the command line. Help is printed where it is asked for (flag.ErrHelp);
// any other error says what is wrong.
func parseOptions(args []string, help io.Writer) (options, error) {
	o := options{hw: thisHost}
	mem, overlay := cli.Bytes(512<<20), cli.Bytes(256<<20)
	mac := "52:54:00:12:34:56"
	f := flag.NewFlagSet("lockstep-gokvm", flag.ContinueOnError)
	f.StringVar(&o.on, "listen", "", "`address` at which the other host reaches this one")
	f.StringVar(&o.peer, "peer", "", "`address` at which the other host is reached")
	f.StringVar(&o.name, "name", "guest", "the guest's `name`, the same on both hosts")
	f.StringVar(&o.host, "host", "", "this host's `name`, for people (default the system's, and some letters)")
	f.StringVar(&o.cert, "cert", "", "this host's certificate, a PEM `file`")
	f.StringVar(&o.key, "key", "", "key of -cert, a PEM `file`")
	f.StringVar(&o.ca, "ca", "", "certificates of the authorities that sign the hosts', a PEM `file`")
	f.StringVar(&o.peerName, "peer-name", "", "`name` that the other host's certificate is for (default that of -peer)")
	f.BoolVar(&o.insecure, "insecure", false, "no TLS: whoever reaches the port can read and replace the guest")
	f.StringVar(&o.kernel, "kernel", "", "Linux kernel, a bzImage `file`; a secondary needs none")
	f.StringVar(&o.initrd, "initrd", "", "initial RAM disk, a `file`")
	f.StringVar(&o.append, "append", "console=ttyS0", "the kernel's `arguments`")
	f.StringVar(&o.save, "save", "", "a new `file` that Ctrl-A w saves the guest to")
	f.StringVar(&o.resume, "resume", "", "saved guest that a primary goes on with, a `file`")
	f.Uint64Var(&o.resumeAt, "resume-generation", 0, "go on with the guest of -resume that was granted the generation `N` here already, and could not be run")
	f.BoolVar(&o.lazy, "lazy", false, "run the guest of -resume at once: its memory is read from the file as the guest touches it, and the rest in the background; the file must stay as it is until the line loaded")
	f.Var(&mem, "mem", "`size` of the guest's memory, with K, M or G")
	f.IntVar(&o.vcpus, "vcpus", 1, "`number` of the guest's CPUs")
	f.StringVar(&o.disk, "disk", "", "raw image or block device, a `file`: the guest's /dev/vda")
	f.StringVar(&o.tap, "tap", "", "`name` of the TAP interface for the guest's network card")
	f.BoolVar(&o.offload, "offload", true, "the guest's network card and -tap leave checksums and the segmentation of TCP to each other; the same on both hosts")
	f.StringVar(&mac, "mac", mac, "`address` of the guest's network card")
	f.StringVar(&o.journal, "journal", "", "as a secondary, keep the disk's overlays in the files `base`.hidden and .active, so that the disk survives a crash of this host")
	f.Var(&overlay, "overlay", "`size` that each overlay of the disk may grow to between checkpoints")
	f.DurationVar(&o.interval, "interval", time.Second, "`time` from one checkpoint to the next, if nothing asks earlier")
	f.DurationVar(&o.atLeast, "min-interval", 20*time.Millisecond, "no checkpoint because the guests differ sooner than this `time` after the last one")
	f.BoolVar(&o.continuous, "continuous", false, "compare nothing, hold all output until its checkpoint; the same on both hosts")
	f.BoolVar(&o.lateResume, "late-resume", false, "stand still until the checkpoint is complete, as QEMU does")
	f.DurationVar(&o.beat, "beat", 200*time.Millisecond, "`time` between two signs of life")
	f.DurationVar(&o.lost, "lost-after", 2*time.Second, "`time` without a sign of life after which the other side is lost")
	f.DurationVar(&o.patience, "checkpoint-timeout", colo.DefaultCheckpointTimeout, "`time` that a checkpoint, and the output that waits for it, may take before the secondary is given up")
	f.DurationVar(&o.term, "term", 0, "`time` for which a host may act for the guest until it must have heard again that it may (default 1.5 times -lost-after)")
	f.StringVar(&o.arbiter, "arbiter", "", "`PLACE` that both hosts reach, which decides who goes on, the same on both: "+arbiter.Forms+"; anything else is an -arbiter-command")
	f.StringVar(&o.command, "arbiter-command", "", "`command` that is run (sh -c) before this side goes on alone, and must succeed; $LOCKSTEP_HOST, $LOCKSTEP_MODE, $LOCKSTEP_EPOCH, $LOCKSTEP_GENERATION and $LOCKSTEP_CAUSE say what it is about")
	f.BoolVar(&o.anyway, "start", false, "start the guest although the other host is not heard, or has a later copy: your word that it is dead, or has nothing that is wanted; for one start, never for a unit file")
	f.BoolVar(&o.json, "json", false, "events and figures as JSON lines on standard output, the console on standard error")
	f.DurationVar(&o.progress, "progress", 10*time.Second, "`time` between two lines of progress where the console is no terminal; 0 for none")

	f.BoolVar(&o.postcopy, "postcopy", false, "the guest moves before its memory does, if that is too much for -max-downtime")
	f.DurationVar(&o.giveUp, "give-up", 0, "`time` that a guest waits for the host that has the rest of its memory, once the connection is broken; then the guest is lost. 0: for as long as it takes")
	f.DurationVar(&o.maxDowntime, "max-downtime", 300*time.Millisecond, "`time` in which the rest of a guest's memory can be sent when the guest is stopped to be moved")
	f.BoolVar(&o.sharedDisk, "shared-disk", false, "your word that -disk is the storage of the guest that arrives, where the lock of one host is not met by the other; for receive")

	o.handles = control.Flags(f)

	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		o.mode, args = args[0], args[1:]
	}
	if err := cli.Parse(f, about, args, help); err != nil {
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
	if o.term == 0 {
		o.term = o.lost + o.lost/2
	}
	if o.host == "" {
		o.host = someName()
	}
	if o.peerName == "" && o.cert != "" {
		o.peerName, _, _ = net.SplitHostPort(o.peer)
	}
	given := make(map[string]bool)
	f.Visit(func(f *flag.Flag) { given[f.Name] = true })
	return o, o.validate(given)
}

// someName makes a name for a host that was given none. It differs from that of the other
// host, also where both are processes of one machine.
func someName() string {
	name, err := os.Hostname()
	if err != nil {
		name = "host"
	}
	return name + "-" + rand.Text()[:6]
}

// ofPairs are the flags that mean nothing to an unprotected guest.
var ofPairs = strings.Fields(`listen peer name host cert key ca peer-name insecure journal overlay interval min-interval
	continuous late-resume beat lost-after checkpoint-timeout term arbiter arbiter-command start save resume resume-generation lazy qmp http http-control`)

// ofPairsOnly are the flags of ofPairs that mean nothing to a guest that moves.
var ofPairsOnly = strings.Fields(`journal overlay interval min-interval continuous late-resume beat lost-after
	checkpoint-timeout term arbiter arbiter-command start save resume resume-generation lazy qmp http http-control host`)

// ofAnotherKind matches what looks like a place that both hosts reach, such as nfs:/a, and is none.
var ofAnotherKind = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9+.-]*:`)

// checkAddress returns an error unless an address, if there is one, has a port and, except to
// listen, a host. The host may not be known yet.
func checkAddress(address string, listen bool) error {
	if address == "" {
		return nil
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil || host == "" && !listen {
		return errors.New("want HOST:PORT")
	}
	if n, err := net.LookupPort("tcp", port); err != nil || n == 0 && !listen {
		return fmt.Errorf("want HOST:PORT, and %q is no port", port)
	}
	return nil
}

// maxVCPUs is somewhat more than the number of CPUs that this program was tried with.
const maxVCPUs = 8

func (o *options) validate(given map[string]bool) error {
	switch o.mode {
	case modeBoot, modePrimary, modeSecondary, modeMigrate, modeReceive:
	case "":
		return errors.New("want boot, primary or secondary, migrate or receive")
	default:
		return fmt.Errorf("%s: want boot, primary or secondary, migrate or receive", o.mode)
	}
	moves := o.mode == modeMigrate || o.mode == modeReceive
	for _, name := range ofPairsOnly {
		if moves && given[name] {
			return fmt.Errorf("-%s: nobody protects a guest of %s", name, o.mode)
		}
	}
	for _, name := range []string{"postcopy", "max-downtime", "give-up", "shared-disk"} {
		if given[name] && !moves {
			return fmt.Errorf("-%s is for migrate and receive", name)
		}
	}
	if err := o.handles.Validate(); err != nil {
		return err
	}
	for _, name := range ofPairs {
		if o.mode == modeBoot && given[name] {
			return fmt.Errorf("-%s: an unprotected guest has none; primary and secondary do", name)
		}
	}
	for _, name := range []string{"initrd", "append", "start"} {
		if given[name] && o.kernel == "" && (o.mode == modeSecondary || o.mode == modeReceive) {
			return fmt.Errorf("-%s without -kernel", name)
		}
	}
	if o.arbiter != "" && o.command != "" {
		return errors.New("-arbiter and -arbiter-command: want one of them")
	}
	switch {
	case arbiter.Named(o.arbiter):
		o.place = o.arbiter
	case ofAnotherKind.MatchString(o.arbiter):
		return fmt.Errorf("-arbiter %q: want %s; a command that begins so is an -arbiter-command", o.arbiter, arbiter.Forms)
	case o.arbiter != "":
		o.command = o.arbiter
	}
	for name, address := range map[string]string{"listen": o.on, "peer": o.peer} {
		if err := checkAddress(address, name == "listen"); err != nil {
			return fmt.Errorf("-%s %s: %w", name, address, err)
		}
	}
	switch {
	case o.name == "" || len(o.name) > failover.MaxName:
		return fmt.Errorf("-name: want 1 to %d bytes", failover.MaxName)
	case len(o.host) > failover.MaxName:
		return fmt.Errorf("-host: want at most %d bytes", failover.MaxName)
	case o.peer != "" && o.peer == o.on:
		return fmt.Errorf("-peer %s: want the address of the other host, and that is the one of -listen", o.peer)
	case o.mode == modePrimary && o.peer == "":
		return errors.New("a primary needs -peer")
	case o.mode == modeMigrate && o.peer == "":
		return errors.New("migrate needs -peer")
	case o.mode == modeMigrate && o.on != "":
		return errors.New("-listen is for receive")
	case o.giveUp < 0:
		return fmt.Errorf("-give-up %v: want 0 or more", o.giveUp)
	case o.maxDowntime <= 0:
		return fmt.Errorf("-max-downtime %v: want more than 0", o.maxDowntime)
	case o.mode == modeReceive && o.on == "":
		return errors.New("receive needs -listen")
	case o.mode == modeReceive && o.kernel != "":
		return errors.New("-kernel: the guest of receive comes from another host")
	case o.mode == modeSecondary && o.on == "":
		return errors.New("a secondary needs -listen")
	case o.resume != "" && o.mode != modePrimary:
		return errors.New("-resume is a primary's")
	case o.lazy && o.resume == "":
		return errors.New("-lazy without -resume")
	case o.resumeAt > 0 && o.resume == "":
		return errors.New("-resume-generation without -resume")
	case o.resumeAt > 0 && o.lazy:
		return errors.New("-resume-generation and -lazy: without -lazy the guest goes on")
	case o.resume != "" && o.kernel != "":
		return errors.New("-resume and -kernel: want one of them")
	case o.mode != modeSecondary && o.mode != modeReceive && o.kernel == "" && o.resume == "":
		return fmt.Errorf("%s needs -kernel", o.mode)
	case o.mem%(1<<20) != 0 || o.mem < 32<<20 || o.mem > maxMemory:
		return fmt.Errorf("-mem %v: want whole megabytes, %v to %v", cli.Bytes(o.mem), cli.Bytes(32<<20), cli.Bytes(maxMemory))
	case o.vcpus < 1 || o.vcpus > maxVCPUs:
		return fmt.Errorf("-vcpus %d: want 1 to %d", o.vcpus, maxVCPUs)
	case len(o.tap) > 15:
		return fmt.Errorf("-tap %s: the name of an interface has at most 15 letters", o.tap)
	case o.interval <= 0:
		return fmt.Errorf("-interval %v: want more than 0", o.interval)
	case o.atLeast < 0 || o.atLeast > o.interval:
		return fmt.Errorf("-min-interval %v: want 0 to -interval, %v", o.atLeast, o.interval)
	case o.beat <= 0 || o.lost < 2*o.beat:
		return fmt.Errorf("-beat %v -lost-after %v: want more than 0, and at least twice that", o.beat, o.lost)
	case o.term < failover.MinTerm:
		return fmt.Errorf("-term %v: want at least %v", o.term, failover.MinTerm)
	case o.place != "" && strings.HasSuffix(o.place, ":"):
		return fmt.Errorf("-arbiter %q: want %s", o.place, arbiter.Forms)
	case (o.cert != "" || o.key != "" || o.ca != "") && (o.cert == "" || o.key == "" || o.ca == ""):
		return errors.New("-cert, -key and -ca belong together")
	case o.cert != "" && o.insecure:
		return errors.New("-cert and -insecure contradict each other")
	case o.insecure && o.peerName != "":
		return errors.New("-peer-name and -insecure contradict each other: without certificates nobody's name is known")
	case o.cert != "" && o.peerName == "":
		return errors.New("-cert needs -peer-name, or -peer")
	case o.patience <= max(o.atLeast, colo.DefaultMaxDowntime):
		return fmt.Errorf("-checkpoint-timeout %v: want more than -min-interval, %v, and %v", o.patience, o.atLeast, colo.DefaultMaxDowntime)
	case o.journal != "" && o.disk == "":
		return errors.New("-journal without -disk")
	case o.overlay < 1<<20:
		return fmt.Errorf("-overlay %v: want at least %v", cli.Bytes(o.overlay), cli.Bytes(1<<20))
	case o.progress < 0:
		return fmt.Errorf("-progress %v: want 0 or more", o.progress)
	case o.mode != modeBoot && o.cert == "" && !o.insecure:
		return errors.New("want -cert, -key and -ca, or -insecure: without them whoever reaches the port can read and replace the guest")
	}
	return nil
}
