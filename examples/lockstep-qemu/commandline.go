package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/gocolo/lockstep/event/qmp"
)

// The command line to give after --: that of the running QEMU, without the options that
// concern the process and not its guest, and with a list of the things on it that belong
// to this host.

// running is a QEMU's process.
type running struct {
	args []string
	dir  string // where it was started
	// exists reports whether there is a file of a name, as seen from dir.
	exists func(name string) bool
}

const (
	// maxCommandLine bounds what is read of a command line, in bytes.
	maxCommandLine = 1 << 20

	// maxPlugged bounds the devices that a monitor is asked about.
	maxPlugged = 1 << 12
)

// offer finds the command line of the QEMU whose monitor conn is connected to, at addr, or
// of the process pid if that is not 0. If it cannot be found, offer notes that in r and
// returns no error.
func (r *finding) offer(ctx context.Context, m *qmp.Client, conn net.Conn, addr string, pid int) error {
	plugged, err := pluggedIn(ctx, m)
	if err != nil {
		return err
	}
	q, err := findQEMU(conn, addr, pid)
	if err != nil {
		r.Adapt = append(r.Adapt, fmt.Sprintf("the command line of the running QEMU is not known: %v", err))
		for _, d := range plugged {
			r.Adapt = append(r.Adapt, fmt.Sprintf("the guest has %s", d))
		}
		return nil
	}
	r.Command, r.Adapt = adapt(q, r, plugged)
	return nil
}

// plugged is a device of -device or device_add.
type plugged struct {
	id, kind string
	hot      bool // added while the QEMU ran
}

func (d plugged) String() string {
	if d.id == "" {
		return "a device without an id, " + d.kind
	}
	return "device " + d.id + ", " + d.kind
}

func pluggedIn(ctx context.Context, m *qmp.Client) (list []plugged, err error) {
	for _, where := range []string{"/machine/peripheral", "/machine/peripheral-anon"} {
		var members []struct{ Name, Type string }
		var refused *qmp.Error
		switch err := m.Do(ctx, "qom-list", map[string]string{"path": where}, &members); {
		case errors.As(err, &refused):
			continue
		case err != nil:
			return nil, err
		}
		for _, o := range members {
			kind, isChild := strings.CutPrefix(o.Type, "child<")
			if !isChild || len(list) == maxPlugged {
				continue
			}
			d := plugged{kind: strings.TrimSuffix(kind, ">")}
			if where == "/machine/peripheral" {
				d.id = o.Name
			}
			// One that is unplugged just now is refused.
			if err := m.Do(ctx, "qom-get", map[string]string{"path": where + "/" + o.Name, "property": "hotplugged"}, &d.hot); err != nil && !errors.As(err, &refused) {
				return nil, err
			}
			list = append(list, d)
		}
	}
	return list, nil
}

var (
	// ofProcess are the options that concern the process, and not the machine; true: a value
	// follows.
	ofProcess = map[string]bool{
		"qmp": true, "qmp-pretty": true, "monitor": true, "mon": true, "pidfile": true, "incoming": true, "loadvm": true,
		"daemonize": false, "S": false, "gdb": true, "s": false,
	}
	idOf       = regexp.MustCompile(`(?:^|,)id=([^,]*)|"id": *"([^"]*)"`)
	monOf      = regexp.MustCompile(`^([^,=]+)(?:,|$)|(?:^|,)chardev=([^,]*)`)
	descriptor = regexp.MustCompile(`(?:^|,)(?:fd|fds|vhostfd|vhostfds)=|"(?:fd|fds|vhostfd|vhostfds)": *"|/dev/fdset/|^fd:`)
	quoted     = regexp.MustCompile(`"([^"]*)"`)
)

func submatch(re *regexp.Regexp, s string) string {
	return strings.Join(re.FindStringSubmatch(s)[1:], "")
}

