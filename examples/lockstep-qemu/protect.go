package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/gocolo/lockstep/colo/standby"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/event/qmp"
)

const aboutProtect = `usage: lockstep-qemu protect -qmp ADDR -to ADDR [flags]

Protect makes a running QEMU the primary of the secondary, standby or relay that
listens at -to: it checks as "lockstep-qemu check" does, sets capabilities and parameters,
starts, and returns when the guest is protected. If that fails, the guest runs on
as before.

A disk is copied to a standby with -disk DEVICE=NAME, DEVICE being its name in
QEMU ("lockstep-qemu check" lists them) and NAME what the standby calls it, while the guest
runs (QMP blockdev-mirror); from then on a write is done when both sides have it.
If the standby is lost, the guest writes on; QEMU tries to copy each write until
the copy is given up, which -stay does, and protect does first of all.

What the guest sends between two checkpoints leaves at once, and is not known to a
guest that is brought back. A QEMU that has a colo-compare without a second guest holds it
instead, as this program's README has it: protect turns its filter-redirector on
when the guest is protected, and -stay off when the guest runs on alone.

With -stay it stays with the guest as its guardian, and holds the monitor:

  - A guest that is lost to its standby, or that stands for -stall without its
    checkpoint getting on, is told to run on unprotected (x-colo-lost-heartbeat),
    once the -arbiter has agreed, if there is one; it is protected again as soon as
    the standby is back.
  - SHUTDOWN, whatever the reason, is a planned end, and the standby is told so over
    -control. A process that ends without it has died: the standby goes on.
  - A guest that an operator has stopped stays so; QEMU itself has it run again at
    the next checkpoint.
  - A standby that has gone on, or is promoted, has the guest: the one here is
    stopped, and stopped again.
  - A QEMU that hangs may go on, so nothing is decided. With -fence, a command that
    ends it is run after -fence-after, and once it has ended the standby goes on.
  - With an -arbiter, a guest that is protected runs only while this host has been
    heard of there within -term, or has its standby's word: its standby may have
    the guest afterwards. So a guardian that is gone must be back within -term.

Without -stay nobody does any of this: a QEMU whose standby is lost in a checkpoint
keeps its guest standing, and a planned end looks like a death to the standby.

Exit status: 0 protected; with -stay, the guest has ended as it was meant to. 1 not
protected; with -stay, something failed. 2 wrong arguments. 3 the standby has the guest,
and the one here was stopped. 4 interrupted; the guest goes on. 5 its process has
died, and the standby knows.
`

// protectOptions has the command line of protect, and hooks that its guardian sets.
type protectOptions struct {
	qmp, to   string
	json      bool
	delay     time.Duration
	timeout   time.Duration
	bandwidth uint64 // MB/s
	xbzrle    bool
	pause     bool
	tlsCreds  string
	tlsHost   string
	nbd       string
	disks     []mirrored

	stay       bool
	control    string
	controlTLS string
	insecure   bool
	arbiter    string
	holder     string
	term       time.Duration
	stall      time.Duration
	silence    time.Duration
	fence      string
	fenceAfter time.Duration
	state      string
	http       string

	slow   time.Duration // 0: defaultSlow
	minded *once         // which warnings ("mind") were printed; nil: all are
	// exited, if set, says whether COLO_EXIT has come since migrate; whoever sets
	// it takes the monitor's events.
	exited func() bool
	// expectStop, if set, is called before the guest is stopped for a moment, and the function
	// that it returns when the guest was told to run again.
	expectStop func() (over func())
	// begins, if set, is called before this process asks whether the guest runs. permit is then
	// called for each cont: it calls cont unless somebody else has stopped the guest since begins.
	begins func()
	permit func(cont func() error) error
	// current, if set, is the monitor to use; it may be another one when that was lost.
	current func() *qmp.Client
	// giveUp, if set, is asked before a guest that could not be protected is told
	// to run on.
	giveUp func(cause error) error
}

