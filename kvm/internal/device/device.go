package device

import (
	"errors"
	"log/slog"

	"github.com/gocolo/lockstep/vmstate"
)

// Ports is a range of ports. Both methods are called by vCPUs, several at a time,
// with an offset in the range and 1, 2 or 4 bytes; In fills p with what the guest
// reads. An error of Out ends the guest's run: ErrPowerOff, ErrReset.
type Ports interface {
	In(off uint16, p []byte)
	Out(off uint16, p []byte) error
}

// State is the state of a device between the device and a stream.
type State interface {
	vmstate.Device
	// Save copies the device's state. The guest is paused.
	Save()
	// Apply makes what was loaded the device's state. The guest is paused.
	Apply()
}

// What a guest can ask for by writing a port.
var (
	ErrPowerOff = errors.New("power off")
	ErrReset    = errors.New("reset")
)

// Line is an input of the interrupt controllers.
type Line func(level bool)

// irq remembers the level of a device's interrupt line, and calls the line only if
// the level changes.
type irq struct {
	line  Line
	level bool
}

func (i *irq) set(level bool) {
	if i.level != level {
		i.level = level
		i.line(level)
	}
}

// force calls the line even if it has that level already: the interrupt controllers
// may have been loaded since, with another level.
func (i *irq) force(level bool) {
	i.level = level
	i.line(level)
}

// discard is the log of a device that has none.
var discard = slog.New(slog.DiscardHandler)

func logOr(l *slog.Logger) *slog.Logger {
	if l == nil {
		return discard
	}
	return l
}

// ones fills p with ones, which a bus reads where no device answers.
func ones(p []byte) {
	for i := range p {
		p[i] = 0xff
	}
}

// value returns the little-endian number that a guest wrote.
func value(p []byte) (v uint32) {
	for i, b := range p {
		v |= uint32(b) << (8 * i)
	}
	return v
}

// put lets a guest read the little-endian number v.
func put(p []byte, v uint32) {
	for i := range p {
		p[i] = byte(v >> (8 * i))
	}
}
