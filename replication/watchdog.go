package replication

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/gocolo/lockstep/event"
)

// ErrHung says that an operation of a local disk, or of what is kept beside it, has not returned, and
// is waited for no longer; see HungError. EIO.
var ErrHung error = &sentinel{"a disk hangs", syscall.EIO}

// HungError says that an operation of a device has not returned. It matches ErrHung. A call that
// was given up because its context had ended returns an error that matches that of the context too.
//
// Nobody can take an operation back that the system has begun: it ends when the system ends it,
// and a write may still reach the device then. So the copy counts as failed from the moment at
// which it is given up. Nothing more is asked of its devices, all that is under way there is
// an error even if the system says at last that it was done, and nothing is acknowledged that
// depends on it. A late write can only change what the guest, or the primary, was writing when
// the device hung, on this copy. That harms nobody as long as nobody else uses the copy, so it is to be
// opened anew before it is used again, once WaitHung has returned: a [File] refuses to be
// used until then (see [Abandoner]), and is locked until the last operation has returned, though
// it was closed, and though its process was killed.
type HungError struct {
	Mode   event.Mode    // on which side the copy is; empty: no Primary or Secondary has it yet
	Disk   string        // the name of the guest's disk, from the configuration; it may be empty
	Device string        // which device of the copy: "disk", "log of pre-images", "active overlay" or "metadata"
	Op     string        // "read", "write", "zero", "trim", "flush", "extents", "grow", "open" or "update"
	For    time.Duration // for how long it had not returned when it was given up
}

func (e *HungError) Error() string {
	of := ""
	if e.Mode != "" { // somebody uses the copy
		of = fmt.Sprintf("%s: disk %q: ", e.Mode, e.Disk)
	}
	return fmt.Sprintf("replication: %s%s: a %s has not returned for %v and is waited for no longer",
		of, e.Device, e.Op, e.For.Round(time.Millisecond))
}

// Is reports whether target is ErrHung, or an errno that ErrHung names.
func (e *HungError) Is(target error) bool { return target == ErrHung || target == error(syscall.EIO) }

// Abandoner is a Disk that is told when one of its operations has hung and was given up.
type Abandoner interface {
	// Abandon says that nobody waits for what is under way any more. From then on every
	// operation returns err, CheckWrites too, and the disk lets nobody else use what is below
	// it before the last operation has returned. It does not wait. Any goroutine may call it.
	Abandon(err error)
}

// DefaultHungAfter is how long an operation of a device may take at least, where a configuration does
// not say so. It is longer than the 30 s after which Linux takes up a command that a SCSI disk has not
// answered, and tries other paths: a disk that is slow is not given up, whose copy may be the only one.
const DefaultHungAfter = time.Minute

// flight has the operations of one device that are under way, until one of them is given
// up. The zero value is ready; a nil *flight counts nothing. Any goroutine may use it. It
// allocates only until it has as many entries as operations were ever under way at once.
type flight struct {
	hung atomic.Pointer[HungError] // not nil: no operation begins, and none succeeds

	mu   sync.Mutex
	ops  []deviceOp
	free []int // the entries of ops that are not in use
}

// deviceOp is an operation that is under way.
type deviceOp struct {
	what  string // empty: the entry is not in use
	since time.Time
}

// begin records an operation, which end ends, or returns why none may begin.
func (f *flight) begin(what string) (op int, err error) {
	if f == nil {
		return 0, nil
	}
	if e := f.hung.Load(); e != nil {
		return 0, e
	}
	now := time.Now()
	f.mu.Lock()
	defer f.mu.Unlock()
	if k := len(f.free); k > 0 {
		op, f.free = f.free[k-1], f.free[:k-1]
	} else {
		op = len(f.ops)
		f.ops = append(f.ops, deviceOp{})
	}
	f.ops[op] = deviceOp{what, now}
	return op, nil
}

// end ends an operation, and returns its error: err, unless it was given up.
func (f *flight) end(op int, err error) error {
	if f == nil {
		return err
	}
	f.mu.Lock()
	f.ops[op].what = ""
	f.free = append(f.free, op)
	f.mu.Unlock()
	if e := f.hung.Load(); e != nil {
		return e
	}
	return err
}

// due returns when the operation counts as hung, if others may take so long. What makes much
// stable may take three times as long.
func (o deviceOp) due(after time.Duration) time.Time {
	if o.what == opFlush || o.what == opUpdate {
		after *= 3
	}
	return o.since.Add(after)
}

const (
	opFlush  = "flush"
	opUpdate = "update"
)

// next returns the operation that counts as hung first; what is empty if there is none.
func (f *flight) next(after time.Duration) (first deviceOp) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, o := range f.ops {
		if o.what != "" && (first.what == "" || o.due(after).Before(first.due(after))) {
			first = o
		}
	}
	return first
}

