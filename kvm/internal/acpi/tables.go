package acpi

import (
	"encoding/binary"
	"fmt"
)

// Machine is described by the tables.
type Machine struct {
	VCPUs     int    // APIC IDs from 0 on
	PMEvent   uint16 // port of PM1's status and enable registers
	PMControl uint16 // port of PM1's control register
	PMTimer   uint16
	SCI       uint8 // interrupt of the power block
	Reset     uint16
	ResetWith uint8 // what is written to Reset to reset the machine
	Century   uint8 // index of the century in CMOS
	SleepOff  uint8 // SLP_TYP that switches off
	PCI       []PCIInterrupt
}

// PCIInterrupt says which interrupt INTA of a slot is.
type PCIInterrupt struct {
	Slot      uint8
	Interrupt uint8
}

// MaxVCPUs is the most that Tables describes: an APIC ID has a byte, and 255 is
// everybody.
const MaxVCPUs = 255

// Tables returns the tables as they must stand in memory at address base, below
// 4 GiB and aligned to 16 bytes. The RSDP comes first. (ACPI 4.0, section 5.2.)
func Tables(m Machine, base uint32) ([]byte, error) {
	if m.VCPUs < 1 || m.VCPUs > MaxVCPUs || base%16 != 0 {
		return nil, fmt.Errorf("acpi: %d vCPUs, tables at %#x", m.VCPUs, base)
	}
	le := binary.LittleEndian
	out := make([]byte, rsdpSize)
	place := func(table []byte) uint32 {
		for len(out)%16 != 0 {
			out = append(out, 0)
		}
		at := base + uint32(len(out))
		out = append(out, table...)
		return at
	}
	dsdt := place(table("DSDT", 2, m.dsdt()))
	fadt := place(table("FACP", 4, m.fadt(dsdt)))
	madt := place(table("APIC", 3, m.madt()))
	xsdt := place(table("XSDT", 1, le.AppendUint64(le.AppendUint64(nil, uint64(fadt)), uint64(madt))))

	rsdp := out[:rsdpSize]
	copy(rsdp, "RSD PTR ")
	copy(rsdp[9:], oem)
	rsdp[15] = 2
	le.PutUint32(rsdp[20:], rsdpSize)
	le.PutUint64(rsdp[24:], uint64(xsdt))
	rsdp[8] = checksum(rsdp[:20])
	rsdp[32] = checksum(rsdp)
	return out, nil
}

const (
	rsdpSize   = 36
	headerSize = 36
	oem        = "LOCKST"
)

// table puts the header before a table's body.
func table(signature string, revision byte, body []byte) []byte {
	le := binary.LittleEndian
	t := make([]byte, headerSize, headerSize+len(body))
	copy(t, signature)
	le.PutUint32(t[4:], uint32(headerSize+len(body)))
	t[8] = revision
	copy(t[10:], oem)
	copy(t[16:], "LOCKSTEP")
	le.PutUint32(t[24:], 1)
	copy(t[28:], "LOCK")
	le.PutUint32(t[32:], 1)
	t = append(t, body...)
	t[9] = checksum(t)
	return t
}

// checksum returns what makes the sum of all bytes 0.
func checksum(p []byte) (c byte) {
	for _, b := range p {
		c -= b
	}
	return c
}

// fadt returns the body of the Fixed ACPI Description Table, version 4. (ACPI 4.0,
// section 5.2.9.) The machine has no system management mode and is not
// hardware-reduced: it has the legacy interrupts.
func (m Machine) fadt(dsdt uint32) []byte {
	const (
		wbinvd, noPowerButton, noSleepButton, timer32, resetRegister = 1 << 0, 1 << 4, 1 << 5, 1 << 8, 1 << 10
		legacyDevices, noVGA, noMSI                                  = 1 << 0, 1 << 2, 1 << 3
	)
	le := binary.LittleEndian
	f := make([]byte, 244)
	le.PutUint32(f[40:], dsdt)
	le.PutUint16(f[46:], uint16(m.SCI))
	le.PutUint32(f[56:], uint32(m.PMEvent))
	le.PutUint32(f[64:], uint32(m.PMControl))
	le.PutUint32(f[76:], uint32(m.PMTimer))
	f[88], f[89], f[91] = 4, 2, 4                    // lengths of the three
	le.PutUint16(f[96:], 0xffff)                     // no C2
	le.PutUint16(f[98:], 0xffff)                     // no C3
	f[108] = m.Century                               // index in CMOS
	le.PutUint16(f[109:], legacyDevices|noVGA|noMSI) // IAPC_BOOT_ARCH
	le.PutUint32(f[112:], wbinvd|noPowerButton|noSleepButton|timer32|resetRegister)
	address(f[116:], m.Reset, 8)
	f[128] = m.ResetWith
	le.PutUint64(f[140:], uint64(dsdt))
	address(f[148:], m.PMEvent, 32)
	address(f[172:], m.PMControl, 16)
	address(f[208:], m.PMTimer, 32)
	return f[headerSize:]
}

// address writes a Generic Address Structure of a port. (ACPI 4.0, section 5.2.3.1.)
func address(p []byte, port uint16, bits byte) {
	const ioSpace = 1
	p[0], p[1], p[3] = ioSpace, bits, bits/16+1 // access as wide as it is: 1, 2, 3
	binary.LittleEndian.PutUint64(p[4:], uint64(port))
}

// madt returns the body of the Multiple APIC Description Table. (ACPI 4.0, section
// 5.2.12.) The inputs of the IOAPIC are the legacy interrupts, one to one.
func (m Machine) madt() []byte {
	const localAPIC, ioAPIC, pcATCompatible = 0xfee00000, 0xfec00000, 1
	le := binary.LittleEndian
	b := le.AppendUint32(le.AppendUint32(nil, localAPIC), pcATCompatible)
	for i := range m.VCPUs {
		b = append(b, 0, 8, byte(i), byte(i), 1, 0, 0, 0) // enabled
	}
	b = append(b, 1, 12, 0, 0)
	b = le.AppendUint32(b, ioAPIC)
	return le.AppendUint32(b, 0)
}
