package replication

import (
	"errors"
	"sync/atomic"

	"github.com/gocolo/lockstep/event"
)

// lostOnce publishes that a copy is not to be trusted any more: once that its disk could
// not be made stable, and once that its metadata could not be written.
type lostOnce struct{ flush, metadata atomic.Bool }

// tell publishes what has not been published of disk and meta. The caller holds no lock.
func (l *lostOnce) tell(disk *stableDisk, meta *Metadata, bus *event.Bus, mode event.Mode, name string) {
	publish := func(told *atomic.Bool, op string, err error) {
		var hung *HungError
		if errors.As(err, &hung) && hung.Device != "metadata" {
			op = hung.Op
		}
		if err != nil && !told.Swap(true) {
			bus.Publish(event.DiskFailed{Mode: mode, Disk: name, Operation: op, Error: err.Error()})
		}
	}
	publish(&l.flush, "flush", disk.failed())
	publish(&l.metadata, "metadata", meta.failure())
}