func protectCommand(ctx context.Context, args []string, t terminal) int {
	var o protectOptions
	f := flag.NewFlagSet("protect", flag.ContinueOnError)
	f.StringVar(&o.qmp, "qmp", "", "ask and order the QEMU over its monitor at `ADDR`")
	f.StringVar(&o.to, "to", "", "send the guest to the secondary, standby or relay at `ADDR`")
	f.BoolVar(&o.json, "json", false, "print JSON lines in place of words")
	f.DurationVar(&o.delay, "delay", time.Second, "take a checkpoint every so long (x-checkpoint-delay): what is lost at most")
	f.DurationVar(&o.timeout, "timeout", 10*time.Minute, "give up if the guest is not protected after so long")
	f.Uint64Var(&o.bandwidth, "bandwidth", 0, "send the initial migration at no more than `MB/s`; 0 leaves QEMU's own limit")
	f.BoolVar(&o.xbzrle, "xbzrle", false, "send the differences of pages (xbzrle), where the link is slow")
	f.BoolVar(&o.pause, "pause", false, "pause the guest for the initial migration, when it dirties memory too fast for it to end")
	f.StringVar(&o.tlsCreds, "tls-creds", "", "encrypt the migration and the disks with the QEMU's tls-creds-x509 object `ID`, which has endpoint=client")
	f.StringVar(&o.tlsHost, "tls-hostname", "", "expect `NAME` in the secondary's certificate, where it is not that of -to")
	f.StringVar(&o.nbd, "nbd", "", "write the copies of the disks to the standby's -nbd at `ADDR`")
	f.Func("disk", "copy a disk, which `DEVICE=NAME` names, to the standby, too, so that it is as old as the guest; may be given more than once", func(s string) error {
		d, err := parseMirrored(s)
		o.disks = append(o.disks, d)
		return err
	})
	f.BoolVar(&o.stay, "stay", false, "stay with the guest as its guardian, so that it runs on when the standby is lost")
	f.StringVar(&o.control, "control", "", "tell the standby at `ADDR`, its -control, how the guest has ended")
	f.StringVar(&o.controlTLS, "control-tls", "", "encrypt -control with the certificates in `DIR`: ca-cert.pem, client-cert.pem, client-key.pem")
	f.BoolVar(&o.insecure, "insecure", false, "connect to -control without TLS")
	f.StringVar(&o.arbiter, "arbiter", "", "let `PLACE` decide who goes on: file:DIR, a directory of this guest's that both hosts reach, or store:COMMAND, a program that keeps the record")
	f.StringVar(&o.holder, "holder", hostName(), "call this host `NAME` at the arbiter")
	f.DurationVar(&o.term, "term", 10*time.Second, "with -arbiter: let the standby have the guest when this host has been silent for so long")
	f.DurationVar(&o.stall, "stall", standby.DefaultStall, "with -stay: have a guest run on that stands for so long without its checkpoint getting on")
	f.DurationVar(&o.silence, "silence", standby.DefaultSilence, "with -stay: give up a standby that is silent for so long, or receives nothing for so long after a checkpoint was due")
	f.StringVar(&o.fence, "fence", "", "with -stay: run the shell `COMMAND` when the QEMU of a protected guest hangs; it succeeds when that QEMU has surely ended, and the guest goes on at the standby then")
	f.DurationVar(&o.fenceAfter, "fence-after", 30*time.Second, "run -fence when the QEMU has answered nothing in band for so long")
	f.StringVar(&o.state, "state", "", "with -stay: answer \"lockstep-qemu status\" in `DIR`")
	pageFlag(f, &o.http, "with -stay: serve how it stands")
	if status, done := parse(f, aboutProtect, args, t, false); done {
		return status
	}
	switch {
	case o.qmp == "":
		return t.wrong("protect", errors.New("-qmp is missing"))
	case o.to == "":
		return t.wrong("protect", errors.New("-to is missing"))
	case portless(o.to):
		return t.wrong("protect", fmt.Errorf("-to %s: the port is missing (tcp:HOST:PORT, or unix:PATH)", o.to))
	case portless(o.nbd):
		return t.wrong("protect", fmt.Errorf("-nbd %s: the port is missing (tcp:HOST:PORT, or unix:PATH)", o.nbd))
	case portless(o.control):
		return t.wrong("protect", fmt.Errorf("-control %s: the port is missing (HOST:PORT, or unix:PATH)", o.control))
	case (o.nbd == "") != (len(o.disks) == 0):
		return t.wrong("protect", errors.New("-disk and -nbd belong together"))
	case o.delay < 0 || o.delay.Milliseconds() > 1<<32-1:
		return t.wrong("protect", fmt.Errorf("-delay %v", o.delay))
	}
	if err := errors.Join(o.checkStay(), checkState(o.state)); err != nil {
		return t.wrong("protect", err)
	}
	p := &printer{terminal: t, json: o.json}
	if o.stay {
		status, err := o.stayed(ctx, p)
		if err = interrupted(ctx, err); err != nil {
			p.object(map[string]any{"guardian": map[string]any{"error": err.Error()}})
			p.warn("%s", err)
		}
		return status
	}
	if err := interrupted(ctx, o.protect(ctx, p)); err != nil {
		p.object(map[string]any{"protect": map[string]any{"error": err.Error()}})
		p.warn("%v", err)
		if ctx.Err() != nil {
			return exitInterrupted
		}
		return exitFailed
	}
	return exitOK
}

