package acpi

import "encoding/binary"

// AML opcodes. (ACPI 4.0, section 19.2.)
const (
	opZero    = 0x00
	opName    = 0x08
	opByte    = 0x0a
	opDWord   = 0x0c
	opScope   = 0x10
	opBuffer  = 0x11
	opPackage = 0x12
	opExt     = 0x5b
	opDevice  = 0x82 // after opExt
)

// dsdt returns the body of the Differentiated System Description Table:
//
//	Name (\_S5, Package () { SleepOff, 0, 0, 0 })
//	Scope (\_SB) {
//	    Device (PCI0) {
//	        Name (_HID, EisaId ("PNP0A03"))
//	        Name (_CRS, ResourceTemplate () { … })
//	        Name (_PRT, Package () { Package () { slot, INTA, 0, interrupt }, … })
//	    }
//	}
func (m Machine) dsdt() []byte {
	var routes [][]byte
	for _, r := range m.PCI {
		routes = append(routes, packageOf(dword(uint32(r.Slot)<<16|0xffff), []byte{opZero}, []byte{opZero}, byteOf(r.Interrupt)))
	}
	bus := join([]byte("PCI0"),
		name("_HID", dword(0x030ad041)), // PNP0A03, compressed
		name("_CRS", buffer(busResources())),
		name("_PRT", packageOf(routes...)))
	return join(
		name("\\_S5_", packageOf(byteOf(m.SleepOff), []byte{opZero}, []byte{opZero}, []byte{opZero})),
		join([]byte{opScope}, sized(join([]byte("\\_SB_"), []byte{opExt, opDevice}, sized(bus)))))
}

// busResources returns the resources that the bus passes on: bus 0, all ports but those of the
// configuration space, and the memory between 3 GiB and the interrupt controllers. (ACPI
// 4.0, section 6.4.)
func busResources() []byte {
	const (
		busNumbers, ports, memory = 2, 1, 0 // resource types
		fixed                     = 0x0c    // both ends, passed on
		allPorts, readWrite       = 3, 1
	)
	le := binary.LittleEndian
	word := func(kind, flags byte, first, last uint16) []byte {
		b := []byte{0x88, 13, 0, kind, fixed, flags}
		for _, v := range []uint16{0, first, last, 0, last - first + 1} {
			b = le.AppendUint16(b, v)
		}
		return b
	}
	const first, last = 0xc0000000, 0xfebfffff
	window := []byte{0x87, 23, 0, memory, fixed, readWrite}
	for _, v := range []uint32{0, first, last, 0, last - first + 1} {
		window = le.AppendUint32(window, v)
	}
	return join(
		word(busNumbers, 0, 0, 0),
		[]byte{0x47, 1, 0xf8, 0x0c, 0xf8, 0x0c, 1, 8}, // its own ports
		word(ports, allPorts, 0, 0xcf7),
		word(ports, allPorts, 0xd00, 0xffff),
		window,
		[]byte{0x79, 0}) // end
}

func name(path string, value []byte) []byte { return join([]byte{opName}, []byte(path), value) }
func byteOf(v byte) []byte                  { return []byte{opByte, v} }
func dword(v uint32) []byte                 { return binary.LittleEndian.AppendUint32([]byte{opDWord}, v) }

func buffer(p []byte) []byte {
	return join([]byte{opBuffer}, sized(join(byteOf(byte(len(p))), p)))
}

func packageOf(elements ...[]byte) []byte {
	return join([]byte{opPackage}, sized(join([]byte{byte(len(elements))}, join(elements...))))
}

// sized puts before body the length of both. (PkgLength, section 19.2.4.)
func sized(body []byte) []byte {
	if n := len(body) + 1; n < 1<<6 {
		return append([]byte{byte(n)}, body...)
	}
	n := len(body) + 2
	return append([]byte{1<<6 | byte(n&0xf), byte(n >> 4)}, body...)
}

func join(parts ...[]byte) (out []byte) {
	for _, p := range parts {
		out = append(out, p...)
	}
	return out
}
