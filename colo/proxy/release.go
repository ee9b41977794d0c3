package proxy

import (
	"context"

	"github.com/gocolo/lockstep/colo/compare"
)

// A Gate says whether this side may let its guest's packets leave: it holds the
// guest's lease, say. A failover.Gate has these methods. They are called by any
// goroutine and do not block.
//
// Open is asked for each packet, right before it is written to the network. While
// it says no, packets are held in their order, as behind a network that takes
// none: the guest's NIC meets [ErrFull] in the end. Opened returns a channel that is
// closed at the next opening; it is asked for only after Open has said no.
type Gate interface {
	Open() bool
	Opened() <-chan struct{}
}

// gated is what Run writes to.
func gated(ctx context.Context, g Gate, n Network) compare.PacketWriter {
	if g == nil {
		return n
	}
	w := gatedWriter{ctx, g, n}
	if v, ok := n.(vnetWriter); ok {
		return gatedVNetWriter{w, v}
	}
	return w
}

// A vnetWriter is a network that is told how long the virtio-net header is.
type vnetWriter interface {
	WriteVNetPacket(p []byte, hdrLen int) error
}

// A gatedWriter writes when the gate is open, or fails with the cause of the end
// of Run.
type gatedWriter struct {
	ctx context.Context
	g   Gate
	n   Network
}

func (w gatedWriter) wait() error {
	for !w.g.Open() {
		opened := w.g.Opened()
		if w.g.Open() {
			return nil // between the two
		}
		select {
		case <-opened:
		case <-w.ctx.Done():
			return context.Cause(w.ctx)
		}
	}
	return nil
}

func (w gatedWriter) WritePacket(p []byte) error {
	if err := w.wait(); err != nil {
		return err
	}
	return w.n.WritePacket(p)
}

type gatedVNetWriter struct {
	gatedWriter
	v vnetWriter
}

func (w gatedVNetWriter) WriteVNetPacket(p []byte, hdrLen int) error {
	if err := w.wait(); err != nil {
		return err
	}
	return w.v.WriteVNetPacket(p, hdrLen)
}
