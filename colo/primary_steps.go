package colo

import (
	"context"
	"time"

	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate"
)

// The steps of one checkpoint, in the order in which checkpoint takes them.

func (p *Primary) stop(ctx context.Context) error {
	p.stopped = time.Now()
	return p.pause(ctx)
}

// mark ends the epoch for memory, packets and disks, at the same instant for all of them, since the
// guest stands still.
func (p *Primary) mark(ctx context.Context) error {
	p.ends = time.Now()
	p.holdDisks()
	if p.cfg.Net != nil {
		net := p.cfg.Net
		p.hold(undo{what: "network", goOn: func(context.Context) error { return net.Failover() }, stay: drop(net)})
		if err := net.Mark(p.epoch); err != nil {
			return err
		}
	}
	if p.disksUp { // not yet in epoch 0
		if err := p.disks.Err(); err != nil {
			return err
		}
	}
	ctx, cancel := p.bounded(ctx)
	defer cancel()
	return p.late(ctx, "disks", p.disks.Mark(ctx, p.epoch))
}

// capture takes what must be sent out of the guest. Devices come before memory,
// since saving a device may dirty memory, and are sent after it.
func (p *Primary) capture(ctx context.Context) error {
	if err := p.state.CaptureDevices(); err != nil {
		return err
	}
	return p.captureMemory(ctx)
}

// captureMemory takes out of the guest what is to be sent of its memory, if it fits.
func (p *Primary) captureMemory(context.Context) error {
	p.whole = false
	if p.cfg.LateResume {
		return nil
	}
	var err error
	p.whole, err = p.state.Capture()
	return err
}

// saveDevices encodes the devices of the paused guest into the blob.
func (p *Primary) saveDevices() error { return p.encode(p.state.SaveDevices) }

// encode empties the blob, and has save write the device state into it.
func (p *Primary) encode(save func(*qemufile.Writer) error) error {
	p.blob.Reset()
	if err := save(p.blobW); err != nil {
		return err
	}
	vmstate.PutEOF(p.blobW)
	return p.blobW.Flush()
}

// resumeEarly lets the guest run on before its state is sent, unless something
// has to be read from it while it stands still: the capture did not fit.
func (p *Primary) resumeEarly(ctx context.Context) error {
	if !p.whole {
		return nil
	}
	if err := p.resume(ctx); err != nil {
		return err
	}
	p.cp.EarlyResume = true
	p.cp.PauseNS = int64(time.Since(p.stopped))
	return nil
}

func (p *Primary) sendVMStateSend(context.Context) error {
	if p.sending {
		return nil
	}
	p.sending = true
	return p.link.Send(VMStateSend)
}

func (p *Primary) sendRAM(context.Context) error {
	p.sendsAt, p.sends = time.Now(), p.sent()
	if err := p.state.SaveComplete(p.link.W); err != nil {
		return err
	}
	vmstate.PutEOF(p.link.W)
	return p.link.W.Err()
}

func (p *Primary) sendDeviceState(context.Context) error {
	if err := p.encode(p.state.SaveCaptured); err != nil { // the guest has not had to wait for it
		return err
	}
	if err := p.link.SendValue(VMStateSize, uint64(len(p.blob.b))); err != nil {
		return err
	}
	if _, err := p.link.W.Write(p.blob.b); err != nil {
		return err
	}
	return p.link.Flush()
}

func (p *Primary) expectReceived(context.Context) error {
	if err := p.expectWork(VMStateReceived, 0); err != nil {
		return err
	}
	p.received = time.Now()
	p.early.link.carried(p.sent()-p.sends, p.received.Sub(p.sendsAt))
	if !p.marked.IsZero() {
		p.heldFor = p.received.Sub(p.marked)
	}
	p.marked = p.ends
	p.cp.TransferNS = int64(p.received.Sub(p.since))
	if p.cfg.Net != nil {
		return p.cfg.Net.Received(p.epoch)
	}
	return nil
}

func (p *Primary) expectLoaded(ctx context.Context) error {
	if err := p.expectWork(VMStateLoaded, p.sent()-p.before+p.early.bytes); err != nil {
		return err
	}
	p.cp.CommitNS = int64(time.Since(p.received))
	if p.cfg.Net != nil {
		if err := p.cfg.Net.Loaded(p.epoch); err != nil {
			return err
		}
	}
	ctx, cancel := p.bounded(ctx)
	defer cancel()
	return p.late(ctx, "disks", p.disks.Loaded(ctx, p.epoch))
}

// sent returns how many bytes have left so far, over the link and the channels.
func (p *Primary) sent() int64 { return p.link.W.Transferred() + int64(p.beside.bytes()) }

func (p *Primary) pages() uint64 {
	if p.cfg.RAM == nil {
		return 0
	}
	return p.cfg.RAM.Pages()
}

// blob collects device state in memory that is used again.
type blob struct{ b []byte }

func (b *blob) Write(p []byte) (int, error) {
	b.b = append(b.b, p...)
	return len(p), nil
}

// Reset empties the blob and keeps its memory.
func (b *blob) Reset() { b.b = b.b[:0] }