// watchdog gives up devices that hang. It belongs to one copy, whose calls it watches.
type watchdog struct {
	mode    event.Mode
	name    string
	after   time.Duration        // how long an operation may take at least; negative: for ever
	devices func() []*stableDisk // of the copy; they may be more or others at each call
	gaveUp  func(error)          // is called once, without a lock

	hung  atomic.Pointer[HungError]
	calls running // the goroutines of call
}

// call returns what do returns. It gives up, with an error that matches ErrHung, if an operation
// of one of the devices is overdue, and ctx has ended or never ends. The goroutine that
// runs do is then left until the operation returns. As no other call begins after that, there is at most
// one for each call that was under way.
func (w *watchdog) call(ctx context.Context, do func() error) error {
	if e := w.hung.Load(); e != nil {
		return refused(ctx, e)
	}
	for _, d := range w.devices() { // one that another copy has used in this process
		if e := d.flight.hung.Load(); e != nil {
			return refused(ctx, e)
		}
	}
	done := make(chan error, 1)
	w.calls.count(1)
	go func() {
		defer w.calls.count(-1)
		done <- do()
	}()
	if ctx.Done() != nil {
		select {
		case err := <-done:
			return err
		case <-ctx.Done():
		}
	}
	e, err := w.wait(done)
	if e == nil {
		return err
	}
	if w.hung.CompareAndSwap(nil, e) {
		w.gaveUp(e)
	}
	return refused(ctx, w.hung.Load())
}

// wait waits for done, or for an operation to have hung, which it gives up.
func (w *watchdog) wait(done <-chan error) (*HungError, error) {
	if w.after < 0 {
		return nil, <-done
	}
	timer := time.NewTimer(w.after)
	defer timer.Stop()
	for {
		d, op := w.next()
		left := w.after
		if d != nil {
			left = time.Until(op.due(w.after))
		}
		if left <= 0 {
			select {
			case err := <-done:
				return nil, err
			default:
			}
			e := &HungError{Mode: w.mode, Disk: w.name, Device: d.name, Op: op.what, For: time.Since(op.since)}
			d.abandon(e)
			for _, other := range w.devices() {
				other.abandon(e)
			}
			return e, nil
		}
		timer.Reset(left)
		select {
		case err := <-done:
			return nil, err
		case <-timer.C:
		}
	}
}

// next returns the operation on any device that counts as hung first.
func (w *watchdog) next() (of *stableDisk, first deviceOp) {
	for _, d := range w.devices() {
		if o := d.flight.next(w.after); o.what != "" && (of == nil || o.due(w.after).Before(first.due(w.after))) {
			of, first = d, o
		}
	}
	return of, first
}

// oldest returns the operation that has been under way for longest; what is empty if there is none.
func (f *flight) oldest() (first deviceOp) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, o := range f.ops {
		if o.what != "" && (first.what == "" || o.since.Before(first.since)) {
			first = o
		}
	}
	return first
}

// UnderWay returns which operation of this side's own devices has been under way for longest, in the
// words of a [HungError], and since when. op is empty if there is none. So a caller that waits for the disks
// of both sides, as in Mark, can tell which of them is late. It does not wait. Any goroutine
// may call it.
func (p *Primary) UnderWay() (device, op string, since time.Time) {
	first := p.meta.access.flight.oldest()
	device = "metadata"
	for _, d := range p.devices() {
		if o := d.flight.oldest(); o.what != "" && (first.what == "" || o.since.Before(first.since)) {
			device, first = d.name, o
		}
	}
	return device, first.what, first.since
}

// refused returns the error of a call that does not wait for a device that hangs.
func refused(ctx context.Context, e *HungError) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%w (%w)", e, err)
	}
	return e
}

func (w *watchdog) init(mode event.Mode, name string, after time.Duration, devices func() []*stableDisk, gaveUp func(error)) {
	if after == 0 {
		after = DefaultHungAfter
	}
	w.mode, w.name, w.after, w.devices, w.gaveUp = mode, name, after, devices, gaveUp
}

// WaitHung returns when no call to this Primary is under way any more, also none that was given
// up because a device hung (ErrHung): each of those has left one goroutine, which ends when the
// system has answered. If ctx ends before, the error is that of ctx. Requests of the guest are
// not waited for. Any goroutine may call it.
func (p *Primary) WaitHung(ctx context.Context) error {
	return errors.Join(p.dog.calls.await(ctx), p.meta.access.await(ctx))
}

// WaitHung does what [Primary.WaitHung] does.
func (s *Secondary) WaitHung(ctx context.Context) error {
	return errors.Join(s.dog.calls.await(ctx), s.meta.access.await(ctx))
}
