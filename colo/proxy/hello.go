package proxy

import (
	"encoding/binary"
	"fmt"
	"io"
)

// Each side begins a connection with a message of what both must have in common:
//
//	"COLOprx1" | byte side | byte mode | byte virtio-net header | 0 | be32 limit
const (
	helloMagic = "COLOprx1"
	helloLen   = len(helloMagic) + 8

	sidePrimary   = 'P'
	sideSecondary = 'S'

	modeCompare    = 'C'
	modeContinuous = 'B'
)

// A hello is the first message of a side.
type hello struct {
	side, mode byte
	vnetHdr    int
	limit      int
}

func newHello(side byte, continuous bool, vnetHdr, limit int) hello {
	h := hello{side: side, mode: modeCompare, vnetHdr: vnetHdr, limit: limit}
	if continuous {
		h.mode = modeContinuous
	}
	return h
}

func (h hello) write(w io.Writer) error {
	b := append(make([]byte, 0, helloLen), helloMagic...)
	b = append(b, h.side, h.mode, byte(h.vnetHdr), 0)
	b = binary.BigEndian.AppendUint32(b, uint32(h.limit))
	_, err := w.Write(b)
	return err
}

// expect reads the hello of the other side, which must have the other side's name and
// otherwise be equal to h.
func (h hello) expect(r io.Reader) error {
	b := make([]byte, helloLen)
	if _, err := io.ReadFull(r, b); err != nil {
		return fmt.Errorf("proxy: greeting: %w", err)
	}
	got := hello{
		side: b[8], mode: b[9], vnetHdr: int(b[10]),
		limit: int(binary.BigEndian.Uint32(b[12:])),
	}
	switch {
	case string(b[:8]) != helloMagic || b[11] != 0:
		return fmt.Errorf("%w: it does not greet as one", ErrPeer)
	case got.side == h.side || got.side != sidePrimary && got.side != sideSecondary:
		return fmt.Errorf("%w: it is side %q, as this one is %q", ErrPeer, got.side, h.side)
	case got.mode != h.mode:
		return fmt.Errorf("%w: one side compares, the other is continuous", ErrPeer)
	case got.vnetHdr != h.vnetHdr:
		return fmt.Errorf("%w: virtio-net headers of %d bytes there, %d here", ErrPeer, got.vnetHdr, h.vnetHdr)
	case got.limit != h.limit:
		return fmt.Errorf("%w: a limit of %d bytes there, %d here", ErrPeer, got.limit, h.limit)
	}
	return nil
}
