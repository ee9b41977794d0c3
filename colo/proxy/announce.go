package proxy

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/gocolo/lockstep/colo/filter"
	"github.com/gocolo/lockstep/internal/packet"
)

// A Neighbor is a pair of addresses, and a VLAN, under which hosts and switches know the
// guest.
type Neighbor struct {
	MAC [6]byte

	// Addr is an IPv4 or IPv6 address that the guest has, without a zone. The zero
	// Addr is none: then only the MAC is announced.
	Addr netip.Addr

	// Router says that the guest is a router, in its advertisements of an IPv6 address. If
	// a router's advertisement does not say so, hosts stop using it as one (RFC 4861
	// section 7.2.5).
	Router bool

	// VLAN is the tag (802.1Q) that the guest's frames have, 1 to 4094, or 0. Outer
	// is one around it (802.1ad), or 0.
	VLAN, Outer uint16
}

// AnnounceConfig configures [Announce]. The zero value of each field but Neighbors
// is usable.
type AnnounceConfig struct {
	// Neighbors are the addresses to announce: those that the host knows, or those that a
	// [Neighbors] has learned.
	Neighbors []Neighbor

	// VNetHdr is the length of the virtio-net header that each frame begins with, in
	// bytes. All bytes of the header are zero, since no work is left to a device.
	VNetHdr int

	// Rounds is how often everything is announced, the first time at once. Zero
	// is 5. Then Initial passes, which is 50 ms if it is zero, and each gap is Step
	// longer than the one before, 100 ms if it is zero, and at most Max, 550 ms if
	// that is zero. (The parameters of QEMU's announce-self and their defaults.)
	Rounds             int
	Initial, Step, Max time.Duration

	// Gate, if it is not nil, is asked before each frame: while it is shut nothing
	// is sent, because this side may not be the one that goes on.
	Gate interface {
		Open() bool
		Opened() <-chan struct{}
	}
}

// ErrNeighbor says that a Neighbor cannot be announced: its MAC cannot be that of a
// single NIC, its address cannot be that of a host, or a VLAN is out of range.
var ErrNeighbor = errors.New("proxy: not an address of a guest")

// Announce tells the network that the guest is now here: the bridges and switches
// on the way, by a RARP request for each MAC as QEMU sends it after a migration,
// and the hosts, by a gratuitous ARP for each IPv4 address (RFC 5227 section 2.3)
// and an unsolicited neighbor advertisement for each IPv6 address (RFC 4861 section
// 7.2.6). Each is tagged as the guest's own frames are. All of it is sent several
// times, because frames get lost, and a switch may not forward yet.
//
// The host calls it on the side that goes on, after the failover, and lets it run
// beside everything else; it returns after the last round, or the cause of the end
// of ctx. WritePacket of w is called from this goroutine, while Run may call it from
// another, as a tap.Device and a filter.Conn allow. [ErrFull] from it leaves a frame
// to the next round; any other error ends Announce, which returns it.
//
// A Neighbor that makes no sense is [ErrNeighbor], and a VNetHdr that is no length of
// a virtio-net header a *filter.Error with filter.ErrFrame, before anything is sent.
func Announce(ctx context.Context, w interface{ WritePacket(p []byte) error }, cfg AnnounceConfig) error {
	if cfg.VNetHdr < 0 || cfg.VNetHdr > filter.MaxVNetHdr {
		return &filter.Error{Op: "announce", Offset: -1, Err: filter.ErrFrame}
	}
	frames, err := announcement(cfg.Neighbors, cfg.VNetHdr)
	if err != nil || len(frames) == 0 {
		return err
	}
	rounds, gap, step, most := cfg.Rounds, cfg.Initial, cfg.Step, cfg.Max
	if rounds <= 0 {
		rounds = 5
	}
	if gap <= 0 {
		gap = 50 * time.Millisecond
	}
	if step <= 0 {
		step = 100 * time.Millisecond
	}
	if most <= 0 {
		most = 550 * time.Millisecond
	}
	for {
		for _, f := range frames {
			for ctx.Err() == nil && cfg.Gate != nil && !cfg.Gate.Open() {
				select {
				case <-cfg.Gate.Opened():
				case <-ctx.Done():
				}
			}
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if err := w.WritePacket(f); err != nil && !errors.Is(err, ErrFull) {
				return fmt.Errorf("proxy: announce: %w", err)
			}
		}
		if rounds--; rounds == 0 {
			return nil
		}
		timer := time.NewTimer(min(gap, most))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return context.Cause(ctx)
		}
		gap += step
	}
}

// valid reports whether n can be announced. Unlike check it makes no error, since it is
// called for each frame.
func (n Neighbor) valid() bool { return n.macOK() && n.linkOK() && n.addrOK() }

func (n Neighbor) macOK() bool { return n.MAC != [6]byte{} && n.MAC[0]&1 == 0 }
func (n Neighbor) linkOK() bool {
	return n.VLAN <= 4094 && n.Outer <= 4094 && (n.Outer == 0 || n.VLAN != 0)
}
func (n Neighbor) addrOK() bool {
	return n.Addr == netip.Addr{} || single(n.Addr) && !n.Addr.Is4In6() && n.Addr.Zone() == ""
}

