package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/colo/proxy"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/kvm/gokvmhost"
	"github.com/gocolo/lockstep/vmstate"
)

// A network is what is between the guest's network card and its TAP interface.
// The nil network is none.
type network struct {
	cable cable
	mac   [6]byte

	proxy     nic
	primary   *proxy.Primary
	secondary *proxy.Secondary
}

// nic is what both kinds of proxy have.
type nic interface {
	colo.VM
	gokvmhost.Uplink
	vmstate.Device
	Entry(instance uint32) vmstate.Entry
	Run(context.Context, proxy.Network) error
	Serve(context.Context, io.ReadWriteCloser) error
	Connected(context.Context) error
}

// openCable opens the interface, nil for none.
func openCable(o options) (cable, error) {
	if o.tap == "" {
		return nil, nil
	}
	c, err := o.hw.cable(o)
	if err != nil {
		return nil, fmt.Errorf("-tap: %w", err)
	}
	return c, nil
}

// newNetwork makes the network of a guest, which is given its machine later.
// request is told when a primary wants a checkpoint.
func newNetwork(o options, c cable, continuous bool, g *guest, request func(event.Cause)) *network {
	if c == nil {
		return nil
	}
	n := &network{cable: c, mac: o.mac}
	deliver := func(p []byte) error { return g.ReceivePacket(p) }
	if o.mode == modeSecondary {
		n.secondary = proxy.NewSecondary(proxy.SecondaryConfig{
			VM: g, Deliver: deliver, Continuous: continuous,
		})
		n.proxy = n.secondary
		return n
	}
	n.primary = proxy.NewPrimary(proxy.PrimaryConfig{
		VM: g, Deliver: deliver, Continuous: continuous, RequestCheckpoint: request,
	})
	n.proxy = n.primary
	return n
}

// vm returns the guest as the session sees it: past its network, which must know
// when it stands still.
func (n *network) vm(g *guest) colo.VM {
	if n == nil {
		return g
	}
	return n.proxy
}

// register adds what the network has of the guest's state.
func (n *network) register(reg *vmstate.Registry) error {
	if n == nil {
		return nil
	}
	return reg.Register(n.proxy.Entry(0), n.proxy)
}

// announcements is how often the guest's new place is announced, in all: the
// frames are not answered, and may be lost.
const announcements = 5

// announce tells switches behind which of their ports the guest is from now on.
func (n *network) announce() error { return n.cable.WritePacket(announcement(n.mac)) }

func (n *network) announceAgain(ctx context.Context) {
	for i := 1; i < announcements; i++ {
		select {
		case <-time.After(time.Duration(i) * 50 * time.Millisecond):
			n.announce()
		case <-ctx.Done():
			return
		}
	}
}

// announcement returns the frame that hypervisors send for a guest that has
// moved: a request to everybody, by reverse ARP (RFC 903), for its own address.
func announcement(mac [6]byte) []byte {
	b := make([]byte, 0, 60) // the shortest frame there is
	b = append(b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff)
	b = append(b, mac[:]...)
	b = binary.BigEndian.AppendUint16(b, 0x8035) // RARP
	b = binary.BigEndian.AppendUint16(b, 1)      // Ethernet
	b = binary.BigEndian.AppendUint16(b, 0x0800) // IPv4
	b = append(b, 6, 4)
	b = binary.BigEndian.AppendUint16(b, 3) // request reverse
	b = append(b, mac[:]...)
	b = append(b, 0, 0, 0, 0)
	b = append(b, mac[:]...)
	return b[:60]
}

// drained waits until everything has left that may, and no longer than ctx.
func (n *network) drained(ctx context.Context) {
	left := func() uint64 {
		if n.primary != nil {
			s := n.primary.Stats()
			return s.Held + s.Queued
		}
		s := n.secondary.Stats().Keep
		return s.Held + s.Queued + s.Inherited
	}
	for left() > 0 {
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			return
		}
	}
}

// status is the network's part of a line of progress.
func (n *network) status() string {
	if n == nil || n.primary == nil {
		return ""
	}
	s := n.primary.Stats()
	return fmt.Sprintf(", frames released at a match %d, at a checkpoint %d, held %d", s.Matched, s.Checkpoint, s.Held)
}

// figures are the network's part of a primary's summary.
func (n *network) figures() *netFigures {
	if n == nil || n.primary == nil {
		return nil
	}
	s := n.primary.Stats()
	return &netFigures{s.Matched, s.Checkpoint, s.Diverged}
}

// run moves frames until ctx ends.
func (n *network) run(ctx context.Context) error {
	err := n.proxy.Run(ctx, n.cable)
	if ctx.Err() != nil && errors.Is(err, context.Cause(ctx)) {
		return nil
	}
	return err
}

// connected waits until the two sides' networks are.
func (n *network) connected(ctx context.Context) error {
	if n == nil {
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, greetTimeout, errors.New("no connection of the networks"))
	defer cancel()
	return n.proxy.Connected(ctx)
}

// serveRetry is the pause before a connection that broke is made again.
const serveRetry = 500 * time.Millisecond

// serve keeps a connection to the other side, made by connect.
func (n *network) serve(ctx context.Context, connect func() (io.ReadWriteCloser, error)) {
	for ctx.Err() == nil {
		conn, err := connect()
		if err == nil {
			if n.proxy.Serve(ctx, conn) == nil {
				return // one side has gone on alone
			}
		}
		select {
		case <-time.After(serveRetry):
		case <-ctx.Done():
		}
	}
}