func (o *protectOptions) protect(ctx context.Context, p *printer) error {
	m, _, err := dialMonitor(ctx, o.qmp, min(o.timeout, 2*o.slowness()), false)
	if err != nil {
		return err
	}
	defer m.Close()
	defer p.tellSilence("the QEMU at "+o.qmp, func() *qmp.Client { return m }, o.slowness())()
	if err := o.protectBy(ctx, m, p); err != nil {
		return mute(o.qmp, gone(o.qmp, err))
	}
	p.say("            nobody stays with it (-stay): if the standby is lost, QEMU may keep the guest standing until x-colo-lost-heartbeat,")
	p.say("            and a planned end of this QEMU looks like its death to the standby")
	return nil
}

// checkStay looks at the flags of a guardian.
func (o *protectOptions) checkStay() error {
	switch {
	case !o.stay && (o.control != "" || o.arbiter != "" || o.http != "" || o.fence != ""):
		return errors.New("-control, -arbiter, -http and -fence are for -stay")
	case o.fence != "" && o.control == "":
		return errors.New("-fence wants -control: the standby has to be told that the QEMU has ended")
	case o.fence != "" && o.fenceAfter < time.Second:
		return errors.New("-fence-after is a second or more")
	case o.controlTLS != "" && o.insecure:
		return errors.New("-control-tls and -insecure contradict each other")
	case o.control != "" && o.controlTLS == "" && !o.insecure:
		return errors.New("-control wants -control-tls, or -insecure by name")
	case o.term < time.Second, o.stall <= 0, o.silence <= 0:
		return errors.New("-term is a second or more, -stall and -silence above 0")
	}
	return checkArbiter(o.arbiter)
}

// protectBy protects the guest of a monitor.
func (o *protectOptions) protectBy(ctx context.Context, m *qmp.Client, p *printer) error {
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	if o.begins != nil { // see runOn
		o.begins()
	}
	r, err := examine(ctx, m)
	if err != nil {
		return err
	}
	mind := func(text string) { // once, however often a guardian protects
		if o.minded == nil || o.minded.first(text) {
			p.say("mind: %s", text)
		}
	}
	for _, w := range r.Warnings {
		mind(w)
	}
	for _, d := range r.Disks {
		if !slices.ContainsFunc(o.disks, func(m mirrored) bool { return m.device == d.Name }) {
			mind(d.unprotected())
		}
	}
	if len(r.Problems) > 0 {
		return fmt.Errorf("it cannot be protected: %s", strings.Join(r.Problems, "; "))
	}
	if err := o.set(ctx, m, r); err != nil {
		return err
	}
	if _, err := holdOutput(ctx, m, false); err != nil {
		return err
	}
	began := time.Now()
	if err := o.mirror(ctx, m, p); err != nil {
		return o.undo(ctx, m, r.Status, err)
	}
	if o.pause && r.Status == "running" {
		if err := m.Do(ctx, "stop", nil, nil); err != nil {
			return o.undo(ctx, m, r.Status, err)
		}
	}
	if err := o.whole(ctx, m, new(time.Time)); err != nil {
		return o.undo(ctx, m, r.Status, err)
	}
	network, address := placeOf(o.to)
	err = m.Do(ctx, "migrate", map[string]string{"uri": network + ":" + address}, nil)
	if err == nil {
		err = o.await(ctx, m, p)
	}
	var held []string
	if err == nil {
		held, err = holdOutput(ctx, m, true)
	}
	if err != nil {
		return o.undo(ctx, m, r.Status, err)
	}
	took := time.Since(began)
	p.say("protected   after %.1f s, a checkpoint every %v", took.Seconds(), o.delay)
	if len(held) > 0 {
		p.say("            what the guest sends waits for its checkpoint: %s", strings.Join(held, ", "))
	}
	p.object(map[string]any{"protect": map[string]any{"seconds": took.Seconds(), "machine": r.Machine, "version": r.Version, "held": held}})
	return nil
}

