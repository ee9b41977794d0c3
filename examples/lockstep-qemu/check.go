package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/gocolo/lockstep/event/qmp"
)

const aboutCheck = `usage: lockstep-qemu check -qmp ADDR [flags]
       lockstep-qemu check -domain FILE [-json]

Check asks a running QEMU whether its guest can be protected, says in plain words
what stands against it and what to mind, and prints the commands that start it, among
them the command line of a QEMU that can take the guest: that of the running one, without
what belongs to its process (its monitor, say), with the machine's type by its full name.
What in it belongs to this host, and what the guest has that is not in it, is listed. A
password is not printed, and a debugger's port (-gdb, -s) is left out; both are said. The
process is the one that serves the monitor, or -pid where that is another, as
under libvirt. With -domain it translates a libvirt domain's XML into such a command line
instead, and names each element and attribute that it does not know; "lockstep-qemu rehearse" shows
whether the guest fits. It changes nothing. Exit status: 0 if the guest can be protected, 1 if not.
`

func checkCommand(ctx context.Context, args []string, t terminal) int {
	f := flag.NewFlagSet("check", flag.ContinueOnError)
	addr := f.String("qmp", "", "ask the QEMU over its monitor at `ADDR` (its -qmp, with server=on,wait=off)")
	json := f.Bool("json", false, "print one JSON object in place of words")
	domain := f.String("domain", "", "instead of asking a QEMU, translate the libvirt domain in `FILE` (virsh dumpxml of a running one)")
	pid := f.Int("pid", 0, "read the command line of process `PID`, where another one serves the monitor")
	timeout := f.Duration("timeout", 10*time.Second, "give up on a monitor that does not answer for so long")
	if status, done := parse(f, aboutCheck, args, t, false); done {
		return status
	}
	p := &printer{terminal: t, json: *json}
	switch {
	case *domain != "" && (*addr != "" || *pid != 0):
		return t.wrong("check", errors.New("-domain is instead of -qmp and -pid"))
	case *domain != "":
		return checkDomain(*domain, p)
	case *addr == "":
		return t.wrong("check", errors.New("-qmp is missing"))
	}
	signalled := ctx // the end of -timeout is no interrupt
	ctx, cancel := context.WithTimeout(ctx, *timeout)
	defer cancel()
	m, conn, err := dialMonitor(ctx, *addr, *timeout, false)
	if err != nil {
		p.warn("%v", interrupted(signalled, err))
		return exitFailed
	}
	defer m.Close()
	r, err := examine(ctx, m)
	if err == nil {
		err = r.offer(ctx, m, conn, *addr, *pid)
	}
	if err != nil {
		p.warn("%v", interrupted(signalled, mute(*addr, err)))
		return exitFailed
	}
	p.object(map[string]any{"check": r})
	r.print(p)
	if len(r.Problems) > 0 {
		return exitFailed
	}
	return exitOK
}

// finding is the result of check.
type finding struct {
	Version  string   `json:"version"`
	Machine  string   `json:"machine"`
	RAM      uint64   `json:"ram"` // size of the guest's memory in bytes
	CPUs     int      `json:"cpus"`
	KVM      bool     `json:"kvm"`
	Status   string   `json:"status"`   // the guest's run state, in QEMU's word
	Problems []string `json:"problems"` // why the guest cannot be protected
	Warnings []string `json:"warnings"` // what an operator should know
	Set      []string `json:"set"`      // capabilities that protect changes, as "name on"

	Disks []guestDisk `json:"disks"`

	Command []string `json:"command"` // for after --; nil: not known
	Adapt   []string `json:"adapt"`   // notes on parts of Command that do not hold on another host, or are missing

	capabilities map[string]bool
}

func (r *finding) problem(format string, args ...any) {
	r.Problems = append(r.Problems, fmt.Sprintf(format, args...))
}

func (r *finding) warn(format string, args ...any) {
	r.Warnings = append(r.Warnings, fmt.Sprintf(format, args...))
}

