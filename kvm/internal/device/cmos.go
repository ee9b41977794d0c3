package device

import (
	"sync"
	"time"

	"github.com/gocolo/lockstep/vmstate"
)

// CMOSPorts is the number of ports of a CMOS.
const CMOSPorts = 2

// CMOS is a PC's clock and its 128 bytes of memory. The clock is the host's, UTC,
// in 24 hours and BCD, and cannot be set. (Motorola MC146818A data sheet; the
// century is where ACPI's FADT says.)
type CMOS struct {
	now func() time.Time

	mu sync.Mutex
	cmosState
	saved cmosState
}

// Like the chip, the clock says for this long before each new second that an update is in
// progress. A driver that begins to read while it does not say so has time to read all
// registers before the second changes.
const (
	cmosUpdate   = (244 + 1984) * time.Microsecond
	cmosUpdating = 1 << 7
)

// cmosState is saved by a CMOS: the index that was written last, and the registers.
type cmosState struct {
	index uint8
	data  [128]byte
}

// Century is the index of the register that has the first two digits of the year.
const Century = 0x32

// NewCMOS returns a CMOS of a machine with so many bytes of memory below 4 GiB.
func NewCMOS(memory uint64, now func() time.Time) *CMOS {
	c := &CMOS{now: now}
	extended := min(memory-min(memory, 16<<20), 1<<32-1) >> 16 // 64 KiB units above 16 MiB
	c.data[0x34], c.data[0x35] = byte(extended), byte(extended>>8)
	return c
}

// In implements Ports.
func (c *CMOS) In(off uint16, p []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	ones(p)
	if off == 1 && len(p) == 1 {
		p[0] = c.read(c.index & 0x7f)
	}
}

func (c *CMOS) read(index uint8) byte {
	t := c.now().UTC()
	switch index {
	case 0x00:
		return bcd(t.Second())
	case 0x02:
		return bcd(t.Minute())
	case 0x04:
		return bcd(t.Hour())
	case 0x06:
		return bcd(int(t.Weekday()) + 1)
	case 0x07:
		return bcd(t.Day())
	case 0x08:
		return bcd(int(t.Month()))
	case 0x09:
		return bcd(t.Year() % 100)
	case Century:
		return bcd(t.Year() / 100)
	case 0x0a:
		if time.Second-time.Duration(t.Nanosecond()) <= cmosUpdate {
			return 0x26 | cmosUpdating
		}
		return 0x26 // 32 kHz
	case 0x0b:
		return 0x02 // 24 hours, BCD
	case 0x0c:
		return 0 // no interrupt
	case 0x0d:
		return 0x80 // the battery is good
	}
	return c.data[index]
}

func bcd(v int) byte { return byte(v/10<<4 | v%10) }

// Out implements Ports.
func (c *CMOS) Out(off uint16, p []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case len(p) != 1:
	case off == 0:
		c.index = p[0]
	default:
		c.data[c.index&0x7f] = p[0]
	}
	return nil
}

// Save implements State.
func (c *CMOS) Save() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.saved = c.cmosState
}

// Apply implements State.
func (c *CMOS) Apply() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cmosState = c.saved
}

// VMState implements vmstate.Device.
func (c *CMOS) VMState(f *vmstate.Fields) {
	f.Uint8("index", &c.saved.index)
	f.Bytes("data", c.saved.data[:])
}