// adapt turns the command line of a QEMU into one to give after --, and returns notes on the
// parts that do not hold on another host.
func adapt(q running, r *finding, devices []plugged) (args, notes []string) {
	type option struct {
		name   string // without its dashes; "": a word that is none
		values []string
	}
	var list []option
	for i := 1; i < len(q.args); {
		name, isOption := strings.CutPrefix(q.args[i], "-")
		if !isOption || name == "" {
			list, i = append(list, option{values: q.args[i : i+1]}), i+1
			continue
		}
		o := option{name: strings.TrimPrefix(name, "-")}
		i++
		takes, known := ofProcess[o.name]
		if takes = takes || o.name == "append" || !known; takes && i < len(q.args) && (known || o.name == "append" || !strings.HasPrefix(q.args[i], "-")) {
			o.values, i = q.args[i:i+1], i+1
		}
		list = append(list, o)
	}
	monitors := make(map[string]bool)
	for _, o := range list {
		if o.name == "mon" && len(o.values) > 0 && monOf.MatchString(o.values[0]) {
			monitors[submatch(monOf, o.values[0])] = true
		}
	}

	notes = []string{}
	var handed, files []string
	ids, seen := make(map[string]bool), make(map[string]bool)
	hasMachine := false
	for _, o := range list {
		value := strings.Join(o.values, "")
		id := ""
		if idOf.MatchString(value) {
			id = submatch(idOf, value)
		}
		if o.name == "gdb" || o.name == "s" {
			notes = append(notes, fmt.Sprintf("-%s was left out: whoever reaches a debugger's port reads and changes the guest's memory", o.name))
		}
		if _, ours := ofProcess[o.name]; ours || o.name == "chardev" && monitors[id] {
			continue
		}
		value, secret := withoutSecrets(o.name, value)
		if secret {
			notes = append(notes, fmt.Sprintf("a secret in -%s is not shown: give what is to stand for %s there, better from a file than on a command line, which every process reads", o.name, notShown))
		}
		switch o.name {
		case "M", "machine":
			switch {
			case len(o.values) == 0 || r.Machine == "":
			case strings.HasPrefix(value, "{"):
				hasMachine = true
				notes = append(notes, fmt.Sprintf("-%s %s: left as it is; its type has to be the full name, %s", o.name, value, r.Machine))
			default:
				var typed bool
				value, typed = versioned(value, r.Machine)
				hasMachine = hasMachine || typed
			}
		case "device":
			if id != "" {
				ids[id] = true
			}
		case "cpu":
			if model, _, _ := strings.Cut(value, ","); model == "host" || model == "max" {
				notes = append(notes, fmt.Sprintf("-cpu %s: the processor there must have what this one has", model))
			}
		case "vnc":
			if password.MatchString(value) {
				notes = append(notes, "-vnc: its password was set in a monitor, and has to be set there, too: until then nobody can connect")
			}
		case "readconfig":
			notes = append(notes, fmt.Sprintf("-readconfig %s: what is in that file was not looked at", value))
		case "snapshot":
			notes = append(notes, "-snapshot: what is written to a disk is gone with its QEMU")
		}
		if o.name == "add-fd" || o.name != "append" && descriptor.MatchString(value) {
			handed = append(handed, "-"+o.name+" "+value)
		}
		if o.name != "append" {
			for _, f := range filesIn(value) {
				if !seen[f] && q.exists(f) {
					files = append(files, f)
				}
				seen[f] = true
			}
		}
		if o.name != "" {
			args = append(args, "-"+o.name)
		}
		if len(o.values) > 0 {
			args = append(args, value)
		}
	}
	if !hasMachine && r.Machine != "" {
		args = append([]string{"-M", r.Machine}, args...)
	}
	for _, d := range devices {
		if d.hot {
			notes = append(notes, fmt.Sprintf("%s, was added while the QEMU ran: it is not on its command line, and has to be", d))
		}
		delete(ids, d.id)
	}
	for _, o := range list { // in their order
		if id := idOf.FindStringSubmatch(strings.Join(o.values, "")); o.name == "device" && id != nil && ids[id[1]+id[2]] {
			notes = append(notes, fmt.Sprintf("device %s is on the command line, and the guest does not have it any more: leave it out", id[1]+id[2]))
		}
	}
	for _, h := range handed {
		notes = append(notes, fmt.Sprintf("%s: the QEMU was handed a descriptor; name what is to be opened there", h))
	}
	if len(files) > 0 {
		notes = append(notes, fmt.Sprintf("there must be these files, too, or others in their place (from %s): %s", q.dir, shellWords(files)))
	}
	return append(q.args[:1:1], args...), notes
}

