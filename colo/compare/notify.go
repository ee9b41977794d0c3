package compare

import (
	"context"
	"sync"
	"time"
)

// The messages of colo-compare's notify_dev. Each is a frame, without a NUL at its end.
const (
	notifyInit    = "COLO_USERSPACE_PROXY_INIT" // to the comparer
	notifyInitAck = "COLO_COMPARE_GET_XEN_INIT" // its answer
	notifyFlush   = "COLO_CHECKPOINT"           // to the comparer: a checkpoint is done
	notifyWanted  = "DO_CHECKPOINT"             // from the comparer
)

// ServeNotify lets somebody else orchestrate the checkpoints, as Xen does with
// QEMU's colo-compare over its notify_dev: DO_CHECKPOINT goes out when a
// checkpoint is wanted, and COLO_CHECKPOINT releases everything, as a whole
// checkpoint does. Messages that are not known are ignored.
//
// It runs until reading or writing fails or ctx ends, and returns why. It
// starts one goroutine, which has ended when it returns: a read or a write that
// blocks is ended by closing the connection. With virtio-net headers QEMU
// expects their length in front of what it receives, and does not write it:
// that is why r and w are two.
func (c *Comparer) ServeNotify(ctx context.Context, r PacketReader, w PacketWriter) error {
	ctx, cancel := context.WithCancelCause(ctx)
	var wmu sync.Mutex
	send := func(msg string) error {
		wmu.Lock()
		defer wmu.Unlock()
		return w.WritePacket([]byte(msg))
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-c.note:
				if err := send(notifyWanted); err != nil {
					cancel(err)
					return
				}
			}
		}
	})
	err := c.serve(ctx, r, func(f Frame) error {
		if !f.fits() {
			return nil
		}
		switch string(f.Data[f.VNetHdr:]) {
		case notifyInit:
			return send(notifyInitAck)
		case notifyFlush:
			return c.checkpoint()
		}
		return nil
	})
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	cancel(nil)
	wg.Wait()
	return err
}

// checkpoint does all steps of a checkpoint at once.
func (c *Comparer) checkpoint() error {
	_, err := c.do(func(e *Engine, _ time.Time) (Result, error) {
		epoch := e.next
		if err := e.Mark(epoch); err != nil {
			return Result{}, err
		}
		res, err := e.Received(epoch)
		e.hear()
		return res, err
	})
	return err
}