// set makes the capabilities and parameters those of a primary.
func (o *protectOptions) set(ctx context.Context, m *qmp.Client, r *finding) error {
	type state struct {
		Capability string `json:"capability"`
		State      bool   `json:"state"`
	}
	list := []state{{"xbzrle", o.xbzrle}}
	for _, w := range wanted {
		if _, ok := r.capabilities[w.name]; ok {
			list = append(list, state{w.name, w.on})
		}
	}
	if err := m.Do(ctx, "migrate-set-capabilities", map[string]any{"capabilities": list}, nil); err != nil {
		return err
	}
	params := map[string]any{"x-checkpoint-delay": o.delay.Milliseconds(), "tls-creds": o.tlsCreds, "tls-hostname": o.tlsHost}
	if o.bandwidth > 0 {
		params["max-bandwidth"] = o.bandwidth << 20
	}
	return m.Do(ctx, "migrate-set-parameters", params, nil)
}

// progress is the answer to query-migrate.
type progress struct {
	Status string
	Error  string `json:"error-desc"`
	RAM    struct {
		Remaining, Total uint64
		Mbps             float64
		Rounds           int `json:"dirty-sync-count"`
	}
}

// await returns when both sides are in COLO: the primary's guest runs again, and the
// copies of its disks are whole then. From then on the standby sees for itself
// whether the connection over which a disk is copied has ended.
func (o *protectOptions) await(ctx context.Context, m *qmp.Client, p *printer) error {
	next := time.Now().Add(time.Second)
	stood := time.Now()  // since when the guest has been in COLO
	var paused time.Time // see whole
	var broken error     // why a copy of a disk cannot be used
	for {
		var now progress
		if err := m.Do(ctx, "query-migrate", nil, &now); err != nil {
			return err
		}
		if now.Status != "colo" {
			stood = time.Now()
		}
		runs := false
		switch now.Status {
		case "colo":
			var st struct{ Status string }
			if err := m.Do(ctx, "query-status", nil, &st); err != nil {
				return err
			}
			if runs = st.Status == "running" || st.Status == "colo"; runs {
				break
			}
			// The guest stands still until the secondary is ready.
			// QEMU's query-colo-status does not tell, only the event does.
			left := o.exited != nil && o.exited()
			if left || m.Pending(func(r event.Record) bool { return r.Event.Name() == "COLO_EXIT" }) {
				return errors.New("the secondary did not become ready")
			}
			if o.stay && !o.pause && time.Since(stood) > o.stall {
				return fmt.Errorf("the guest has stood for %v, and the secondary is not ready", o.stall)
			}
		case "failed", "cancelled", "completed":
			if now.Error == "" {
				now.Error = "is there somebody at " + o.to + "?"
			}
			return errors.Join(broken, fmt.Errorf("the migration has %s: %s", now.Status, now.Error))
		}
		if broken == nil {
			broken = o.whole(ctx, m, &paused)
		}
		// A QEMU 7.2 whose migration is cancelled just as it comes to COLO leaves its
		// guest standing, so this waits until that can be ended in its own way.
		if broken != nil && now.Status == "colo" {
			return broken
		}
		if runs && paused.IsZero() {
			return nil
		}
		if !time.Now().Before(next) {
			next = time.Now().Add(time.Second)
			p.say("migrating   %s of %s left, %.0f Mbit/s, round %d", size(now.RAM.Remaining), size(now.RAM.Total), now.RAM.Mbps, now.RAM.Rounds)
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// undo lets the guest run on alone, and returns why. It does so although ctx may have ended, and for
// as long as patience then.
func (o *protectOptions) undo(ctx context.Context, m *qmp.Client, was string, cause error) error {
	if o.giveUp != nil {
		if err := o.giveUp(cause); err != nil {
			return errors.Join(cause, err)
		}
	}
	ctx, cancel := graced(ctx, 10*time.Second, o.slowness())
	defer cancel()
	return errors.Join(cause, o.runOn(ctx, m, was))
}

// runOn ends what protectBy has begun, and lets a guest run that ran before. A guardian
// repeats that until the QEMU has answered, over a new connection if one is lost: a guest
// that stands still in COLO would do so for good. As long as it is not known that a migration
// has ended, the guest is not told to run: its state might be sent half changed.
func (o *protectOptions) runOn(ctx context.Context, m *qmp.Client, was string) error {
	err := o.endMigration(ctx, m)
	for o.current != nil && !answered(err) {
		select {
		case <-time.After(tick):
		case <-ctx.Done():
			return err
		}
		m = o.current()
		err = o.endMigration(ctx, m)
	}
	if !answered(err) {
		return err
	}
	if was == "running" {
		err = errors.Join(err, o.resume(ctx, m))
		if o.current != nil {
			m = o.current()
		}
	}
	return errors.Join(err, o.unmirror(ctx, m))
}

// endMigration ends a migration, or COLO, and lets the packets of the guest leave at once. If
// the QEMU refuses, it has ended by itself meanwhile; the refusal is returned.
func (o *protectOptions) endMigration(ctx context.Context, m *qmp.Client) error {
	var now progress
	if err := m.Do(ctx, "query-migrate", nil, &now); err != nil {
		return err
	}
	if _, err := holdOutput(ctx, m, false); err != nil && !answered(err) {
		return err
	}
	switch now.Status {
	case "colo": // QEMU leaves its guest standing otherwise
		return o.leaveCOLO(ctx, m)
	case "active", "setup":
		return o.cutMigration(ctx, m)
	}
	return nil
}

// cutMigration ends a migration that has not come to COLO, as far as is known. It may come
// there meanwhile: a QEMU 7.2 takes migrate_cancel then and does nothing, its guest stands,
// and cont is refused ("Migration is not finalized yet"). So it leaves COLO in its own way.
func (o *protectOptions) cutMigration(ctx context.Context, m *qmp.Client) error {
	if err := m.Do(ctx, "migrate_cancel", nil, nil); err != nil {
		return err
	}
	if o.hasEnded(ctx, m) != "colo" {
		return nil
	}
	return o.leaveCOLO(ctx, m)
}

// leaveCOLO returns when the guest runs on alone, or after leavingCOLO.
func (o *protectOptions) leaveCOLO(ctx context.Context, m *qmp.Client) error {
	entersCOLO(ctx, m)
	if err := m.Do(ctx, "x-colo-lost-heartbeat", nil, nil); err != nil {
		return err
	}
	o.hasLeft(ctx, m)
	return nil
}

// hasEnded waits, as hasLeft does, until a migration has ended that was told to: it may be
// stopping the guest. It returns its status.
func (o *protectOptions) hasEnded(ctx context.Context, m *qmp.Client) string {
	ctx, cancel := context.WithTimeout(ctx, leavingCOLO)
	defer cancel()
	for {
		var now progress
		if err := m.Do(ctx, "query-migrate", nil, &now); err != nil || now.Status != "active" && now.Status != "setup" && now.Status != "cancelling" {
			return now.Status
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			return now.Status
		}
	}
}
