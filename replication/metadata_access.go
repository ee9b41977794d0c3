package replication

import (
	"cmp"
	"context"
	"sync"
	"time"

	"github.com/gocolo/lockstep/event"
)

// metadataAccess is how the device of a copy's metadata is reached. Whatever is asked of the device is
// waited for as long as HungAfter says, and then given up, also by callers that have no context: nobody
// who waits for metadata holds a lock of the disk for longer. The zero value gives up after
// DefaultHungAfter. Its methods may be called from any goroutine.
type metadataAccess struct {
	flight flight

	mu      sync.Mutex
	mode    event.Mode // of the copy, for a HungError; empty: nobody uses the copy yet
	name    string
	after   time.Duration // zero: DefaultHungAfter
	image   *File         // stays locked while the device is in use; nil: there is none
	running running
}

// of says whose copy it is, and how long the device may take.
func (a *metadataAccess) of(mode event.Mode, name string, after time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.mode, a.name, a.after = mode, name, after
}

// hung returns the error of an operation that was given up, or nil.
func (a *metadataAccess) hung() *HungError { return a.flight.hung.Load() }

// use returns what do returns, which uses the device, or an error that matches ErrHung if do, or something
// before it, has not returned in time. The goroutine that runs do is then left until it returns.
func (a *metadataAccess) use(what string, do func() error) error {
	_, err := usedBy(a, what, func() (struct{}, error) { return struct{}{}, do() })
	return err
}

// usedBy does what use does, and returns a result too.
func usedBy[T any](a *metadataAccess, what string, do func() (T, error)) (none T, err error) {
	a.mu.Lock()
	mode, name, after, image := a.mode, a.name, cmp.Or(a.after, DefaultHungAfter), a.image
	a.mu.Unlock()
	if image != nil {
		if err := image.keepOpen(); err != nil {
			return none, err
		}
	}
	letGo := func() {
		if image != nil {
			image.letGo()
		}
	}
	op, err := a.flight.begin(what)
	if err != nil {
		letGo()
		return none, err
	}
	type result struct {
		of  T
		err error
	}
	done := make(chan result, 1)
	begun := time.Now()
	a.running.count(1)
	go func() {
		defer a.running.count(-1)
		of, err := do()
		letGo()
		done <- result{of, a.flight.end(op, err)}
	}()
	var late <-chan time.Time
	if after > 0 {
		timer := time.NewTimer(time.Until(deviceOp{what, begun}.due(after)))
		defer timer.Stop()
		late = timer.C
	}
	select {
	case r := <-done:
		return r.of, r.err
	case <-late:
	}
	a.flight.hung.CompareAndSwap(nil, &HungError{Mode: mode, Disk: name, Device: "metadata", Op: what, For: time.Since(begun)})
	return none, a.hung()
}

// await returns when nothing that was asked of the device is under way, or the error of ctx.
func (a *metadataAccess) await(ctx context.Context) error { return a.running.await(ctx) }

// running counts goroutines that may outlive the call that has started them. The zero value is ready; its methods may be
// called from any goroutine.
type running struct {
	mu   sync.Mutex
	n    int
	idle chan struct{} // closed when there is none any more; nil: nobody waits for that
}

func (r *running) count(n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.n += n; r.n == 0 && r.idle != nil {
		close(r.idle)
		r.idle = nil
	}
}

// await returns when none is left, or the error of ctx.
func (r *running) await(ctx context.Context) error {
	r.mu.Lock()
	if r.n == 0 {
		r.mu.Unlock()
		return nil
	}
	if r.idle == nil {
		r.idle = make(chan struct{})
	}
	idle := r.idle
	r.mu.Unlock()
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
