package multifd

import (
	"fmt"

	"github.com/gocolo/lockstep/qemufile"
)

const (
	// Magic is the first word of a channel and of every packet (MULTIFD_MAGIC).
	// The first word of a main stream is 0x5145564d.
	Magic = 0x11223344
	// Version is the format's version; there is only this one (MULTIFD_VERSION).
	Version = 1
)

// Init is the first thing on a channel, 64 bytes (MultiFDInit_t).
type Init struct {
	UUID    [16]byte // of the VM; zeros if it has none
	Channel uint8    // counted from 0
}

// Put writes the packet. The writer's error sticks.
func (i Init) Put(w *qemufile.Writer) {
	w.PutBE32(Magic)
	w.PutBE32(Version)
	for _, b := range i.UUID {
		w.PutByte(b)
	}
	w.PutByte(i.Channel)
	for range 7 + 32 { // reserved
		w.PutByte(0)
	}
}

// ReadInit reads the packet. It checks that the packet names the VM with this uuid
// and a channel below channels. Errors are [*Error], with [ErrMagic], [ErrVersion],
// [ErrUUID], [ErrChannel] or the error of r. Reserved bytes are ignored.
func ReadInit(r *qemufile.Reader, uuid [16]byte, channels int) (Init, error) {
	var i Init
	at := r.Offset()
	p := r.Next(64)
	if err := r.Err(); err != nil {
		return i, wrap(at, err)
	}
	if err := checkMagic(p); err != nil {
		return i, wrap(at, err)
	}
	copy(i.UUID[:], p[8:])
	i.Channel = p[24]
	switch {
	case i.UUID != uuid:
		return i, wrap(at, fmt.Errorf("%w: %x", ErrUUID, i.UUID))
	case int(i.Channel) >= channels:
		return i, wrap(at, fmt.Errorf("%w: %d of %d", ErrChannel, i.Channel, channels))
	}
	return i, nil
}