// wanted lists how the capabilities must be set on a COLO primary, and why. A capability
// that this QEMU does not have counts as off.
var wanted = []struct {
	name string
	on   bool
	why  string
}{
	{"x-colo", true, ""},
	{"return-path", false, "COLO uses the reverse direction itself"},
	{"postcopy-ram", false, "it opens a return path"},
	{"background-snapshot", false, "QEMU refuses it together with x-colo"},
	{"multifd", false, "memory must come on the one connection"},
	{"compress", false, "a QEMU secondary crashes in its first checkpoint"},
	{"dirty-bitmaps", false, "disks are not part of it"},
	{"block", false, "disks are not part of it"},
	{"x-ignore-shared", false, "the standby has no access to shared memory"},
	{"mapped-ram", false, "it is for files"},
}

// examine queries all that decides whether the guest can be protected. It changes nothing.
func examine(ctx context.Context, m *qmp.Client) (*finding, error) {
	r := &finding{Version: m.Version, Problems: []string{}, Warnings: []string{}, Set: []string{}, Disks: []guestDisk{}, Adapt: []string{}}
	for _, step := range []func(context.Context, *qmp.Client) error{r.guest, r.migration, r.disks} {
		if err := step(ctx, m); err != nil {
			return nil, err
		}
	}
	switch v := m.Major*100 + m.Minor; {
	case v < 400:
		r.problem("QEMU %s is too old; COLO works from 4.0 on", m.Version)
	case v == 1000 || v == 1001:
		r.problem("QEMU %s cannot enter COLO as a primary; 10.2 can again", m.Version)
	case v < 900 && !r.KVM:
		r.problem("QEMU %s without KVM deadlocks in its first checkpoint and loses dirty pages; use -accel kvm, or QEMU 9.0 or later", m.Version)
	}
	return r, nil
}

func (r *finding) guest(ctx context.Context, m *qmp.Client) error {
	var status struct{ Status string }
	var kvm struct{ Enabled bool }
	var mem struct {
		Base uint64 `json:"base-memory"`
		Plug uint64 `json:"plugged-memory"`
	}
	var cpus []any
	for _, q := range []struct {
		command string
		args    any
		out     any
	}{
		{"query-status", nil, &status},
		{"query-kvm", nil, &kvm},
		{"query-memory-size-summary", nil, &mem},
		{"query-cpus-fast", nil, &cpus},
		{"qom-get", map[string]string{"path": "/machine", "property": "type"}, &r.Machine},
	} {
		var refused *qmp.Error
		if err := m.Do(ctx, q.command, q.args, q.out); err != nil && !errors.As(err, &refused) {
			return err
		}
	}
	r.Status, r.KVM, r.RAM, r.CPUs = status.Status, kvm.Enabled, mem.Base+mem.Plug, len(cpus)
	r.Machine = strings.TrimSuffix(r.Machine, "-machine")
	if !slices.Contains([]string{"running", "paused", "prelaunch"}, r.Status) {
		r.problem("the guest is %s", r.Status)
	}
	return nil
}

func (r *finding) migration(ctx context.Context, m *qmp.Client) error {
	var info struct {
		Status  string
		Blocked []string `json:"blocked-reasons"`
	}
	if err := m.Do(ctx, "query-migrate", nil, &info); err != nil {
		return err
	}
	switch info.Status {
	case "", "none", "completed", "failed", "cancelled":
	case "colo":
		r.problem("the guest is in COLO already; if its standby is gone, give x-colo-lost-heartbeat to this monitor, and protect it again (protect -stay does both by itself)")
	default:
		r.problem("a migration is %s", info.Status)
	}
	for _, b := range info.Blocked {
		r.problem("it cannot be migrated: %s", b)
	}
	var caps []struct {
		Capability string
		State      bool
	}
	if err := m.Do(ctx, "query-migrate-capabilities", nil, &caps); err != nil {
		return err
	}
	r.capabilities = make(map[string]bool)
	for _, c := range caps {
		r.capabilities[c.Capability] = c.State
	}
	if _, ok := r.capabilities["x-colo"]; !ok {
		r.problem("this QEMU was built without COLO (capability x-colo)")
	}
	for _, w := range wanted {
		on, ok := r.capabilities[w.name]
		if !ok || on == w.on {
			continue
		}
		word := "off"
		if w.on {
			word = "on"
		}
		r.Set = append(r.Set, w.name+" "+word)
		if w.why != "" {
			r.warn("%s is on and will be switched off: %s", w.name, w.why)
		}
	}
	return nil
}

