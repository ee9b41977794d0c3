package replication

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// pacedRemote answers as many bytes a second, one request after the other.
type pacedRemote struct {
	size, rate int64

	mu     sync.Mutex
	free   time.Time // when all that came has been answered
	queue  []pacedAnswer
	came   chan struct{}
	closed bool
}

type pacedAnswer struct {
	at   time.Time
	done func(error)
}

func newPacedRemote(size, rate int64) *pacedRemote {
	return &pacedRemote{size: size, rate: rate, came: make(chan struct{}, 1)}
}

func (r *pacedRemote) take(n int64, done func(error)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if now := time.Now(); r.free.Before(now) {
		r.free = now
	}
	r.free = r.free.Add(time.Duration(n) * time.Second / time.Duration(r.rate))
	r.queue = append(r.queue, pacedAnswer{r.free, done})
	select {
	case r.came <- struct{}{}:
	default:
	}
}

func (r *pacedRemote) Size() int64 { return r.size }

func (r *pacedRemote) StartWrite(p []byte, _ int64, _ bool, done func(error)) {
	r.take(int64(len(p)), done)
}

func (r *pacedRemote) StartZeroes(_, _ int64, _ bool, done func(error)) { r.take(1, done) }

func (r *pacedRemote) StartFlush(done func(error)) { r.take(1, done) }

func (r *pacedRemote) Progress(ctx context.Context) error {
	for {
		r.mu.Lock()
		if r.closed {
			r.mu.Unlock()
			return ErrCut
		}
		var due <-chan time.Time
		if len(r.queue) > 0 {
			a := r.queue[0]
			if d := time.Until(a.at); d > 0 {
				due = time.After(d)
			} else {
				r.queue = r.queue[1:]
				r.mu.Unlock()
				a.done(nil)
				return nil
			}
		}
		r.mu.Unlock()
		select {
		case <-due:
		case <-r.came:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (r *pacedRemote) Close() error {
	r.mu.Lock()
	r.closed = true
	queue := r.queue
	r.queue = nil
	r.mu.Unlock()
	for _, a := range queue {
		a.done(ErrCut)
	}
	select {
	case r.came <- struct{}{}:
	default:
	}
	return nil
}

// A guest whose disk writes fill the link all the time has no write that waits much longer than
// the link makes it wait, however long writes are held, and writes as much as the link takes.
func TestWhatIsHeldIsNotWaitedForAtOnce(t *testing.T) {
	const (
		size, each, depth = 64 << 20, 16 << 10, 16
		rate              = 10 << 20
	)
	for name, loads := range map[string]time.Duration{
		"a short checkpoint": time.Millisecond,
		"a long one":         100 * time.Millisecond,
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				f := NewForwarder(newPacedRemote(size, rate), ForwarderConfig{WindowBytes: 1 << 20, HoldBytes: 4 << 20})
				must(t, f.Start(ctx))
				begin := time.Now()
				var idle atomic.Int64
				var wg sync.WaitGroup
				wg.Go(func() { f.Run(ctx) })
				wg.Go(func() {
					for epoch := uint64(1); ; epoch++ {
						time.Sleep(100 * time.Millisecond)
						if f.Mark(ctx, epoch) != nil {
							return
						}
						time.Sleep(loads) // with nothing to send
						idle.Add(int64(loads))
						if f.Loaded(ctx, epoch) != nil {
							return
						}
					}
				})
				const until, learnt = 5 * time.Second, 2 * time.Second
				var mu sync.Mutex
				var longest time.Duration
				var bytes int64
				for i := range depth {
					wg.Go(func() {
						p := make([]byte, each)
						for off := int64(i) * each; time.Since(begin) < until; off = (off + depth*each) % size {
							at := time.Now()
							if _, err := f.WriteAt(p, off); err != nil {
								t.Error(err)
								return
							}
							if at.Sub(begin) > learnt {
								mu.Lock()
								longest, bytes = max(longest, time.Since(at)), bytes+each
								mu.Unlock()
							}
						}
					})
				}
				time.Sleep(learnt)
				idle.Store(0)
				time.Sleep(until - learnt)
				busy := until - learnt - time.Duration(idle.Load())
				time.Sleep(time.Second)
				must(t, f.Stop(ctx, true))
				cancel()
				wg.Wait()
				link := time.Duration(depth * each * int64(time.Second) / rate) // for one write of all
				share := float64(bytes) / float64(rate) / busy.Seconds()
				t.Logf("the longest wait is %v, the link alone makes it %v; the guest wrote %.2f of what the link takes", longest, link, share)
				if longest > 4*link {
					t.Errorf("a write waited for %v, more than four times %v", longest, link)
				}
				if share < 0.9 {
					t.Errorf("the guest wrote %.2f of what the link takes, want 0.9", share)
				}
			})
		})
	}
}

// learn has f know the rate of its remote: the window was full at a Mark.
func learn(t *testing.T, f *Forwarder) {
	t.Helper()
	ctx := t.Context()
	for off := int64(0); off < 1<<20; off += 64 << 10 {
		write(t, f, 1, off, 64<<10)
	}
	must(t, f.Mark(ctx, 1))
	must(t, f.Loaded(ctx, 1))
	if f.pace.rate == 0 {
		t.Fatal("the rate is not known after a full window")
	}
}

