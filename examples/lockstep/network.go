package main

import (
	"context"
	"errors"
	"net"

	"github.com/gocolo/lockstep/colo/filter"
	"github.com/gocolo/lockstep/colo/protect"
	"github.com/gocolo/lockstep/internal/trial"
)

// outputLimit is how much output a side keeps, in bytes. Half of it asks for a
// checkpoint.
const outputLimit = 16 << 20

// maxApart is how many packets of one flow the guests may be apart: nobody tells
// them to keep pace with each other.
const maxApart = 1 << 16

// A network is the network of the guest. It notes what waits at a mark, and tells the client
// when this host is alone.
type network struct {
	*protect.Proxy
	out      *filter.Conn // the way to the client
	standing *standing    // nil: the guest of a host that follows runs
	held     uint64       // frames at the last mark; of the goroutine of the session
}

// Mark implements protect.Network.
func (n *network) Mark(epoch uint64) error {
	if p, _ := n.Stats(); p != nil {
		n.held = p.Held
	}
	return n.Proxy.Mark(epoch)
}

// Failover implements protect.Network.
func (n *network) Failover() error {
	n.standing.failover()
	return errors.Join(n.out.WritePacket([]byte(trial.TookOver)), n.Proxy.Failover())
}

// Follow implements protect.Sided.
func (n *network) Follow(ctx context.Context) error {
	n.standing.follow()
	return n.Proxy.Follow(ctx)
}

// waiting returns how many packets of the guest are still to leave.
func (n *network) waiting() uint64 {
	p, s := n.Stats()
	if s != nil {
		return s.Keep.Held + s.Keep.Queued + s.Keep.Inherited
	}
	return p.Held + p.Queued
}

// traffic returns what this side of the network has counted, if it is the primary's side
// now.
func (n *network) traffic() *trial.Traffic {
	s, _ := n.Stats()
	if s == nil {
		return new(trial.Traffic)
	}
	return &trial.Traffic{
		Matched: s.Matched, AtCheckpoint: s.Checkpoint, Diverged: s.Diverged,
		LatencyP50US: s.Waits.Quantile(0.5).Microseconds(), LatencyP99US: s.Waits.Quantile(0.99).Microseconds(),
	}
}

// cable is the way to the client: one connection for what the guest sends, and
// one for what it is sent, so that what is unread of the one when a side dies does
// not reset the other.
type cable struct {
	out, in *filter.Conn
	conns   [2]net.Conn
}

// dialCable makes the way to the client of a host.
func dialCable(cfg trial.SideConfig) (*cable, error) {
	output, err := dialClient(cfg, cfg.Side)
	if err != nil {
		return nil, err
	}
	input, err := dialClient(cfg, cfg.Side+trial.InputSuffix)
	if err != nil {
		return nil, errors.Join(err, output.Close())
	}
	return &cable{newCableConn(output), newCableConn(input), [2]net.Conn{output, input}}, nil
}

// dialClient connects to the client and says who does.
func dialClient(cfg trial.SideConfig, name string) (net.Conn, error) {
	conn, err := net.Dial("tcp", cfg.Client)
	if err != nil {
		return nil, err
	}
	if err := newCableConn(conn).WritePacket([]byte(name)); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return conn, nil
}

func newCableConn(c net.Conn) *filter.Conn { return filter.NewConn(c, filter.ConnConfig{}) }

func (c *cable) ReadPacket() ([]byte, error)     { return c.in.ReadPacket() }
func (c *cable) WritePacket(packet []byte) error { return c.out.WritePacket(packet) }
func (c *cable) Close() error                    { return errors.Join(c.conns[0].Close(), c.conns[1].Close()) }
