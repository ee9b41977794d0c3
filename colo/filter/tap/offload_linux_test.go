package tap_test

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/gocolo/lockstep/colo/filter"
	"github.com/gocolo/lockstep/colo/filter/tap"
	"github.com/gocolo/lockstep/internal/netns"
	"github.com/gocolo/lockstep/internal/packet"
)

// pump carries frames from one stack to another, past fn.
func pump(from, to *netns.Stack, fn func(frame []byte) bool) {
	from.Each(func(p []byte) {
		if fn(p) {
			netns.Complete(p, from.VNetHdrLen())
			to.WriteVNetPacket(p, from.VNetHdrLen()) // fails where the interface is closed
		}
	})
}

// Behind a rewriter whose primary's guest is a thousand million numbers and a
// thousand seconds apart, a server's stack talks to a client's: each drops what has
// a wrong checksum, and what echoes a time that it never sent.
func TestStacksWithOffloadsTalkThroughARewriter(t *testing.T) {
	for _, c := range []struct {
		vnet    int
		offload tap.Offload
	}{{0, 0}, {10, tap.OffloadTCP}, {12, tap.OffloadTCP}, {20, tap.OffloadChecksum}, {24, tap.OffloadTCP}} {
		for _, addr := range []string{netns.Guest4, netns.Guest6} {
			t.Run(fmt.Sprintf("%d %#x %s", c.vnet, c.offload, addr), func(t *testing.T) {
				cfg := tap.Config{VNetHdrLen: c.vnet, Offload: c.offload}
				guest, client := netns.New(t, true, cfg), netns.New(t, false, cfg)
				r := filter.NewRewriter(filter.RewriterConfig{})
				var mu sync.Mutex
				var big, partial int
				count := func(f []byte) {
					if len(f) > c.vnet+1514 {
						big++
					}
					if h := packet.VNetOf(f, c.vnet); h != nil && h.Flags()&packet.VNetNeedsCsum != 0 {
						partial++
					}
				}
				var pumps sync.WaitGroup
				pumps.Go(func() {
					pump(client, guest, func(f []byte) bool {
						mu.Lock()
						defer mu.Unlock()
						count(f)
						return r.Inbound(f, c.vnet)
					})
				})
				pumps.Go(func() {
					pump(guest, client, func(f []byte) bool {
						mu.Lock()
						defer mu.Unlock()
						count(f)
						r.Outbound(f, c.vnet)
						asThePrimary(f, c.vnet)
						return true
					})
				})
				netns.Echo(t.Context(), t, guest, client, netip.AddrPortFrom(netip.MustParseAddr(addr), 80), 4<<20)
				guest.Close()
				client.Close()
				pumps.Wait()
				if s := r.Stats(); s.Rewritten == 0 {
					t.Errorf("%+v", s)
				}
				if whole := c.offload&tap.OffloadTSO4 != 0; (big > 0) != whole {
					t.Errorf("%d frames were to be cut", big)
				}
				if (partial > 0) != (c.offload != 0) {
					t.Errorf("%d checksums were partial", partial)
				}
			})
		}
	}
}

// asThePrimary turns the SYN|ACK of the secondary's guest into the one that the primary's
// guest has sent.
func asThePrimary(frame []byte, vnet int) {
	var p packet.Packet
	if p.ParseVNet(frame, vnet); !p.IsTCP() || p.TCP().Flags()&packet.SYN == 0 {
		return
	}
	h := p.TCP()
	h.SetSeq(h.Seq() - 1e9)
	netns.Retime(frame, vnet, 1<<32-1e6, 0) // a million less, and a checksum of all
}

func TestOffloadsNeedAHeaderAndMayChange(t *testing.T) {
	if d, err := tap.Open(tap.Config{Offload: tap.OffloadChecksum}); !errors.Is(err, unix.EINVAL) {
		t.Errorf("%v, %v", d, err)
	}
	d := open(t, tap.Config{VNetHdrLen: 12})
	for _, o := range []tap.Offload{tap.OffloadTCP, tap.OffloadChecksum, 0} {
		if err := d.SetOffload(o); err != nil {
			t.Errorf("%#x: %v", o, err)
		}
	}
	var e *tap.Error
	if err := d.SetOffload(1 << 20); !errors.Is(err, unix.EINVAL) || !errors.As(err, &e) || e.Op != "offload" {
		t.Errorf("%v", err)
	}
	d.Close()
	if err := d.SetOffload(0); err == nil {
		t.Error("a device that is closed has offloads")
	}
	d = open(t, tap.Config{})
	if err := d.SetOffload(tap.OffloadChecksum); !errors.Is(err, unix.EINVAL) {
		t.Errorf("%v", err)
	}
}

// What an interface without headers cannot have done for it is done, or is lost.
func TestAnInterfaceWithoutHeadersTakesCompleteFrames(t *testing.T) {
	d := open(t, tap.Config{})
	up(t, d)
	f := question(12)
	f[1] = packet.GSOTCPv4
	if err := d.WriteVNetPacket(f, 12); err != nil || d.Lost() != 1 {
		t.Errorf("%v, %d lost", err, d.Lost())
	}
	f[0], f[1], f[6], f[8] = packet.VNetNeedsCsum, 0, 200, 16
	if err := d.WriteVNetPacket(f, 12); err != nil || d.Lost() != 2 {
		t.Errorf("%v, %d lost", err, d.Lost())
	}
}
