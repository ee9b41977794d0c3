package main

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"
)

// id returns the alias of a device, or a name that is made for it.
func (t *translation) id(e *element, kind string) string {
	if a := e.one("alias").get("name"); a != "" {
		return a
	}
	t.counts[kind]++
	return kind + strconv.Itoa(t.counts[kind]-1)
}

// device adds a device with an id, where its address says that it is.
func (t *translation) device(e *element, driver, kind string, pairs ...string) {
	t.add("-device", option(driver, append(append([]string{"id", t.id(e, kind)}, pairs...), t.place(e)...)...))
}

// place returns the properties for the PCI address of a device.
func (t *translation) place(e *element) []string {
	a := e.one("address")
	if a.name == "" {
		t.note(e, "it has no address, so QEMU chooses one: take the XML of the running domain")
		return nil
	}
	if !a.is("type", "pci") || !a.is("domain", "0x0000", "0") {
		return nil
	}
	bus, err1 := strconv.ParseUint(cmp.Or(a.get("bus"), "0"), 0, 8)
	slot, err2 := strconv.ParseUint(a.get("slot"), 0, 5)
	function, err3 := strconv.ParseUint(cmp.Or(a.get("function"), "0"), 0, 3)
	if err1 != nil || err2 != nil || err3 != nil {
		a.taken = false
		return nil
	}
	addr := fmt.Sprintf("%#x", slot)
	if function > 0 {
		addr += fmt.Sprintf(".%#x", function)
	}
	many := ""
	if a.is("multifunction", "on", "off") {
		many = a.get("multifunction")
	}
	name := fmt.Sprintf("pci.%d", bus)
	if bus == 0 && strings.Contains(t.machine, "q35") {
		name = "pcie.0"
	}
	return []string{"bus", name, "multifunction", many, "addr", addr}
}

// builtIn takes a device that the machine has by itself.
func builtIn(e *element) {
	e.one("alias").skip()
	e.one("address").skip()
	e.one("target").taken = true
}

func (t *translation) controller(e *element) {
	index := e.get("index")
	q35 := strings.Contains(t.machine, "q35")
	switch {
	case e.is("type", "pci") && e.is("model", "pci-root", "pcie-root"), e.is("type", "fdc"),
		!q35 && e.is("type", "ide"), q35 && index == "0" && e.is("type", "sata"):
		builtIn(e)
	case e.is("type", "pci") && e.is("model", "pcie-root-port"):
		e.one("model").is("name", "pcie-root-port")
		target := e.one("target")
		e.one("alias").skip() // others name it by its index
		t.add("-device", option("pcie-root-port", append([]string{"port", target.get("port"), "chassis", target.get("chassis"), "id", "pci." + index}, t.place(e)...)...))
	case e.is("type", "usb") && e.is("model", "piix3-uhci", "qemu-xhci", "ich9-ehci1", "ich9-uhci1", "ich9-uhci2", "ich9-uhci3"):
		driver := map[string]string{"piix3-uhci": "piix3-usb-uhci", "qemu-xhci": "qemu-xhci"}[e.get("model")]
		if driver == "" {
			driver = strings.Replace(e.get("model"), "ich9-", "ich9-usb-", 1)
		}
		var pairs []string
		ports := ""
		if driver == "qemu-xhci" {
			if ports = e.get("ports"); ports != "" {
				pairs = []string{"p2", ports, "p3", ports}
			}
		}
		if master := e.one("master"); master.name != "" {
			pairs = append(pairs, "masterbus", controllerID("usb", index)+".0", "firstport", master.get("startport"))
		}
		e.one("alias").skip()
		id := controllerID("usb", index)
		if e.has("master") { // the companions of one share its index
			t.counts["companion"]++
			id = fmt.Sprintf("%s-companion%d", id, t.counts["companion"])
		}
		t.add("-device", option(driver, append(append([]string{"id", id}, pairs...), t.place(e)...)...))
	case e.is("type", "virtio-serial"):
		t.controllerDevice(e, "virtio-serial-pci", "virtio-serial", index)
	case e.is("type", "scsi") && e.is("model", "virtio-scsi"):
		t.controllerDevice(e, "virtio-scsi-pci", "scsi", index)
	default:
		e.taken = false
	}
}

func controllerID(kind, index string) string { return kind + cmp.Or(index, "0") }

func (t *translation) controllerDevice(e *element, driver, kind, index string) {
	e.one("alias").skip()
	t.add("-device", option(driver, append([]string{"id", controllerID(kind, index)}, t.place(e)...)...))
}

