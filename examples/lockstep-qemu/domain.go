package main

import (
	"cmp"
	"fmt"
	"math/bits"
	"os"
	"strconv"
	"strings"
)

// translation turns a libvirt domain into the command line of a QEMU. It must get the machine
// and its devices right: a checkpoint has to find each of them in its place.
type translation struct {
	args    []string
	notes   []string
	machine string
	counts  map[string]int // devices without an alias, by kind
}

func (t *translation) add(args ...string) { t.args = append(t.args, args...) }

func (t *translation) note(e *element, format string, args ...any) {
	t.notes = append(t.notes, fmt.Sprintf("line %d: ", e.line)+fmt.Sprintf(format, args...))
}

// option writes the value of an option; what is empty is left out, and commas in values
// are doubled.
func option(first string, pairs ...string) string {
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			first += "," + pairs[i] + "=" + strings.ReplaceAll(pairs[i+1], ",", ",,")
		}
	}
	return strings.TrimPrefix(first, ",")
}

// translateDomain returns the command line of a domain and what does not hold on another
// host, or was not understood.
func translateDomain(d *element) (command, notes []string) {
	t := &translation{notes: []string{}, counts: make(map[string]int)}
	t.frame(d)
	devices := d.one("devices")
	for _, e := range devices.all("controller") {
		t.controller(e)
	}
	for _, e := range devices.all("disk") {
		t.disk(e)
	}
	for _, e := range devices.all("interface") {
		t.network(e)
	}
	for _, e := range devices.all("serial") {
		t.serial(e)
	}
	for _, e := range devices.all("console") {
		if target := e.one("target"); target.is("type", "serial") {
			e.skip() // the same as the serial line
		} else {
			e.taken = false
		}
	}
	for _, e := range devices.all("input") {
		t.input(e)
	}
	for _, e := range devices.all("video") {
		t.video(e)
	}
	for _, e := range devices.all("rng") {
		t.rng(e)
	}
	for _, e := range devices.all("memballoon") {
		if e.is("model", "none") {
			e.skip()
		} else if e.is("model", "virtio") {
			t.device(e, "virtio-balloon-pci", "balloon")
		} else {
			e.taken = false
		}
	}
	program := cmp.Or(devices.one("emulator").words(), "qemu-system-x86_64")
	for _, what := range d.left("") {
		t.notes = append(t.notes, what+": not translated; add what it stands for, or make sure that the guest does not need it")
	}
	return append([]string{program}, t.args...), t.notes
}

// checkDomain prints the command line of the domain in a file.
func checkDomain(name string, p *printer) int {
	f, err := os.Open(name)
	if err != nil {
		p.warn("%v", err)
		return exitFailed
	}
	defer f.Close()
	d, err := readDomain(f)
	if err != nil {
		p.warn("%s: %v", name, err)
		return exitFailed
	}
	command, notes := translateDomain(d)
	p.object(map[string]any{"domain": map[string]any{"command": command, "adapt": notes}})
	p.say("%s", asIs(shellWords(command)))
	for _, n := range notes {
		p.say("mind: %s", n)
	}
	return exitOK
}

// frame translates all but the devices.
func (t *translation) frame(d *element) {
	d.get("id")
	for _, about := range []string{"metadata", "title", "description"} { // nothing of the machine's
		d.one(about).skip()
	}
	t.add("-nodefaults", "-no-user-config", "-display", "none")
	switch {
	case d.is("type", "kvm"):
		t.add("-accel", "kvm")
	case d.is("type", "qemu"):
		t.add("-accel", "tcg")
	}
	t.add("-name", option("", "guest", d.one("name").words()))
	if u := d.one("uuid").words(); u != "" {
		t.add("-uuid", u)
	}
	system := d.one("os")
	kind := system.one("type")
	kind.is("arch", "x86_64") // the others are named
	kind.told = kind.text == "hvm"
	t.machine = kind.get("machine")
	features := d.one("features")
	features.one("apic").taken = true
	features.one("pae").taken = true
	acpi, vmport, hpet := "", "", ""
	if !features.has("acpi") {
		acpi = "off"
	}
	if f := features.one("vmport"); f.is("state", "on", "off") {
		vmport = f.get("state")
	}

	memory := d.one("memory")
	if bytes, ok := memorySize(memory); ok {
		t.add("-m", fmt.Sprintf("%dK", bytes>>10))
		if now, ok := memorySize(d.one("currentMemory")); ok && now != bytes {
			t.note(d.one("currentMemory"), "the guest has less memory than it may have, by its balloon; the balloon's state is part of a checkpoint")
		}
	} else {
		memory.told = false
	}
	t.processors(d)

	clock := d.one("clock")
	rtc := ""
	if clock.is("offset", "utc", "localtime") {
		rtc = clock.get("offset")
	}
	drift := ""
	for _, timer := range clock.all("timer") {
		switch name := timer.get("name"); {
		case name == "rtc" && timer.is("tickpolicy", "catchup"):
			drift = "slew"
		case name == "pit" && timer.is("tickpolicy", "delay"):
			t.add("-global", "kvm-pit.lost_tick_policy=delay")
		case name == "hpet" && timer.is("present", "no"):
			hpet = "off"
		case name == "hpet" && timer.is("present", "yes"):
		default:
			timer.taken = false
		}
	}
	if s := option("", "base", rtc, "driftfix", drift); s != "" {
		t.add("-rtc", s)
	}
	t.add("-M", option(t.machine, "acpi", acpi, "vmport", vmport, "hpet", hpet))
	t.start(d, system)
}

