package acpi

import (
	"encoding/binary"
	"encoding/hex"
	"strings"
	"testing"
)

var machine = Machine{
	VCPUs: 3, PMEvent: 0x6100, PMControl: 0x6104, PMTimer: 0x608, SCI: 11, Reset: 0xcf9, ResetWith: 6,
	Century: 0x32, SleepOff: 5, PCI: []PCIInterrupt{{1, 9}, {2, 10}},
}

const base = 0xf0000

// tables returns the tables that the root leads to, by signature, the way that an
// operating system finds them.
func tables(t *testing.T, p []byte) map[string][]byte {
	t.Helper()
	le := binary.LittleEndian
	if string(p[:8]) != "RSD PTR " || sum(p[:20]) != 0 || sum(p[:36]) != 0 || p[15] != 2 {
		t.Fatalf("no root: %x", p[:36])
	}
	list := map[string][]byte{}
	at := func(address uint64) []byte {
		q := p[address-base:]
		q = q[:le.Uint32(q[4:])]
		if sum(q) != 0 {
			t.Errorf("%s: checksum", q[:4])
		}
		list[string(q[:4])] = q
		return q
	}
	xsdt := at(le.Uint64(p[24:]))
	for i := 36; i < len(xsdt); i += 8 {
		at(le.Uint64(xsdt[i:]))
	}
	if fadt := list["FACP"]; fadt != nil {
		if le.Uint64(fadt[140:]) != uint64(le.Uint32(fadt[40:])) {
			t.Error("two DSDTs")
		}
		at(le.Uint64(fadt[140:]))
	}
	return list
}

func sum(p []byte) (s byte) {
	for _, b := range p {
		s += b
	}
	return s
}

func TestTheTablesAreFoundFromTheRoot(t *testing.T) {
	p, err := Tables(machine, base)
	if err != nil {
		t.Fatal(err)
	}
	list := tables(t, p)
	fadt, madt := list["FACP"], list["APIC"]
	if fadt == nil || madt == nil || list["DSDT"] == nil {
		t.Fatal("a table is missing")
	}
	le := binary.LittleEndian
	if len(fadt) != 244 || fadt[8] != 4 {
		t.Errorf("FADT of %d bytes, revision %d", len(fadt), fadt[8])
	}
	for at, want := range map[int]uint32{56: 0x6100, 64: 0x6104, 76: 0x608, 112: 0x531} {
		if got := le.Uint32(fadt[at:]); got != want {
			t.Errorf("FADT at %d: %#x, want %#x", at, got, want)
		}
	}
	if got := hex.EncodeToString(fadt[116:129]); got != "01080001f90c00000000000006" {
		t.Error("reset register", got)
	}
	for at, want := range map[int]string{
		46:  "0b00",                     // interrupt of the power block
		88:  "040200",                   // lengths of PM1's registers
		91:  "04",                       // and of the timer
		108: "32",                       // century
		109: "0d00",                     // legacy devices, no VGA, no MSI
		148: "012000030061000000000000", // PM1's status and enable registers,
		172: "011000020461000000000000", // its control register,
		208: "012000030806000000000000", // and the timer, each as wide as it is
	} {
		if got := hex.EncodeToString(fadt[at:][:len(want)/2]); got != want {
			t.Errorf("FADT at %d: %s, want %s", at, got, want)
		}
	}
	if got := hex.EncodeToString(madt[36:44]); got != "0000e0fe01000000" {
		t.Error("local APICs, and old interrupt controllers beside them:", got)
	}
	var cpus []byte
	for q := madt[44:]; len(q) > 0; q = q[q[1]:] {
		switch q[0] {
		case 0:
			cpus = append(cpus, q[3])
			if q[4] != 1 {
				t.Error("a CPU that is not enabled")
			}
		case 1:
			if q[2] != 0 || le.Uint32(q[4:]) != 0xfec00000 || le.Uint32(q[8:]) != 0 { // KVM's is number 0 too
				t.Errorf("IOAPIC %x", q[:12])
			}
		}
	}
	if string(cpus) != "\x00\x01\x02" {
		t.Errorf("CPUs %x", cpus)
	}
}

// The bytes of the DSDT, which Linux 6.1 was seen to take.
func TestTheDSDTIsWhatItWas(t *testing.T) {
	want := strings.Join([]string{
		"08 5c5f53355f 12 07 04 0a05 00 00 00",     // Name (\_S5, Package () {5, 0, 0, 0})
		"10 4709 5c5f53425f",                       // Scope (\_SB)
		"5b82 4e08 50434930",                       // Device (PCI0)
		"08 5f484944 0c 41d00a03",                  // Name (_HID, EisaId ("PNP0A03"))
		"08 5f435253 11 4805 0a54",                 // Name (_CRS, Buffer (84)
		"880d00 02 0c 00 0000 0000 0000 0000 0100", // bus 0
		"4701f80cf80c0108",                         // ports 0xcf8 to 0xcff
		"880d00 01 0c 03 0000 0000 f70c 0000 f80c", // ports below
		"880d00 01 0c 03 0000 000d ffff 0000 00f3", // and above
		"871700 00 0c 01 00000000 000000c0 ffffbffe 00000000 0000c03e",
		"7900",
		"08 5f505254 12 1a 02",            // Name (_PRT, Package (2)
		"12 0b 04 0c ffff0100 00 00 0a09", // slot 1, INTA, interrupt 9
		"12 0b 04 0c ffff0200 00 00 0a0a", // slot 2, INTA, interrupt 10
	}, "")
	got := hex.EncodeToString(machine.dsdt())
	if want = strings.ReplaceAll(want, " ", ""); got != want {
		t.Errorf("\n got %s\nwant %s", got, want)
	}
}

func TestLengthsAreEncodedInOneByteOrTwo(t *testing.T) {
	for n, want := range map[int]string{0: "01", 62: "3f", 63: "4104", 0x7ff: "4180", 4093: "4fff"} {
		if got := hex.EncodeToString(sized(make([]byte, n))[:len(want)/2]); got != want {
			t.Errorf("%d bytes: %s, want %s", n, got, want)
		}
	}
}

func TestAMachineThatCannotBeDescribedIsRefused(t *testing.T) {
	for _, n := range []int{-1, 0, 256} {
		m := machine
		m.VCPUs = n
		if _, err := Tables(m, base); err == nil {
			t.Errorf("%d vCPUs", n)
		}
	}
	if _, err := Tables(machine, base+8); err == nil {
		t.Error("a crooked address")
	}
}