func (t *translation) disk(e *element) {
	e.get("snapshot")
	source := e.one("source")
	file := ""
	switch {
	case e.is("type", "file"):
		file = source.get("file")
	case e.is("type", "block"):
		file = source.get("dev")
	default:
		e.taken = false
		return
	}
	source.get("index")
	cd := e.is("device", "cdrom")
	e.is("device", "disk") // another is named
	target := e.one("target")
	dev, bus := target.get("dev"), target.get("bus")
	driver := e.one("driver")
	driver.is("name", "qemu")
	if b := e.one("backingStore"); len(b.kids) == 0 && len(b.attrs) == 0 { // what an image is based on is in the image
		b.taken = true
	}
	readonly := ""
	if e.has("readonly") || cd {
		readonly = "on"
	}
	drive := "drive-" + cmp.Or(dev, "disk")
	pairs := []string{"id", drive, "format", driver.get("type"), "cache", driver.get("cache"), "aio", driver.get("io"), "discard", driver.get("discard"),
		"detect-zeroes", driver.get("detect_zeroes"), "readonly", readonly}
	if cd && file == "" {
		pairs = []string{"id", drive, "readonly", "on"}
	} else if file == "" {
		e.taken = false
		return
	}
	a := e.one("address")
	suffix := map[bool]string{false: "hd", true: "cd"}[cd]
	serial := e.one("serial").words()
	var device string
	switch {
	case bus == "virtio":
		device = option("virtio-blk-pci", append([]string{"drive", drive, "id", t.id(e, "virtio-disk"), "serial", serial}, t.place(e)...)...)
	case (bus == "ide" || bus == "sata") && a.is("type", "drive"):
		number, unit := a.get("bus"), a.get("unit")
		if bus == "sata" { // a port for each
			number, unit = unit, ""
		}
		a.is("controller", "0")
		a.is("target", "0")
		device = option("ide-"+suffix, "drive", drive, "id", t.id(e, bus), "bus", "ide."+cmp.Or(number, "0"), "unit", unit, "serial", serial)
	case bus == "scsi" && a.is("type", "drive"):
		device = option("scsi-"+suffix, "drive", drive, "id", t.id(e, "scsi-disk"), "bus", controllerID("scsi", a.get("controller"))+".0",
			"channel", a.get("bus"), "scsi-id", a.get("target"), "lun", a.get("unit"), "serial", serial)
	default:
		e.taken = false
		return
	}
	if b := e.one("boot").get("order"); b != "" {
		device += ",bootindex=" + b
	}
	t.add("-drive", option("if=none", append([]string{"file", file}, pairs...)...), "-device", device)
	if file != "" {
		t.note(e, "%s has to be there, too, or another in its place", file)
	}
}

func (t *translation) network(e *element) {
	source := e.one("source")
	model := e.one("model").get("type")
	driver := map[string]string{"virtio": "virtio-net-pci", "e1000": "e1000", "e1000e": "e1000e", "rtl8139": "rtl8139"}[model]
	bridge := ""
	kind := "bridge"
	switch {
	case driver == "":
		e.taken = false
		return
	case e.is("type", "user"):
		kind = "user"
	case e.is("type", "bridge"):
		bridge = source.get("bridge")
		t.note(e, "the bridge %s has to be there", bridge)
	case e.is("type", "network"):
		bridge = source.get("bridge") // a running domain's XML has it
		source.get("portid")
		t.note(e, "libvirt's network %s: a bridge has to be there, by the name of %s", source.get("network"), cmp.Or(bridge, "(take the XML of the running domain)"))
	default:
		e.taken = false
		return
	}
	e.one("target").get("dev") // the tap device here
	id := t.id(e, "net")
	t.add("-netdev", option(kind, "id", "host"+id, "br", bridge))
	pairs := []string{"netdev", "host" + id, "id", id, "mac", e.one("mac").get("address")}
	if b := e.one("boot").get("order"); b != "" {
		pairs = append(pairs, "bootindex", b)
	}
	t.add("-device", option(driver, append(pairs, t.place(e)...)...))
}

func (t *translation) serial(e *element) {
	id := t.id(e, "serial")
	source := e.one("source")
	target := e.one("target")
	var backend string
	switch {
	case e.is("type", "pty"):
		source.get("path")
		e.get("tty")
		backend = option("pty", "id", "char"+id)
	case e.is("type", "file"):
		backend = option("file", "id", "char"+id, "path", source.get("path"), "append", source.get("append"))
		t.note(e, "what the guest prints goes to %s there", source.get("path"))
	default:
		e.taken = false
		return
	}
	target.is("type", "isa-serial")
	target.one("model").is("name", "isa-serial")
	t.add("-chardev", backend, "-device", option("isa-serial", "chardev", "char"+id, "id", id, "index", target.get("port")))
}

func (t *translation) input(e *element) {
	switch {
	case e.is("bus", "ps2") && e.is("type", "mouse", "keyboard"):
		builtIn(e)
	case e.is("bus", "usb") && e.is("type", "tablet", "mouse", "keyboard"):
		driver := map[string]string{"tablet": "usb-tablet", "mouse": "usb-mouse", "keyboard": "usb-kbd"}[e.get("type")]
		a := e.one("address")
		bus := ""
		if a.is("type", "usb") {
			bus = controllerID("usb", a.get("bus")) + ".0"
		}
		t.add("-device", option(driver, "id", t.id(e, "input"), "bus", bus, "port", a.get("port")))
	default:
		e.taken = false
	}
}

func (t *translation) video(e *element) {
	m := e.one("model")
	m.is("heads", "1")
	m.is("primary", "yes")
	switch {
	case m.is("type", "none"):
		return
	case m.is("type", "vga", "cirrus"):
		size := ""
		if kib, err := strconv.ParseUint(m.get("vram"), 10, 32); err == nil && kib>>10 > 0 {
			size = fmt.Sprint(kib >> 10)
		}
		t.device(e, map[string]string{"vga": "VGA", "cirrus": "cirrus-vga"}[m.get("type")], "video", "vgamem_mb", size)
	case m.is("type", "virtio"):
		t.device(e, "virtio-vga", "video")
	default:
		e.taken = false
	}
}

func (t *translation) rng(e *element) {
	b := e.one("backend")
	if !e.is("model", "virtio") || !b.is("model", "random") {
		e.taken = false
		return
	}
	id := t.id(e, "rng")
	t.add("-object", option("rng-random", "id", "obj"+id, "filename", b.words()))
	t.add("-device", option("virtio-rng-pci", append([]string{"rng", "obj" + id, "id", id}, t.place(e)...)...))
}
