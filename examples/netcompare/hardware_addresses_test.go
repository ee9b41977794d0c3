package main

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/gocolo/lockstep/internal/packet"
)

// elsewhere returns a capture of testdata as it would have been captured at another place: there
// the last byte of hardware addresses differs by mac, and what is IP is in a session of PPP over
// Ethernet, unless that is 0, and in a VLAN, unless that is 0.
func elsewhere(t testing.TB, name string, mac byte, session, vlan uint16) string {
	var list [][]byte
	each(plain(t, name), func(n int, _, data []byte) {
		f := bytes.Clone(data)
		var p packet.Packet
		p.Parse(f)
		if p.Kind == packet.ARP {
			f[p.L3+13] += mac
		}
		f[5] += mac
		f[11] += mac
		if ppp := map[packet.Kind]uint16{packet.IP4: 0x21, packet.IP6: 0x57}[p.Kind]; ppp != 0 && session != 0 {
			head := append(f[:12:12], 0x88, 0x64, 0x11, 0)
			for _, v := range []uint16{session, uint16(2 + p.End - p.L3), ppp} {
				head = binary.BigEndian.AppendUint16(head, v)
			}
			f = append(head, data[p.L3:]...)
		}
		if vlan != 0 {
			f = append(binary.BigEndian.AppendUint16(append(f[:12:12], 0x81, 0), vlan), f[12:]...)
		}
		list = append(list, f)
	})
	return written(t, classic(binary.LittleEndian, 0xa1b2c3d4, list))
}

func TestGuestsMatchThatWereCapturedAtOtherPlaces(t *testing.T) {
	for what, c := range map[string][2]string{
		"other hardware addresses":               {elsewhere(t, "a.pcap.gz", 0, 0, 0), elsewhere(t, "b.pcap.gz", 7, 0, 0)},
		"two sessions with two concentrators":    {elsewhere(t, "a.pcap.gz", 0, 1, 0), elsewhere(t, "b.pcap.gz", 7, 2, 0)},
		"one number of two sessions":             {elsewhere(t, "a.pcap.gz", 0, 1, 0), elsewhere(t, "b.pcap.gz", 7, 1, 0)},
		"one session":                            {elsewhere(t, "a.pcap.gz", 0, 1, 0), elsewhere(t, "b.pcap.gz", 0, 1, 0)},
		"before and behind the PPP":              {elsewhere(t, "a.pcap.gz", 0, 1, 0), elsewhere(t, "b.pcap.gz", 7, 0, 0)},
		"behind and before the PPP":              {elsewhere(t, "a.pcap.gz", 0, 0, 0), elsewhere(t, "b.pcap.gz", 7, 9, 0)},
		"before the PPP in a VLAN, and behind":   {elsewhere(t, "a.pcap.gz", 0, 1, 5), elsewhere(t, "b.pcap.gz", 7, 0, 0)},
		"two sessions, one of them in a VLAN":    {elsewhere(t, "a.pcap.gz", 0, 1, 5), elsewhere(t, "b.pcap.gz", 7, 3, 0)},
		"two sessions, both of them in one VLAN": {elsewhere(t, "a.pcap.gz", 0, 1, 5), elsewhere(t, "b.pcap.gz", 7, 3, 5)},
		"a session in a VLAN, and a VLAN":        {elsewhere(t, "a.pcap.gz", 0, 1, 5), elsewhere(t, "b.pcap.gz", 7, 0, 5)},
	} {
		sum, notes, err := summed(t, c[0], c[1])
		if err != nil || sum["matched"] != 23 || sum["waiting"] != 0 {
			t.Errorf("%s: %v %v %q", what, sum, err, notes)
		}
	}
}

// A protocol whose packets are compared with their hardware addresses, and a guest that sends one
// of them to another station than the rest.
func TestAGuestThatChangesStationsIsSeen(t *testing.T) {
	frame := func(mac, last byte) []byte {
		f := append([]byte{2, 0, 0, 0, 0, mac, 2, 0, 0, 0, 1, mac, 8, 0}, "\x45\x00\x00\x20\x00\x00\x00\x00\x40\x84\x00\x00\x0a\x00\x00\x01\x0a\x00\x00\x02"...)
		return append(f, "\x00\x50\x00\x51\x00\x00\x00\x00\x00\x00\x00"+string(last)...)
	}
	file := func(list ...[]byte) string { return written(t, classic(binary.LittleEndian, 0xa1b2c3d4, list)) }
	p := file(frame(1, 'a'), frame(1, 'b'), frame(1, 'c'))
	if sum, notes, err := summed(t, p, file(frame(2, 'a'), frame(2, 'b'), frame(2, 'c'))); err != nil || sum["matched"] != 3 {
		t.Errorf("%v %v %q", sum, err, notes)
	}
	if sum, notes, err := summed(t, p, file(frame(2, 'a'), frame(3, 'b'), frame(2, 'c'))); err == nil || sum["matched"] != 2 {
		t.Errorf("a frame to another station: %v %v %q", sum, err, notes)
	}
}
