//go:build linux && amd64

package pc

import (
	"errors"
	"fmt"

	"github.com/gocolo/lockstep/kvm/internal/device"
)

// Card is a network card of a Machine.
type Card struct {
	m      *Machine
	uplink Uplink
	net    *device.Net
}

// ReceivePacket gives the guest a copy of an Ethernet frame of 14 to 65,535 bytes. With
// NIC.VNetHdr a header comes first, and the frame behind it has up to 65,557 bytes. Another
// length, or a header that does not fit the frame, is ErrFrame. It never blocks: a frame waits in
// the card while the guest has no room ready, and is dropped with ErrFull if the card has no room
// either. Frames that wait are part of the state of the card, even those that came while the guest
// was paused. So a frame that the other guest of a pair is to receive after a checkpoint must not
// be given before Resume.
func (c *Card) ReceivePacket(frame []byte) error {
	if c.m.closed.Load() {
		return ErrClosed
	}
	switch err := c.net.Receive(c.m.gate, frame); {
	case errors.Is(err, device.ErrFull):
		return ErrFull
	case errors.Is(err, device.ErrFrame):
		return fmt.Errorf("%w of %d bytes", ErrFrame, len(frame))
	default:
		return err
	}
}

// Dropped returns how many frames the card has dropped, from the guest and to it.
func (c *Card) Dropped() uint64 { return c.net.Dropped() }
