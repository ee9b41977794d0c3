package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/gocolo/lockstep/internal/packet"
)

// A selection says which packets of a capture the guest has sent, and which part of their
// frames is looked at. It is a value of the flags -guest and -vlan.
type selection struct {
	macs  [][]byte
	addrs []netip.Addr
	vlan  int // the VLAN of the frames that are looked at; -1: all

	strip  bool // take the tags off each frame
	unwrap bool // take each packet out of its session of PPP over Ethernet
}

// guest adds those who are named by a MAC or an IP address.
func (s *selection) guest(names string) error {
	for name := range strings.SplitSeq(names, ",") {
		if a, err := netip.ParseAddr(name); err == nil {
			s.addrs = append(s.addrs, a.Unmap().WithZone("")) // packets have no zone
		} else if m, err := net.ParseMAC(name); err == nil && len(m) == 6 {
			s.macs = append(s.macs, m)
		} else {
			return fmt.Errorf("%q is neither a MAC nor an IP address", name)
		}
	}
	return nil
}

// only has the frames of one VLAN looked at.
func (s *selection) only(vlan string) error {
	n, err := strconv.ParseUint(vlan, 10, 12)
	if err != nil {
		return fmt.Errorf("%q is no VLAN", vlan)
	}
	s.vlan = int(n)
	return nil
}

// wants reports whether the guest has sent a parsed frame.
func (s *selection) wants(p *packet.Packet) bool {
	if s.vlan >= 0 && int(p.Link.VLAN[0]) != s.vlan {
		return false
	}
	if len(s.macs)+len(s.addrs) == 0 {
		return true
	}
	if len(p.Frame) >= packet.EthernetLen {
		for _, m := range s.macs {
			if bytes.Equal(packet.Ethernet(p.Frame).Src(), m) {
				return true
			}
		}
	}
	src := sourceOf(p)
	for _, a := range s.addrs {
		if a == src {
			return true
		}
	}
	return false
}

// sourceOf returns the IP address that a packet comes from, as far as its header is
// there.
func sourceOf(p *packet.Packet) netip.Addr {
	if p.L3 == 0 || p.L3 > len(p.Frame) {
		return netip.Addr{}
	}
	b := p.Frame[p.L3:]
	switch {
	case p.Type == packet.TypeIPv4 && len(b) >= packet.IPv4Len:
		return netip.AddrFrom4([4]byte(packet.IPv4(b).Src()))
	case p.Type == packet.TypeIPv6 && len(b) >= packet.IPv6Len:
		return netip.AddrFrom16([16]byte(packet.IPv6(b).Src())).Unmap()
	case p.Type == packet.TypeARP && len(b) >= 28:
		return netip.AddrFrom4([4]byte(b[14:]))
	}
	return netip.Addr{}
}

// bare takes a frame out of its tags, and out of its session of PPP, as s says.
func (s *selection) bare(p *packet.Packet) []byte {
	n := p.Tags * packet.TagLen
	switch {
	case s.unwrap && p.Link.PPPoE:
		tags := n
		if s.strip {
			tags = 0
		}
		f := append(bytes.Clone(p.Frame[:12+tags]), byte(p.Type>>8), byte(p.Type))
		return append(f, p.Frame[p.L3:]...)
	case !s.strip, n == 0, len(p.Frame) < packet.EthernetLen+n:
		return p.Frame
	}
	return append(bytes.Clone(p.Frame[:12]), p.Frame[12+n:]...)
}

// whole gives a frame that was cut the length that its IP header says, with zeros
// for what was not captured. It reports whether it could: the headers have to be
// there.
func whole(frame []byte) ([]byte, bool) {
	var p packet.Packet
	p.Parse(frame)
	if p.L3 == 0 || p.L3 >= len(frame) {
		return frame, false
	}
	b, total := frame[p.L3:], 0
	switch {
	case p.Type == packet.TypeIPv4 && len(b) >= packet.IPv4Len:
		total = int(binary.BigEndian.Uint16(b[2:]))
	case p.Type == packet.TypeIPv6 && len(b) >= packet.IPv6Len:
		total = packet.IPv6Len + int(binary.BigEndian.Uint16(b[4:]))
	}
	if total <= len(b) {
		return frame, false
	}
	full := append(bytes.Clone(frame), make([]byte, total-len(b))...)
	if p.Parse(full); !p.L4OK {
		return frame, false
	}
	if at := p.L4 + headers(&p); at > len(frame) {
		return frame, false
	}
	return full, true
}

// headers returns how long the transport header of a packet is.
func headers(p *packet.Packet) int {
	switch {
	case p.IsTCP():
		return p.TCP().HeaderLen()
	case p.Proto == packet.ProtoTCP:
		return packet.TCPLen
	}
	return packet.UDPLen // and ICMPLen
}
