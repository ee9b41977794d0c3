package replication

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/gocolo/lockstep/event"
)

// ioErrors tells of requests of the guest that have failed because of this side's disk. The zero value
// is ready; any goroutine may use it.
type ioErrors struct{ read, write atomic.Int64 } // when it was last told of, in nanoseconds since 1970

// ioErrorsEvery is the shortest time between two events about requests of one kind: a guest whose disk
// fails may repeat them as fast as it can.
const ioErrorsEvery = time.Second

// tell publishes an event.BlockIOError if err is one of the disk. The caller holds no lock.
func (t *ioErrors) tell(bus *event.Bus, mode event.Mode, disk string, op event.IOOperation, err error) {
	if err == nil {
		return
	}
	for _, other := range []error{ErrRange, ErrFenced, ErrGated, ErrNotRunning, ErrFull} {
		if errors.Is(err, other) && !errors.Is(err, ErrHung) {
			return // the request was refused, and no disk has failed
		}
	}
	last := &t.read
	if op == event.IOWrite {
		last = &t.write
	}
	now, was := time.Now().UnixNano(), last.Load()
	if was != 0 && now-was < int64(ioErrorsEvery) || !last.CompareAndSwap(was, now) {
		return
	}
	full := noRoom(err)
	bus.Publish(event.BlockIOError{
		NodeName: disk, NoSpace: &full, Operation: op, Action: event.IOReport,
		Reason: fmt.Sprintf("%s: %v", mode, err),
	})
}

func (p *Primary) tellIO(op event.IOOperation, err error) {
	if err == nil {
		return
	}
	if _, ok := p.local.Disk.(*Secondary); !ok { // which tells of it
		p.ioErrors.tell(p.cfg.Events, event.ModePrimary, p.cfg.Name, op, err)
	}
}

func (s *Secondary) tellIO(op event.IOOperation, err error) {
	s.ioErrors.tell(s.cfg.Events, event.ModeSecondary, s.cfg.Name, op, err)
}