// versioned replaces the machine type in the value of -machine by the full name of the type:
// pc, say, means another type in each version of QEMU. It reports whether the value names a
// type at all: -machine accel=kvm does not, and leaves it to the version of the QEMU.
func versioned(value, machine string) (_ string, typed bool) {
	parts := optionParts(value)
	for i, p := range parts {
		if key, _, pair := strings.Cut(p, "="); pair && key == "type" {
			parts[i], typed = "type="+machine, true
		} else if i == 0 && !pair {
			parts[i], typed = machine, true
		}
	}
	return strings.Join(parts, ","), typed
}

// optionParts takes the value of an option apart at its commas. One of a value is written
// twice, and stays so.
func optionParts(value string) (parts []string) {
	start := 0
	for i := 0; i < len(value); i++ {
		switch {
		case value[i] != ',':
		case strings.HasPrefix(value[i:], ",,"):
			i++
		default:
			parts, start = append(parts, value[start:i]), i+1
		}
	}
	return append(parts, value[start:])
}

// serves returns an error that says why a process with this program and command line is not
// the QEMU that serves the monitor at path.
func serves(exe string, args []string, path string) error {
	switch {
	case !namesSocket(args[1:], path):
		return errors.New("does not name it")
	case !isQEMU(exe) && !isQEMU(args[0]):
		return errors.New("is no QEMU")
	}
	return nil
}

// isQEMU reports whether a program runs a guest, by its name. The program at hand, qemu-nbd and
// qemu-storage-daemon do not.
func isQEMU(program string) bool {
	base := filepath.Base(program)
	return strings.Contains(base, "qemu-system") || strings.Contains(base, "qemu-kvm") || base == "kvm"
}

// namesSocket reports whether arguments name the socket at path, whole: as it is, or by
// its last element, since the process may see it from another directory. That "qmp" is in
// -qmp is no name.
func namesSocket(args []string, path string) bool {
	base := strings.TrimPrefix(filepath.Base(path), "@") // of an abstract one
	for _, a := range args {
		for _, name := range valuesIn(a) {
			name = strings.ReplaceAll(name, ",,", ",")
			if name == path || filepath.Base(name) == base {
				return true
			}
		}
	}
	return false
}

// Bounds of what is looked for in a command line, so that the work for it stays in
// proportion to its length.
const (
	maxName   = 1 << 12 // of a file, in bytes: the longest that Linux opens
	maxValues = 1 << 5  // in one part of an option's value, which may have many of = and :
)

// valuesIn returns all texts in the value of an option that may be a name: each of its parts,
// and the rest of each part behind every = and :, since a name may contain those too.
func valuesIn(value string) (list []string) {
	parts := optionParts(value)
	if strings.HasPrefix(value, "{") {
		parts = nil
		for _, m := range quoted.FindAllStringSubmatch(value, -1) {
			parts = append(parts, m[1])
		}
	}
	for _, p := range parts {
		for n := 0; n < maxValues; {
			if len(p) <= maxName {
				list = append(list, p)
				n++
			}
			i := strings.IndexAny(p, "=:")
			if i < 0 {
				break
			}
			p = p[i+1:]
		}
	}
	return list
}

// filesIn returns all texts in the value of an option that may be the name of a file. A number
// is not.
func filesIn(value string) (list []string) {
	for _, v := range valuesIn(value) {
		if strings.Trim(v, "0123456789") != "" {
			list = append(list, strings.ReplaceAll(v, ",,", ","))
		}
	}
	return list
}

// shellWords writes arguments as a shell reads them.
func shellWords(args []string) string {
	words := make([]string, len(args))
	for i, a := range args {
		plain := a != "" && !strings.ContainsFunc(a, func(c rune) bool {
			return !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.ContainsRune("-_=,.:/+@%", c))
		})
		if words[i] = a; !plain {
			words[i] = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
		}
	}
	return strings.Join(words, " ")
}
