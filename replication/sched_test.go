package replication

import (
	"context"
	"math/rand/v2"
	"runtime"
	"sync"
)

// sched interleaves goroutines at random, from a seed: at each operation on a
// disk or a connection one of them may be held up while others go on.
type sched struct {
	mu     sync.Mutex
	rng    *rand.Rand
	parked []chan struct{}
	wait   sync.Cond // for somebody to be parked, or the end
	ended  bool
	ops    int
	when   map[int]func() // what happens at an operation
}

func newSched(seed uint64) *sched {
	s := &sched{rng: rand.New(rand.NewPCG(seed, 11)), when: map[int]func(){}}
	s.wait.L = &s.mu
	return s
}

// run lets goroutines that are held up go on, until stop is called: one each time that
// all others have had a turn, so that a run takes as long as its work, however busy
// the machine is.
func (s *sched) run() (stop func()) {
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			s.mu.Lock()
			for len(s.parked) == 0 && !s.ended {
				s.wait.Wait()
			}
			if s.ended {
				s.mu.Unlock()
				return
			}
			s.mu.Unlock()
			for range 8 {
				runtime.Gosched()
			}
			s.mu.Lock()
			s.release()
			s.mu.Unlock()
		}
	})
	return func() {
		s.mu.Lock()
		s.ended = true
		for len(s.parked) > 0 {
			s.release()
		}
		s.wait.Signal()
		s.mu.Unlock()
		wg.Wait()
	}
}

// release lets one go on. The caller holds mu.
func (s *sched) release() {
	if len(s.parked) == 0 {
		return
	}
	i := s.rng.IntN(len(s.parked))
	close(s.parked[i])
	s.parked = append(s.parked[:i], s.parked[i+1:]...)
}

// point is an operation.
func (s *sched) point() {
	s.mu.Lock()
	s.ops++
	happens := s.when[s.ops]
	var wait chan struct{}
	switch n := s.rng.IntN(4); {
	case s.ended:
	case n == 0 && len(s.parked) < 6:
		wait = make(chan struct{})
		s.parked = append(s.parked, wait)
		s.wait.Signal()
	case n == 1:
		s.release()
	}
	s.mu.Unlock()
	if happens != nil {
		happens()
	}
	if wait != nil {
		<-wait
	}
}

// schedDisk is a fakeDisk whose operations are scheduled: before they have an
// effect, and after.
type schedDisk struct {
	*fakeDisk
	s    *sched
	meta *Metadata // nil: it keeps none
}

func (d *schedDisk) ReadAt(p []byte, off int64) (int, error) {
	d.s.point()
	return d.fakeDisk.ReadAt(p, off)
}

func (d *schedDisk) WriteAt(p []byte, off int64) (int, error) {
	d.s.point()
	n, err := d.fakeDisk.WriteAt(p, off)
	d.s.point()
	return n, err
}

func (d *schedDisk) Sync() error {
	d.s.point()
	err := d.fakeDisk.Sync()
	d.s.point()
	return err
}

// schedKept is a schedDisk with metadata.
type schedKept struct{ schedDisk }

func (d *schedKept) Metadata() (*Metadata, error) { return d.meta, nil }

// schedRemote is a Remote whose requests are all under way at once, each on a
// goroutine of its own, as in a server.
type schedRemote struct {
	disk Disk
	s    *sched
	wg   sync.WaitGroup

	mu   sync.Mutex
	lost error
	open map[int]func(error) // requests that are not answered
	next int
	done []func() // answers that have come
	wake chan struct{}
}

func newSchedRemote(d Disk, s *sched) *schedRemote {
	return &schedRemote{disk: d, s: s, open: map[int]func(error){}, wake: make(chan struct{}, 1)}
}

func (r *schedRemote) Size() int64 { return r.disk.Size() }

func (r *schedRemote) begin(do func() error, done func(error)) {
	r.mu.Lock()
	if err := r.lost; err != nil {
		r.mu.Unlock()
		done(err)
		return
	}
	id := r.next
	r.next++
	r.open[id] = done
	r.wg.Add(1) // before Close, after which it is waited for
	r.mu.Unlock()
	go func() {
		defer r.wg.Done()
		r.s.point()
		err := do()
		r.s.point()
		r.mu.Lock()
		defer r.mu.Unlock()
		if _, ok := r.open[id]; !ok {
			return // the connection was lost before the answer
		}
		delete(r.open, id)
		r.done = append(r.done, func() { done(err) })
		r.signal()
	}()
}

func (r *schedRemote) signal() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

func (r *schedRemote) StartWrite(p []byte, off int64, fua bool, done func(error)) {
	q := append([]byte(nil), p...)
	r.begin(func() error {
		if fua {
			return WriteFUA(r.disk, q, off)
		}
		return writeFull(r.disk, q, off)
	}, done)
}

func (r *schedRemote) StartZeroes(off, n int64, _ bool, done func(error)) {
	r.begin(func() error { return WriteZeroes(r.disk, off, n) }, done)
}

func (r *schedRemote) StartFlush(done func(error)) { r.begin(r.disk.Sync, done) }

func (r *schedRemote) Progress(ctx context.Context) error {
	for {
		r.mu.Lock()
		done := r.done
		r.done = nil
		lost := r.lost
		r.mu.Unlock()
		for _, f := range done {
			f()
		}
		if len(done) > 0 {
			return nil
		}
		if lost != nil {
			return lost
		}
		select {
		case <-r.wake:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Close loses the connection; what is under way may still have its effect.
func (r *schedRemote) Close() error {
	r.mu.Lock()
	if r.lost != nil {
		r.mu.Unlock()
		return nil
	}
	r.lost = errLost
	open := r.open
	r.open = nil
	done := r.done
	r.done = nil
	r.signal()
	r.mu.Unlock()
	for _, f := range done {
		f()
	}
	for _, f := range open {
		f(errLost)
	}
	return nil
}

func (r *schedRemote) Identity() (Identity, error) { return r.disk.(Identified).Identity() }

func (r *schedRemote) Adopt(of Identity) error { return r.disk.(Identified).Adopt(of) }
