package proxy

import (
	"context"
	"errors"
	"slices"
	"sync"

	"github.com/gocolo/lockstep/colo/filter"
)

// An uplink wraps the network that Run is given: it translates the packets of the
// connections that edge has, and lets announcements be written between the packets.
type uplink struct {
	network Network
	edge    *filter.Edge
	vnet    int
	in, out []byte // memory of the goroutine that reads packets, and of the one that writes them

	turn chan struct{} // has an element while a write is going on; nil: nothing is announced
}

// A vnetUplink is an uplink whose network is given the length of the virtio-net header.
type vnetUplink struct {
	*uplink
	to vnetWriter
}

// newUplink returns the uplink, and the network that Run writes packets to. announces says
// that announcements are written besides.
func newUplink(n Network, edge *filter.Edge, vnetHdr int, announces bool) (*uplink, Network) {
	u := &uplink{network: n, edge: edge, vnet: vnetHdr}
	if announces {
		u.turn = make(chan struct{}, 1)
	}
	if v, ok := n.(vnetWriter); ok {
		return u, vnetUplink{u, v}
	}
	return u, u
}

// ReadPacket returns the next packet, translated for the guest.
func (u *uplink) ReadPacket() ([]byte, error) {
	for {
		p, err := u.network.ReadPacket()
		if err != nil || u.edge.Len() == 0 {
			return p, err
		}
		u.in = append(u.in[:0], p...)
		if u.edge.Inbound(u.in, u.vnet) {
			return u.in, nil
		}
	}
}

func (u *uplink) translate(p []byte, vnetHdr int) []byte {
	if u.edge.Len() == 0 {
		return p
	}
	u.out = append(u.out[:0], p...)
	u.edge.Outbound(u.out, vnetHdr)
	return u.out
}

// begin waits until no write is going on, and begins one.
func (u *uplink) begin() {
	if u.turn != nil {
		u.turn <- struct{}{}
	}
}

func (u *uplink) end() {
	if u.turn != nil {
		<-u.turn
	}
}

// WritePacket writes a packet that the guest sends.
func (u *uplink) WritePacket(p []byte) error {
	p = u.translate(p, u.vnet)
	u.begin()
	defer u.end()
	return u.network.WritePacket(p)
}

func (u vnetUplink) WriteVNetPacket(p []byte, hdrLen int) error {
	p = u.translate(p, hdrLen)
	u.begin()
	defer u.end()
	return u.to.WriteVNetPacket(p, hdrLen)
}

// An announcer announces a guest after each takeover, until the network that it is given
// fails.
type announcer struct {
	cfg   AnnounceConfig
	known *Neighbors

	mu   sync.Mutex
	due  uint64 // the number of the takeover that is to be announced; 0: none
	last uint64 // the number of takeovers so far
	wake chan struct{}
}

func newAnnouncer(cfg AnnounceConfig, known *Neighbors) *announcer {
	return &announcer{cfg: cfg, known: known, wake: make(chan struct{}, 1)}
}

// begin is called at a takeover.
func (a *announcer) begin() {
	a.mu.Lock()
	a.last++
	a.due = a.last
	a.mu.Unlock()
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// cancel is called when the guest has moved to the other side.
func (a *announcer) cancel() { a.finish(0) }

// finish ends the announcement of takeover n, or of each if n is 0.
func (a *announcer) finish(n uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if n == 0 || a.due == n {
		a.due = 0
	}
}

func (a *announcer) pending() uint64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.due
}

// errMoved ends the announcement of a guest that has moved to the other side.
var errMoved = errors.New("proxy: the guest has moved")

// run announces each takeover until ctx ends, and returns the cause of that, or the error
// of w.
func (a *announcer) run(ctx context.Context, gate Gate, w *uplink) error {
	for {
		if n := a.pending(); n != 0 && a.cfg.Rounds > 0 {
			cfg := a.cfg
			cfg.VNetHdr = w.vnet
			if cfg.Gate == nil && gate != nil {
				cfg.Gate = gate
			}
			cfg.Neighbors = a.known.All()
			for _, n := range a.cfg.Neighbors {
				if !slices.Contains(cfg.Neighbors, n) {
					cfg.Neighbors = append(cfg.Neighbors, n)
				}
			}
			err := Announce(ctx, announced{ctx, a, n, cfg.Gate, w}, cfg)
			if err != nil && ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if err != nil && !errors.Is(err, errMoved) {
				return err
			}
			a.finish(n)
			continue
		}
		select {
		case <-a.wake:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// announced writes the frames of one takeover.
type announced struct {
	ctx  context.Context
	a    *announcer
	n    uint64
	gate Gate // nil: always open
	w    *uplink
}

// WritePacket writes a frame of an announcement. A packet of the guest may keep it
// waiting for long, so it asks when its turn has come whether the guest is still here and
// whether this side is the one that goes on.
func (w announced) WritePacket(p []byte) error {
	for {
		shut, err := w.try(p)
		if shut == nil {
			return err
		}
		select {
		case <-shut:
		case <-w.ctx.Done():
			return context.Cause(w.ctx)
		}
	}
}

// try writes p, or returns a channel that is closed when the gate may be open.
func (w announced) try(p []byte) (shut <-chan struct{}, err error) {
	w.w.begin()
	defer w.w.end()
	if w.a.pending() != w.n {
		return nil, errMoved
	}
	if w.gate != nil && !w.gate.Open() {
		return w.gate.Opened(), nil
	}
	return nil, w.w.network.WritePacket(p)
}

// check returns an error if a Neighbor of the configuration cannot be announced.
func (a *announcer) check() error {
	for _, n := range a.cfg.Neighbors {
		if err := n.check(); err != nil {
			return err
		}
	}
	return nil
}
