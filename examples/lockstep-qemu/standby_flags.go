package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/gocolo/lockstep/colo"
)

const aboutStandby = `usage: lockstep-qemu standby -listen ADDR -state DIR [flags] [-- qemu-system-x86_64 ...]

Standby is a secondary for a QEMU primary that runs no guest: it keeps the
primary's memory and device state, checkpoint by checkpoint, whatever the devices
are. It costs the guest's memory and the largest checkpoint, and no processor.

When the primary is lost, the guest is brought back from the last whole
checkpoint: the QEMU after -- is started with it, with -incoming and a monitor
(DIR/qmp) added; it must have the machine and devices of the primary's. Without
one, the state is left in DIR/guest, to be used as

    qemu-system-x86_64 ... -incoming "exec:cat DIR/guest"

Who decides that the primary is lost: a guardian on its host ("lockstep-qemu protect -stay"),
which connects to -control and knows a crash from a planned end and from a guest
that runs on without this standby. Where it does not answer: the -arbiter, then a
-fence that makes sure, for which it has a minute. Where there is none of these, you
decide: the standby keeps the checkpoint, says so and waits for
"lockstep-qemu promote -standby DIR", or SIGUSR1. With -takeover always, the primary counts as dead as soon as its connection is closed. But
it is closed as well when the primary's operator quits it or gives it
x-colo-lost-heartbeat, or when the network resets it: two guests may run then.

A large guest that uses all its memory takes seconds to be brought back. With
-postcopy it runs at once, and waits for memory as it touches it; the QEMU needs the
right to use userfaultfd, and its memory must be its own (no shared file).

The guest is in this process's memory and nowhere else until it is in a QEMU or in
DIR/guest. Where neither is possible, it is held until "lockstep-qemu promote" names another
-state or another QEMU. -reserve takes the space for DIR/guest beforehand. With
-keep, a standby that was killed and is started again offers the last checkpoint
that it has kept.

SIGINT and SIGTERM end the standby and leave the state in DIR/guest. A
connection that does not begin a migration is reported and holds nobody up, nor does one
that begins as a QEMU does and then stops.

On the primary (or: lockstep-qemu protect -qmp ADDR -to ADDR):
    migrate_set_capability x-colo on, return-path off; migrate -d tcp:HOST:PORT

Disks. Memory and devices are all that a QEMU sends. With -nbd and -disk NAME=FILE
the standby also keeps a disk: FILE, of the same size, is written by the
primary as the NBD export NAME, and put back to the last checkpoint when the
primary is lost; the QEMU after -- then uses it (-drive file=FILE,format=raw). On the
primary, "lockstep-qemu protect -nbd ADDR -disk DEVICE=NAME" copies the disk and mirrors every
write; or its disk is in a quorum from the start, as in QEMU's docs/COLO-FT.txt,
with a replication node whose file is this export. The primary must be connected
to the export when it migrates, and stay so: if it stops writing, no further
checkpoint counts and protection ends. What a checkpoint replaces on the disk is kept in memory, at
most 256 MB; a standby that is killed leaves FILE with the primary's newest writes,
to be copied anew.

Afterwards the guest's QEMU is the standby's child, with its monitor at DIR/qmp, and
can be protected again: "lockstep-qemu protect -stay -qmp DIR/qmp -to ADDR", by a standby
elsewhere.

Exit status:
  0  the guest was brought back and its QEMU has ended in order; or, without a
     QEMU, the primary is lost and the guest is in DIR/guest; or the primary's guest
     has ended as it was meant to
  1  something failed; if the state could be saved, it is in DIR/guest
  2  wrong arguments
  3  the primary is lost to the standby and its guest goes on, or may do so: the
     guest was not started, and is in DIR/guest
  4  interrupted; the guest, if there was one, is in DIR/guest
  5  the guest's QEMU has failed: before the guest was loaded, and it is in
     DIR/guest, or later
As a service: Restart=on-failure with RestartPreventExitStatus=3 5, for these want
somebody to look; the arguments may stay the same, also unix sockets.
`

// standbyOptions has the command line of standby or relay.
type standbyOptions struct {
	listen, state string
	keep          int
	json          bool
	fence         string
	tls           string
	peer, idle    time.Duration
	maxRAM        uint64 // the most memory of a guest that is taken, in MB
	images        []diskFlag
	nbd           string
	qemu          []string

	takeover string // ask or always
	arbiter  string
	control  string
	insecure bool
	holder   string // this host's name
	reserve  bool
	rehearse bool
	postcopy bool
	http     string
	log      logLevel

	slow time.Duration // 0: defaultSlow
}

// slowness returns how long a QEMU may get no further before that is told.
func (o *standbyOptions) slowness() time.Duration {
	if o.slow > 0 {
		return o.slow
	}
	return defaultSlow
}

