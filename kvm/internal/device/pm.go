package device

import (
	"math/bits"
	"sync"
	"time"

	"github.com/gocolo/lockstep/vmstate"
)

// Sizes of the power block's parts in ports. (ACPI 4.0, section 4.7.)
const (
	PMControlPorts = 6 // PM1 status, enable and control
	PMTimerPorts   = 4
)

// SleepOff is the sleep type that switches the machine off, SLP_TYP of \_S5.
const SleepOff = 5

const pmTimerHz = 3579545

// PM is the ACPI power block: the timer, and the register that switches the machine
// off. No event is ever pending. The timer counts host time; in saved state it is a
// count from which another host goes on, so that it never steps back.
type PM struct {
	now func() time.Time

	mu    sync.Mutex
	since time.Time // when the timer was at base
	base  uint64
	pmState
	saved pmState
	count uint64 // what the timer says, in the state that is saved
}

// pmState is the registers of a power block.
type pmState struct{ enable, control uint16 }

const sciEnabled = 1 // there is no system management mode to take over from

// NewPM returns a power block whose timer starts at 0.
func NewPM(now func() time.Time) *PM { return &PM{now: now, since: now()} }

// PMTimer are the ports of its timer, PMControl those of its other registers.
type (
	PMTimer   struct{ *PM }
	PMControl struct{ *PM }
)

// ticks returns the timer's count. mu is held.
func (p *PM) ticks() uint64 {
	hi, lo := bits.Mul64(uint64(max(p.now().Sub(p.since), 0)), pmTimerHz)
	n, _ := bits.Div64(hi, lo, uint64(time.Second))
	return p.base + n
}

// In implements Ports: all of it at a time, or a part.
func (t PMTimer) In(off uint16, p []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	put(p, uint32(t.ticks())>>(8*(off&3)))
}

// Out implements Ports. The timer cannot be set.
func (t PMTimer) Out(uint16, []byte) error { return nil }

// In implements Ports.
func (c PMControl) In(off uint16, p []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var reg [PMControlPorts + 4]byte
	put(reg[2:4], uint32(c.enable))
	put(reg[4:6], uint32(c.control|sciEnabled))
	copy(p, reg[min(off, PMControlPorts):])
}

// Out implements Ports.
func (c PMControl) Out(off uint16, p []byte) error {
	const sleep, typeAt = 1 << 13, 10
	c.mu.Lock()
	defer c.mu.Unlock()
	v := uint16(value(p))
	switch {
	case len(p) != 2:
	case off == 2:
		c.enable = v
	case off == 4:
		c.control = v &^ sleep
		if v&sleep != 0 && v>>typeAt&7 == SleepOff {
			return ErrPowerOff
		}
	}
	return nil
}

// Save implements State.
func (p *PM) Save() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.saved, p.count = p.pmState, p.ticks()
}

// Apply implements State.
func (p *PM) Apply() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pmState, p.base, p.since = p.saved, p.count, p.now()
}

// VMState implements vmstate.Device.
func (p *PM) VMState(f *vmstate.Fields) {
	f.Uint16("enable", &p.saved.enable)
	f.Uint16("control", &p.saved.control)
	f.Uint64("timer", &p.count)
}