func (r *finding) disks(ctx context.Context, m *qmp.Client) error {
	var blocks []struct {
		Device   string
		Inserted *struct {
			RO    bool   `json:"ro"`
			File  string `json:"file"`
			Drv   string `json:"drv"`
			Node  string `json:"node-name"`
			Image struct {
				Size uint64 `json:"virtual-size"`
			} `json:"image"`
		}
	}
	if err := m.Do(ctx, "query-block", nil, &blocks); err != nil {
		return err
	}
	for _, b := range blocks {
		if b.Inserted == nil || b.Inserted.RO {
			continue
		}
		file, _ := withoutSecrets("", b.Inserted.File) // the name may be an address with a password
		d := guestDisk{Name: b.Device, Driver: b.Inserted.Drv, File: file, Bytes: b.Inserted.Image.Size}
		if d.Name == "" {
			d.Name = b.Inserted.Node
		}
		r.Disks = append(r.Disks, d)
	}
	return nil
}

// guestDisk is a disk that the guest can write.
type guestDisk struct {
	Name   string `json:"name"` // of the device or, without one, of the node: what protect -disk wants
	Driver string `json:"driver"`
	File   string `json:"file"`
	Bytes  uint64 `json:"bytes"`
}

func (d guestDisk) unprotected() string {
	return fmt.Sprintf("disk %s (%s, %s) is not part of a checkpoint without -disk: it must be where the guest is brought back, and what was written to it after the last checkpoint stays written",
		d.Name, d.Driver, d.File)
}

func (r *finding) print(p *printer) {
	accel := "without KVM"
	if r.KVM {
		accel = "with KVM"
	}
	p.say("QEMU %s %s, machine %s, %d CPUs, %s of memory, guest %s", r.Version, accel, r.Machine, r.CPUs, size(r.RAM), r.Status)
	for _, w := range r.Warnings {
		p.say("mind: %s", w)
	}
	for _, d := range r.Disks {
		p.say("mind: %s", d.unprotected())
	}
	for _, x := range r.Problems {
		p.say("no:   %s", x)
	}
	if len(r.Problems) > 0 {
		p.say("The guest cannot be protected like this.")
		return
	}
	p.say("The guest can be protected. A standby takes %s of memory and the largest checkpoint.", size(r.RAM))
	line := fmt.Sprintf("qemu-system-x86_64 -M %s -m %d -smp %d ...", r.Machine, r.RAM>>20, r.CPUs)
	if r.Command != nil {
		line = shellWords(r.Command)
	}
	p.say("\nOn the standby's host:\n  lockstep-qemu standby -listen 0.0.0.0:9998 -state DIR -- \\\n    %s", asIs(line))
	for _, a := range r.Adapt {
		p.say("mind: %s", a)
	}
	p.say("Here, in the QEMU's human monitor (or: lockstep-qemu protect -qmp ADDR -to tcp:STANDBY:9998):")
	for _, s := range r.Set {
		p.say("  migrate_set_capability %s", s)
	}
	p.say("  migrate_set_parameter x-checkpoint-delay 1000\n  migrate -d tcp:STANDBY:9998")
	if len(r.Disks) == 0 {
		return
	}
	var there, here string
	for i, d := range r.Disks {
		there += fmt.Sprintf(" -disk disk%d=FILE%d", i, i)
		here += fmt.Sprintf(" -disk %s=disk%d", d.Name, i)
	}
	p.say("\nWith its disks, each FILE being an image of the same size (and the QEMU after -- using it):\n  lockstep-qemu standby ... -nbd 0.0.0.0:10809%s\n  lockstep-qemu protect ... -nbd tcp:STANDBY:10809%s", there, here)
}
