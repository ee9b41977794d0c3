package trial

import (
	"encoding/binary"
	"errors"

	"github.com/gocolo/lockstep/internal/packet"
)

// MaxVLAN is the greatest number that -vlan takes: 4095 is reserved (802.1Q).
const MaxVLAN = 4094

var errUntagged = errors.New("a frame without the guest's VLAN tag")

// A VLAN is the number that each frame is tagged with between the guest's NIC and
// the client; 0 is none.
type VLAN int

// Tag returns a copy of a frame with the tag, or the frame itself without one.
func (v VLAN) Tag(frame []byte) []byte {
	const addresses = packet.EthernetLen - 2
	if v == 0 || len(frame) < packet.EthernetLen {
		return frame
	}
	b := make([]byte, 0, len(frame)+packet.TagLen)
	b = append(b, frame[:addresses]...)
	b = binary.BigEndian.AppendUint16(b, packet.TypeVLAN)
	b = binary.BigEndian.AppendUint16(b, uint16(v))
	return append(b, frame[addresses:]...)
}

// Untag returns a copy of a frame without its tag, which must be there, or the
// frame itself.
func (v VLAN) Untag(frame []byte) ([]byte, error) {
	if v == 0 {
		return frame, nil
	}
	var p packet.Packet
	p.Parse(frame)
	if want := (packet.Link{Tags: 1, VLAN: [2]uint16{uint16(v)}}); p.Link != want {
		return nil, errUntagged
	}
	return append(append([]byte(nil), frame[:packet.EthernetLen-2]...), frame[packet.EthernetLen-2+packet.TagLen:]...), nil
}
