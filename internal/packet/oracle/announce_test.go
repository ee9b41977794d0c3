package oracle

import (
	"bytes"
	"net"
	"net/netip"
	"testing"

	"github.com/gocolo/lockstep/colo/proxy"
	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

type heard [][]byte

func (h *heard) WritePacket(p []byte) error { *h = append(*h, bytes.Clone(p)); return nil }

// What Announce sends is what another decoder takes for RARP, a gratuitous ARP and
// an unsolicited advertisement, with right checksums.
func TestAnnouncementsAreWhatTheyOughtToBe(t *testing.T) {
	mac := [6]byte{0x52, 0x54, 0, 0, 0, 1}
	v4, v6 := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("2001:db8::1")
	for _, vlan := range []uint16{0, 5} {
		var h heard
		if err := proxy.Announce(t.Context(), &h, proxy.AnnounceConfig{Rounds: 1, Neighbors: []proxy.Neighbor{
			{MAC: mac, Addr: v4, VLAN: vlan}, {MAC: mac, Addr: v6, VLAN: vlan, Router: true},
		}}); err != nil {
			t.Fatal(err)
		}
		if len(h) != 3 {
			t.Fatalf("%d frames", len(h))
		}
		for i, f := range h {
			p := gopacket.NewPacket(f, layers.LayerTypeEthernet, gopacket.Default)
			eth := p.Layer(layers.LayerTypeEthernet).(*layers.Ethernet)
			typ := eth.EthernetType
			if q, ok := p.Layer(layers.LayerTypeDot1Q).(*layers.Dot1Q); ok != (vlan != 0) || ok && q.VLANIdentifier != vlan {
				t.Errorf("frame %d: %v", i, p)
			} else if ok {
				typ = q.Type
			}
			if !bytes.Equal(eth.SrcMAC, mac[:]) || len(f) < 60 {
				t.Errorf("frame %d of %d bytes from %v", i, len(f), eth.SrcMAC)
			}
			switch i {
			case 0:
				if typ != 0x8035 {
					t.Errorf("%v is no RARP", typ)
				}
			case 1:
				a, ok := p.Layer(layers.LayerTypeARP).(*layers.ARP)
				if !ok || a.Operation != layers.ARPRequest || !bytes.Equal(a.SourceHwAddress, mac[:]) ||
					!bytes.Equal(a.SourceProtAddress, v4.AsSlice()) || !bytes.Equal(a.DstProtAddress, v4.AsSlice()) {
					t.Errorf("%v", p)
				}
			case 2:
				ip, _ := p.Layer(layers.LayerTypeIPv6).(*layers.IPv6)
				icmp, _ := p.Layer(layers.LayerTypeICMPv6).(*layers.ICMPv6)
				na, ok := p.Layer(layers.LayerTypeICMPv6NeighborAdvertisement).(*layers.ICMPv6NeighborAdvertisement)
				if !ok || ip.HopLimit != 255 || !ip.DstIP.Equal(net.IPv6linklocalallnodes) || !na.Override() || na.Solicited() || !na.Router() ||
					!na.TargetAddress.Equal(v6.AsSlice()) || len(na.Options) != 1 || !bytes.Equal(na.Options[0].Data, mac[:]) {
					t.Fatalf("%v", p)
				}
				if err := icmp.SetNetworkLayerForChecksum(ip); err != nil {
					t.Fatal(err)
				}
				sum := icmp.Checksum
				b := gopacket.NewSerializeBuffer()
				if err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{ComputeChecksums: true}, icmp, gopacket.Payload(icmp.LayerPayload())); err != nil {
					t.Fatal(err)
				}
				if got := uint16(b.Bytes()[2])<<8 | uint16(b.Bytes()[3]); got != sum {
					t.Errorf("checksum %#x, want %#x", sum, got)
				}
			}
		}
	}
}
