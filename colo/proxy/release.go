package proxy

import (
	"context"

	"github.com/gocolo/lockstep/colo/compare"
)

// A Gate says whether this side may let its guest's packets leave, for example because it
// holds the guest's lease. A failover.Gate is a Gate. The methods are called by any
// goroutine and do not block.
//
// Open is called for each packet, right before that is written to the network. While it
// returns false, packets are held in their order, as if the network took none, and in the
// end WritePacket returns [ErrFull] to the guest's NIC. Opened returns a channel that is
// closed when the gate opens next; it is called only after Open has returned false.
type Gate interface {
	Open() bool
	Opened() <-chan struct{}
}

// gated returns the writer that Run writes packets to.
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

// A vnetWriter is a network whose writes are given the length of the virtio-net header.
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
			return nil // the gate opened between the two calls
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

// gatedVNetWriter is a gatedWriter to a writer that takes virtio-net headers.
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
