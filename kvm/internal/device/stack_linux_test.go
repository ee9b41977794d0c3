package device

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"

	"github.com/gocolo/lockstep/colo/filter/tap"
	"github.com/gocolo/lockstep/internal/netns"
	"github.com/gocolo/lockstep/internal/packet"
)

// tapUplink writes a card's frames to a network.
type tapUplink struct{ *netns.Stack }

func (tapUplink) Room() <-chan struct{} { return nil }

// stackDriver is a guest whose network stack is that of a namespace.
type stackDriver struct {
	*netRig
	guest *netns.Stack
	k     int // length of the card's header
	big   [2]int
}

const (
	driverBuffer = 2048
	driverRx     = 0x40000
	driverTx     = 0xc0000
)

// send has the card send what the stack sends, until that ends.
func (d *stackDriver) send() error {
	for head := uint16(0); ; head = (head + 1) % QueueSize {
		p, err := d.guest.ReadPacket()
		if err != nil {
			return err
		}
		vnet := d.guest.VNetHdrLen()
		if len(p) > vnet+1514 {
			d.big[0]++
		}
		b := d.mem[driverTx:]
		clear(b[:d.k])
		copy(b[:min(d.k, vnet)], p)
		n := d.k + copy(b[d.k:], p[vnet:])
		d.tx.offer(head, part{driverTx, uint32(n), false})
		drain(d.nic.step)
		if got := d.tx.used(); !slices.Equal(got, []usedEntry{{uint32(head), 0}}) {
			return fmt.Errorf("the card returned %v for %d", got, head)
		}
	}
}

// receive gives the stack what the card receives from the network, until that ends.
func (d *stackDriver) receive(from *netns.Stack) error {
	for i := range 128 {
		d.rx.offer(uint16(i), part{driverRx + uint64(i)*driverBuffer, driverBuffer, true})
	}
	var whole []byte
	for {
		p, err := from.ReadPacket()
		if err != nil {
			return err
		}
		if err := d.nic.Receive(d.gate, p); err != nil {
			return fmt.Errorf("the card: %w", err)
		}
		for used, n := d.rx.used(), 1; len(used) > 0; used = used[n:] {
			whole = whole[:0]
			n = 1
			for i := 0; i < n; i++ {
				at := driverRx + int(used[i].head)*driverBuffer
				whole = append(whole, d.mem[at:at+int(used[i].n)]...)
				if i == 0 && d.k == netMergeHeader {
					n = int(binary.LittleEndian.Uint16(whole[10:]))
				}
				d.rx.push(uint16(used[i].head))
			}
			if len(whole) > d.k+1514 {
				d.big[1]++
			}
			// The kernel does not look at a checksum that is partial: it has to look at what
			// comes of it.
			if h := packet.VNet(whole[:d.k]); h.GSOType() == packet.GSONone && h.Complete(whole[d.k:]) {
				h[0] &^= packet.VNetNeedsCsum
			}
			if err := d.guest.WriteVNetPacket(whole, d.k); err != nil {
				return err
			}
		}
	}
}

// A guest's stack talks to one on the network, whose interface leaves all that it can to
// others, through a card: whatever the guest's driver has taken, both get what was sent.
func TestStacksTalkThroughACardWhateverItsDriverTakes(t *testing.T) {
	const all = tap.OffloadChecksum | tap.OffloadTSO4 | tap.OffloadTSO6
	for _, c := range []struct {
		features uint32
		guest    tap.Config
		big      [2]bool // frames that are to be cut, from and to the guest
	}{
		{netOffloads, tap.Config{VNetHdrLen: 12, Offload: all}, [2]bool{true, true}},
		{netOffloads &^ (netGuestTSO4 | netGuestTSO6), tap.Config{VNetHdrLen: 12, Offload: all}, [2]bool{true, false}},
		{0, tap.Config{}, [2]bool{}},
	} {
		t.Run(fmt.Sprintf("%#x", c.features), func(t *testing.T) {
			guest := netns.New(t, true, c.guest)
			client := netns.New(t, false, tap.Config{VNetHdrLen: 12, Offload: all})
			r := newOffloadRig(t, c.features)
			r.nic.sending.init(tapUplink{client}, 12)
			d := &stackDriver{netRig: r, guest: guest, k: r.nic.headerLen()}
			ctx, cancel := context.WithCancelCause(t.Context())
			var pumps sync.WaitGroup
			pump := func(name string, run func() error) {
				pumps.Go(func() { cancel(fmt.Errorf("the pump %s the guest: %w", name, run())) })
			}
			pump("from", d.send)
			pump("to", func() error { return d.receive(client) })
			end := sync.OnceFunc(func() {
				cancel(nil) // before the pumps, whose ends are then wanted
				guest.Close()
				client.Close()
				pumps.Wait()
			})
			defer end()
			for _, addr := range []string{netns.Guest4, netns.Guest6} {
				netns.Echo(ctx, t, guest, client, netip.AddrPortFrom(netip.MustParseAddr(addr), 80), 256<<10)
			}
			end()
			if why := context.Cause(ctx); why != context.Canceled {
				t.Error(why)
			}
			if n := r.nic.Dropped(); n > 0 {
				t.Errorf("%d frames dropped", n)
			}
			if got := [2]bool{d.big[0] > 0, d.big[1] > 0}; got != c.big {
				t.Errorf("%d frames from the guest were to be cut, and %d to it; want %v", d.big[0], d.big[1], c.big)
			}
		})
	}
}
