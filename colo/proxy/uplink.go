package proxy

import (
	"context"
	"errors"
	"slices"
	"sync"

	"github.com/gocolo/lockstep/colo/filter"
)

// An uplink is a network as Run sees it: what passes is translated for the
// connections of its edge, and announcements may be written between packets.
type uplink struct {
	network Network
	edge    *filter.Edge
	vnet    int
	in, out []byte // belong to the goroutine that reads, and to the one that writes packets

	turn chan struct{} // has an element while something is written; nil: nothing is announced
}

// A vnetUplink is one whose network is told how long the virtio-net header is.
type vnetUplink struct {
	*uplink
	to vnetWriter
}

// newUplink returns the uplink, and what Run writes packets to. announces says that
// announcements are written besides.
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

// ReadPacket returns the next packet as the guest is to see it.
func (u *uplink) ReadPacket() ([]byte, error) {
	p, err := u.network.ReadPacket()
	if err != nil || u.edge.Len() == 0 {
		return p, err
	}
	u.in = append(u.in[:0], p...)
	u.edge.Inbound(u.in, u.vnet)
	return u.in, nil
}

func (u *uplink) translate(p []byte, vnetHdr int) []byte {
	if u.edge.Len() == 0 {
		return p
	}
	u.out = append(u.out[:0], p...)
	u.edge.Outbound(u.out, vnetHdr)
	return u.out
}

// begin waits until nothing is being written.
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

// WritePacket sends a packet of the guest's.
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

// An announcer announces a guest after each takeover, as long as the network lives
// that it is given.
type announcer struct {
	cfg   AnnounceConfig
	known *Neighbors

	mu   sync.Mutex
	due  uint64 // the takeover that is not announced yet; 0: none
	last uint64 // takeovers so far
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

// cancel is called when the guest is not here any more.
func (a *announcer) cancel() { a.finish(0) }

// finish says that a takeover, or with 0 each, needs to be announced no more.
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

// errMoved ends an announcement of a guest that is not here any more.
var errMoved = errors.New("proxy: the guest has moved")

// run announces what is due until ctx ends, and returns the cause of that, or the
// error of w.
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
	gate Gate // or nil
	w    *uplink
}

// WritePacket sends what is no packet of the guest's. A packet of the guest's may take
// long before it: whether the guest is still here, and this side the one that goes on, is
// asked when it is this frame's turn.
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

// try sends p, or returns what says that the gate may be open again.
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

// check says why what a configuration names cannot be announced, if it cannot.
func (a *announcer) check() error {
	for _, n := range a.cfg.Neighbors {
		if err := n.check(); err != nil {
			return err
		}
	}
	return nil
}
