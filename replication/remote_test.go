package replication

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"sync"
)

var errLost = errors.New("connection lost")

// fakeRemote is a Remote whose answers come in any order, one for each
// Progress, and which can hang or be lost.
type fakeRemote struct {
	disk Disk
	rng  *rand.Rand

	mu      sync.Mutex
	pending []remoteOp
	wake    chan struct{}
	lost    error
	hang    bool
	log     []string
	most    int // requests outstanding at once
}

type remoteOp struct {
	do   func() error
	done func(error)
}

func newFakeRemote(disk Disk, seed uint64) *fakeRemote {
	return &fakeRemote{disk: disk, rng: rand.New(rand.NewPCG(seed, 1)), wake: make(chan struct{})}
}

// Identity returns the identity of the disk, which is given one where it has none: nothing that
// has reached it is ever lost.
func (r *fakeRemote) Identity() (Identity, error) {
	if d, ok := r.disk.(Identified); ok {
		return d.Identity()
	}
	if d, ok := r.disk.(*fakeDisk); ok {
		if d.copy.Copy == (ID{}) {
			d.copy.Copy, d.copy.instance = newID(), newID()
		}
		return d.copy, nil
	}
	return Identity{}, nil
}

func (r *fakeRemote) Adopt(of Identity) error {
	if d, ok := r.disk.(Identified); ok {
		return d.Adopt(of)
	}
	if d, ok := r.disk.(*fakeDisk); ok {
		c := &d.copy
		c.Disk, c.Generation, c.History, c.State = of.Disk, of.Generation, of.History, CopyInconsistent
	}
	return nil
}

func (r *fakeRemote) Size() int64 { return r.disk.Size() }

func (r *fakeRemote) add(kind string, do func() error, done func(error)) {
	r.mu.Lock()
	r.log = append(r.log, kind)
	lost := r.lost
	if lost == nil {
		r.pending = append(r.pending, remoteOp{do, done})
		r.most = max(r.most, len(r.pending))
		close(r.wake)
		r.wake = make(chan struct{})
	}
	r.mu.Unlock()
	if lost != nil {
		done(lost)
	}
}

func (r *fakeRemote) StartWrite(p []byte, off int64, fua bool, done func(error)) {
	p = bytes.Clone(p)
	kind := "write"
	if fua {
		kind = "fua"
	}
	r.add(kind, func() error {
		if fua {
			return WriteFUA(r.disk, p, off)
		}
		return writeFull(r.disk, p, off)
	}, done)
}

func (r *fakeRemote) StartZeroes(off, n int64, _ bool, done func(error)) {
	r.add("zeroes", func() error { return WriteZeroes(r.disk, off, n) }, done)
}

func (r *fakeRemote) StartFlush(done func(error)) { r.add("flush", r.disk.Sync, done) }

func (r *fakeRemote) Progress(ctx context.Context) error {
	for {
		r.mu.Lock()
		if r.lost != nil {
			r.mu.Unlock()
			return r.lost
		}
		if len(r.pending) > 0 && !r.hang {
			i := r.rng.IntN(len(r.pending))
			op := r.pending[i]
			r.pending = append(r.pending[:i], r.pending[i+1:]...)
			r.mu.Unlock()
			op.done(op.do())
			return nil
		}
		wake := r.wake
		r.mu.Unlock()
		select {
		case <-wake:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (r *fakeRemote) setHang(hang bool) {
	r.mu.Lock()
	r.hang = hang
	close(r.wake)
	r.wake = make(chan struct{})
	r.mu.Unlock()
}

func (r *fakeRemote) Close() error { r.lose(); return nil }

// lose loses the connection. What was under way may or may not have arrived.
func (r *fakeRemote) lose() {
	r.mu.Lock()
	if r.lost != nil {
		r.mu.Unlock()
		return
	}
	r.lost = errLost
	pending := r.pending
	r.pending = nil
	close(r.wake)
	r.mu.Unlock()
	for _, op := range pending {
		if r.rng.IntN(2) == 0 {
			op.do()
		}
		op.done(errLost)
	}
}

func (r *fakeRemote) takeLog() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	l := r.log
	r.log = nil
	return l
}

func (r *fakeRemote) outstanding() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.pending)
}