// check returns an error that says why n cannot be announced, or nil.
func (n Neighbor) check() error {
	switch {
	case !n.macOK():
		return fmt.Errorf("%w: MAC %x", ErrNeighbor, n.MAC)
	case !n.linkOK():
		return fmt.Errorf("%w: VLAN %d in %d", ErrNeighbor, n.VLAN, n.Outer)
	case !n.addrOK():
		return fmt.Errorf("%w: %v", ErrNeighbor, n.Addr)
	}
	return nil
}

// single reports whether an address can be that of one host on a link.
func single(a netip.Addr) bool {
	return a.IsValid() && !a.IsUnspecified() && !a.IsMulticast() && !a.IsLoopback() && a != netip.AddrFrom4([4]byte{255, 255, 255, 255})
}

// announcement returns the frames of one round. The RARPs come first, because as long as
// the switches send elsewhere, answers to the rest do so too.
func announcement(neighbors []Neighbor, vnetHdr int) (frames [][]byte, err error) {
	type port struct {
		mac         [6]byte
		vlan, outer uint16
	}
	seen := make(map[port]bool)
	for _, n := range neighbors {
		if err := n.check(); err != nil {
			return nil, err
		}
		if p := (port{n.MAC, n.VLAN, n.Outer}); !seen[p] {
			seen[p] = true
			frames = append(frames, n.rarp(vnetHdr))
		}
	}
	for _, n := range neighbors {
		switch {
		case n.Addr.Is4():
			frames = append(frames, n.arp(vnetHdr))
		case n.Addr.Is6():
			frames = append(frames, n.advertisement(vnetHdr))
		}
	}
	return frames, nil
}

const typeRARP = 0x8035

var broadcast = [6]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// ethernet returns the beginning of a frame, up to and with its EtherType.
func (n Neighbor) ethernet(vnetHdr int, dst [6]byte, typ uint16) []byte {
	b := make([]byte, vnetHdr, vnetHdr+packet.EthernetLen+2*packet.TagLen+packet.IPv6Len+32)
	b = append(append(b, dst[:]...), n.MAC[:]...)
	if n.Outer != 0 {
		b = binary.BigEndian.AppendUint32(b, packet.TypeQinQ<<16|uint32(n.Outer))
	}
	if n.VLAN != 0 {
		b = binary.BigEndian.AppendUint32(b, packet.TypeVLAN<<16|uint32(n.VLAN))
	}
	return binary.BigEndian.AppendUint16(b, typ)
}

// resolution appends a message of ARP or RARP, padded to the length of the shortest frame
// (RFC 826, RFC 903).
func (n Neighbor) resolution(b []byte, op uint16, target [6]byte, addr [4]byte, vnetHdr int) []byte {
	b = append(b, 0, 1, 8, 0, 6, 4)
	b = binary.BigEndian.AppendUint16(b, op)
	b = append(append(b, n.MAC[:]...), addr[:]...)
	b = append(append(b, target[:]...), addr[:]...)
	const shortest = 60
	if short := vnetHdr + shortest - len(b); short > 0 {
		b = append(b, make([]byte, short)...)
	}
	return b
}

// rarp returns a RARP request for the guest's own address, as QEMU sends it
// (qemu_announce_self in net/announce.c).
func (n Neighbor) rarp(vnetHdr int) []byte {
	const reverseRequest = 3
	return n.resolution(n.ethernet(vnetHdr, broadcast, typeRARP), reverseRequest, n.MAC, [4]byte{}, vnetHdr)
}

// arp returns an ARP announcement.
func (n Neighbor) arp(vnetHdr int) []byte {
	const request = 1
	return n.resolution(n.ethernet(vnetHdr, broadcast, packet.TypeARP), request, [6]byte{}, n.Addr.As4(), vnetHdr)
}

// Types of neighbor discovery (RFC 4861 section 4).
const (
	ndRouterSolicitation  = 133
	ndRouterAdvertisement = 134
	ndSolicitation        = 135
	ndAdvertisement       = 136
)

// Flags of a neighbor advertisement.
const (
	ndRouter   = 0x80
	ndOverride = 0x20
)

// advertisement returns an unsolicited neighbor advertisement to all nodes.
func (n Neighbor) advertisement(vnetHdr int) []byte {
	const payload = 24 + 8
	addr, all := n.Addr.As16(), netip.MustParseAddr("ff02::1").As16()
	b := n.ethernet(vnetHdr, [6]byte{0x33, 0x33, 0, 0, 0, 1}, packet.TypeIPv6)
	b = append(b, 0x60, 0, 0, 0, 0, payload, packet.ProtoICMPv6, 255)
	b = append(append(b, addr[:]...), all[:]...)
	flags := byte(ndOverride)
	if n.Router {
		flags |= ndRouter
	}
	b = append(b, ndAdvertisement, 0, 0, 0, flags, 0, 0, 0)
	b = append(b, addr[:]...)
	b = append(append(b, 2, 1), n.MAC[:]...) // the target's link-layer address
	var p packet.Packet
	p.ParseVNet(b, vnetHdr)
	m := p.Payload()
	binary.BigEndian.PutUint16(m[packet.ICMPChecksumAt:], ^packet.Sum(p.PseudoSum(), m))
	return b
}