// A Mark may come before the window was ever a quarter full. Memory would take all of what may be
// held, and the guest's next write would wait until the link has taken it.
func TestWhatIsHeldIsNotWaitedForAtOnceAtTheFirstMark(t *testing.T) {
	const rate, window = 1 << 20, 1 << 20
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		f := NewForwarder(newPacedRemote(64<<20, rate), ForwarderConfig{WindowBytes: window, HoldBytes: 32 << 20})
		must(t, f.Start(ctx))
		var wg sync.WaitGroup
		wg.Go(func() { f.Run(ctx) })
		write(t, f, 1, 0, 64<<10) // two at a time, which is less than a quarter
		for off := int64(64 << 10); off < 1<<20; off += 64 << 10 {
			write(t, f, 1, off, 64<<10)
			time.Sleep(time.Second / 16)
		}
		if f.pace.rate != 0 {
			t.Fatal("the rate is known before the window was full")
		}
		done := make(chan error)
		wg.Go(func() { done <- f.Mark(ctx, 1) })
		synctest.Wait()
		begin, stop := time.Now(), make(chan struct{})
		wg.Go(func() {
			for off := int64(0); ; off += 64 << 10 {
				select {
				case <-stop:
					return
				default:
				}
				write(t, f, 2, off, 64<<10)
			}
		})
		must(t, <-done)
		time.Sleep(2 * time.Second)
		synctest.Wait()
		f.mu.Lock()
		held := f.holding
		f.mu.Unlock()
		if most := window + int64(time.Since(begin).Seconds()*rate*5/4); held > most || held < rate {
			t.Errorf("%d bytes are held after %v, want at most %d", held, time.Since(begin), most)
		}
		close(stop)
		must(t, f.Loaded(ctx, 1))
		time.Sleep(time.Minute)
		must(t, f.Stop(ctx, true))
		cancel()
		wg.Wait()
	})
}

func TestHeldWritesAreLetInInTheirOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := NewForwarder(newPacedRemote(64<<20, 1<<20), ForwarderConfig{WindowBytes: 1 << 20, HoldBytes: 64 << 20})
		must(t, f.Start(t.Context()))
		learn(t, f)
		must(t, f.Mark(t.Context(), 2))
		write(t, f, 2, 0, 1<<20) // the window was empty: as much is let in at once
		var wg sync.WaitGroup
		var mu sync.Mutex
		var order []int
		for i := range 8 {
			wg.Go(func() {
				write(t, f, 3, int64(i)<<20, 256<<10)
				mu.Lock()
				order = append(order, i)
				mu.Unlock()
			})
			synctest.Wait()
		}
		at := time.Now()
		wg.Wait()
		for i, k := range order {
			if i != k {
				t.Fatalf("writes went in as %v, want as they came", order)
			}
		}
		if took := time.Since(at); took < time.Second || took > 3*time.Second {
			t.Errorf("2 MiB were let in within %v, want about two seconds at 1 MiB a second", took)
		}
		must(t, f.Loaded(t.Context(), 2))
		must(t, f.Stop(t.Context(), true))
	})
}

// However a hold ends, those who wait for their turn go on at that moment.
func TestTheEndOfAHoldReleasesThoseWhoWaitForTheirTurn(t *testing.T) {
	for name, end := range map[string]func(f *Forwarder) error{
		"loaded": func(f *Forwarder) error { return f.Loaded(context.Background(), 2) },
		"stop":   func(f *Forwarder) error { return f.Stop(context.Background(), true) },
		"cut":    func(f *Forwarder) error { f.Cut(); return nil },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := NewForwarder(newPacedRemote(64<<20, 1<<20), ForwarderConfig{WindowBytes: 1 << 20, HoldBytes: 64 << 20})
				must(t, f.Start(t.Context()))
				learn(t, f)
				must(t, f.Mark(t.Context(), 2))
				write(t, f, 2, 0, 256<<10)
				var wg sync.WaitGroup
				for i := range int64(2) {
					wg.Go(func() { f.WriteAt(make([]byte, 700<<10), i<<20) })
				}
				synctest.Wait()
				at := time.Now()
				must(t, end(f))
				wg.Wait()
				if took := time.Since(at); took != 0 {
					t.Errorf("a write went on %v after the end of its hold", took)
				}
				f.Stop(t.Context(), true)
			})
		})
	}
}

// A write that was refused before Start keeps nobody waiting after it.
func TestAWriteThatCameTooEarlyKeepsNoPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := NewForwarder(newPacedRemote(1<<20, 1<<20), ForwarderConfig{})
		_, err := f.WriteAt(make([]byte, 512), 0)
		wantErr(t, "a write before the start", err, ErrNotRunning)
		must(t, f.Start(t.Context()))
		write(t, f, 1, 0, 512)
		must(t, f.Sync())
		must(t, f.Stop(t.Context(), true))
	})
}
