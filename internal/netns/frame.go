package netns

import (
	"encoding/binary"

	"github.com/gocolo/lockstep/internal/packet"
)

// Complete completes the checksum of a frame that is about to enter a stack, behind a
// virtio-net header of vnet bytes. The kernel believes a checksum that is partial, and
// would not look at the data.
func Complete(frame []byte, vnet int) {
	if h := packet.VNetOf(frame, vnet); h != nil && h.Complete(frame[vnet:]) {
		h[0] &^= packet.VNetNeedsCsum
	}
}

// Retime adds to the timestamp of a segment and to its echo, as if the clock of the
// stack that it comes from, or goes to, were another.
func Retime(frame []byte, vnet int, value, echo uint32) {
	var p packet.Packet
	if p.ParseVNet(frame, vnet); value == 0 && echo == 0 || !p.IsTCP() {
		return
	}
	h := p.TCP()
	for opts := h.Options(); ; {
		kind, data, rest, ok := packet.NextOption(opts)
		if !ok {
			break
		}
		if kind == packet.OptTimestamps && len(data) == 8 {
			binary.BigEndian.PutUint32(data, binary.BigEndian.Uint32(data)+value)
			if h.Flags()&packet.ACK != 0 {
				binary.BigEndian.PutUint32(data[4:], binary.BigEndian.Uint32(data[4:])+echo)
			}
		}
		opts = rest
	}
	if !packet.VNetOf(frame, vnet).PartialChecksum(&p, packet.TCPChecksumAt) {
		h.SetChecksum(p.TCPChecksum())
	}
}