func (o *standbyOptions) flags(f *flag.FlagSet) {
	f.StringVar(&o.listen, "listen", "", "take the primary at `ADDR`")
	f.StringVar(&o.state, "state", "", "leave the guest, and its QEMU's monitor, in `DIR`")
	f.IntVar(&o.keep, "keep", 0, "keep the last `N` checkpoints in DIR, each a whole stream; the next one waits until it is written")
	f.BoolVar(&o.json, "json", false, "print events as JSON lines")
	f.StringVar(&o.fence, "fence", "", "run the shell `COMMAND` before going on: it succeeds when the primary surely does not run any more")
	f.StringVar(&o.takeover, "takeover", "ask", "let `WHO` decide where the primary is lost and there is no guardian, -arbiter or -fence: ask, you do, by \"lockstep-qemu promote\"; always, nobody does, and the primary counts as dead as soon as its connection is closed")
	f.StringVar(&o.arbiter, "arbiter", "", "let `PLACE` decide who goes on: file:DIR, a directory of this guest's that both hosts reach, or store:COMMAND, a program that keeps the record")
	f.StringVar(&o.control, "control", "", "take the primary's guardian (protect -stay) at `ADDR`; then this standby keeps guest after guest")
	f.BoolVar(&o.insecure, "insecure", false, "take a guardian without TLS: whoever reaches it can have the guest forgotten or started")
	f.BoolVar(&o.reserve, "reserve", false, "reserve the space that the guest may need in -state, as soon as it is protected")
	pageFlag(f, &o.http, "serve how it stands")
	f.BoolVar(&o.postcopy, "postcopy", false, "let the QEMU after -- run the guest before it has its memory, which follows: soon however large that is, and lost if this process ends before all of it is there")
	f.BoolVar(&o.rehearse, "rehearse", false, "after the first checkpoint, try the QEMU after -- with it, paused, and end it again: see \"lockstep-qemu rehearse -h\"")
	f.StringVar(&o.holder, "holder", hostName(), "call this host `NAME` at the arbiter")
	f.StringVar(&o.tls, "tls", "", "take only whom the certificates in `DIR` let in (TLS), named as for QEMU's tls-creds-x509: ca-cert.pem, server-cert.pem, server-key.pem")
	f.Var(&o.log, "log", "log sessions and the disks' clients to stderr, from `LEVEL` up: debug (each step), info, warn, error; as key=value, or as JSON lines with -json")
	f.DurationVar(&o.peer, "peer-timeout", colo.DefaultPeerTimeout, "give up a primary that makes no progress in a checkpoint, or whose host does not answer, for so long")
	f.DurationVar(&o.idle, "idle-timeout", 5*time.Minute, "give up a primary that begins no checkpoint for so long; more than its x-checkpoint-delay")
	f.Func("disk", "for `NAME=FILE`: keep a disk of the primary's guest in FILE, to which it is copied over -nbd as the export NAME; may be given more than once", func(s string) error {
		d, err := parseDisk(s)
		o.images = append(o.images, d)
		return err
	})
	f.StringVar(&o.nbd, "nbd", "", "take the primary's disk writes at `ADDR`")
	f.Uint64Var(&o.maxRAM, "max-ram", 0, "take no guest of more than so many `MB`")
}

func (o *standbyOptions) check() error {
	switch {
	case o.listen == "":
		return errors.New("-listen is missing")
	case o.state == "":
		return errors.New("-state is missing")
	case o.keep < 0:
		return errors.New("-keep cannot be negative")
	case len(o.images) > 0 && o.nbd == "" || len(o.images) == 0 && o.nbd != "":
		return errors.New("-disk and -nbd belong together")
	case len(o.images) > 0 && o.keep > 0:
		return errors.New("-keep keeps no disks, and what it keeps is of no use without them")
	case o.takeover != "ask" && o.takeover != "always":
		return fmt.Errorf("-takeover %s: it is ask or always", o.takeover)
	case o.takeover == "always" && o.arbiter != "":
		return errors.New("-takeover always and -arbiter: one of them decides")
	case o.postcopy && len(o.qemu) == 0:
		return errors.New("-postcopy is of the QEMU after --, and there is none")
	case o.rehearse && len(o.qemu) == 0:
		return errors.New("-rehearse is of the QEMU after --, and there is none")
	case o.tls != "" && o.insecure:
		return errors.New("-tls and -insecure contradict each other")
	case portless(o.listen):
		return fmt.Errorf("-listen %s: the port is missing (HOST:PORT, or unix:PATH)", o.listen)
	case portless(o.control):
		return fmt.Errorf("-control %s: the port is missing (HOST:PORT, or unix:PATH)", o.control)
	case portless(o.nbd):
		return fmt.Errorf("-nbd %s: the port is missing (HOST:PORT, or unix:PATH)", o.nbd)
	case o.control != "" && o.tls == "" && !o.insecure:
		return errors.New("-control wants -tls, or -insecure by name")
	}
	if err := checkState(o.state); err != nil {
		return err
	}
	if err := checkArbiter(o.arbiter); err != nil {
		return err
	}
	return checkQEMU(o.qemu)
}

// checkState refuses a directory for the state in which sockets cannot be named: a comma ends the address of one, for
// QEMU too, whose monitor would be there when the guest is brought back.
func checkState(dir string) error {
	if strings.Contains(dir, ",") {
		return fmt.Errorf("-state %s: there may be no comma in it, which ends the address of a socket", dir)
	}
	return nil
}

func hostName() string {
	name, err := os.Hostname()
	if err != nil || name == "" {
		return "unnamed"
	}
	return name
}