// start translates what the guest boots from, and what happens when it ends.
func (t *translation) start(d, system *element) {
	if loader := system.one("loader"); loader.is("type", "pflash") {
		readonly := ""
		if loader.is("readonly", "yes") {
			readonly = "on"
		}
		t.add("-drive", option("if=pflash", "unit", "0", "format", "raw", "readonly", readonly, "file", loader.words()))
		if nvram := system.one("nvram"); nvram.text != "" {
			t.add("-drive", option("if=pflash", "unit", "1", "format", "raw", "file", nvram.words()))
			t.note(nvram, "%s has what the firmware keeps: it has to be there as it is here", nvram.text)
		}
	} else if loader.text != "" {
		loader.is("type", "rom")
		t.add("-bios", loader.words())
	}
	order := ""
	for _, b := range system.all("boot") {
		letter, ok := map[string]string{"hd": "c", "cdrom": "d", "network": "n", "fd": "a"}[b.get("dev")]
		if order += letter; !ok {
			b.taken = false
		}
	}
	if order != "" {
		t.add("-boot", "order="+order)
	}
	for _, o := range []struct{ element, option string }{{"kernel", "-kernel"}, {"initrd", "-initrd"}, {"cmdline", "-append"}} {
		if s := system.one(o.element).words(); s != "" {
			t.add(o.option, s)
		}
	}
	for _, name := range []string{"on_poweroff", "on_reboot", "on_crash"} {
		switch e := d.one(name); {
		case name == "on_reboot" && e.text == "destroy":
			e.words()
			t.add("-no-reboot")
		case e.text == map[string]string{"on_poweroff": "destroy", "on_reboot": "restart", "on_crash": "destroy"}[name]:
			e.words()
		}
	}
	driver := "PIIX4_PM"
	if strings.Contains(t.machine, "q35") {
		driver = "ICH9-LPC"
	}
	pm := d.one("pm")
	for _, s := range []struct{ element, property string }{{"suspend-to-mem", "disable_s3"}, {"suspend-to-disk", "disable_s4"}} {
		if e := pm.one(s.element); e.is("enabled", "no") {
			t.add("-global", driver+"."+s.property+"=1")
		} else {
			e.is("enabled", "yes")
		}
	}
}

// memorySize returns the size in bytes; libvirt's default unit is KiB.
func memorySize(e *element) (uint64, bool) {
	n, err := strconv.ParseUint(e.words(), 10, 64)
	unit, ok := map[string]uint64{"": 1 << 10, "b": 1, "bytes": 1, "k": 1 << 10, "KiB": 1 << 10, "M": 1 << 20, "MiB": 1 << 20, "G": 1 << 30, "GiB": 1 << 30,
		"T": 1 << 40, "TiB": 1 << 40, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}[e.get("unit")]
	hi, bytes := bits.Mul64(n, unit)
	return bytes, err == nil && ok && hi == 0 && bytes > 0
}

func (t *translation) processors(d *element) {
	vcpu := d.one("vcpu")
	vcpu.is("placement", "static")
	cpu := d.one("cpu")
	topology := cpu.one("topology")
	topology.is("dies", "1")
	topology.is("clusters", "1")
	if n := vcpu.words(); n != "" {
		t.add("-smp", option(n, "sockets", topology.get("sockets"), "cores", topology.get("cores"), "threads", topology.get("threads")))
	}
	cpu.is("match", "exact", "minimum")
	cpu.get("check")
	model := ""
	switch {
	case cpu.is("mode", "host-passthrough", "maximum"):
		model = map[string]string{"host-passthrough": "host", "maximum": "max"}[cpu.get("mode")]
		cpu.is("migratable", "on")
		t.note(cpu, "-cpu %s: the processor there must have what this one has", model)
	case cpu.is("mode", "custom") || cpu.has("model") && !cpu.is("mode", "host-model"):
		e := cpu.one("model")
		e.is("fallback", "allow", "forbid")
		model = e.words()
	default: // host-model: only a running domain's XML has what it is
		return
	}
	if model == "" {
		return
	}
	for _, f := range cpu.all("feature") {
		switch {
		case f.is("policy", "require", "force"):
			model += ",+" + f.get("name")
		case f.is("policy", "disable", "forbid"):
			model += ",-" + f.get("name")
		}
	}
	t.add("-cpu", model)
}
