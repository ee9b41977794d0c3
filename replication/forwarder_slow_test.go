package replication

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// slowRemote answers each write so long after the one before, as over a slow link, until it
// falls silent.
type slowRemote struct {
	Remote
	each  time.Duration // from one answer to the next
	moves time.Duration // how often a byte moves meanwhile, as Moved tells; 0: it does not

	mu     sync.Mutex
	waits  []func(error)
	silent bool
	timer  *time.Timer
	begun  time.Time
	quiet  time.Time     // when it fell silent
	news   chan struct{} // has an element after an answer, or the end
	end    bool
}

func (r *slowRemote) tell() {
	select {
	case r.news <- struct{}{}:
	default:
	}
}

func (r *slowRemote) Progress(ctx context.Context) error {
	select {
	case <-r.news:
	case <-ctx.Done():
		return ctx.Err()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.end {
		return errors.New("closed")
	}
	return nil
}

func (r *slowRemote) Close() error {
	r.mu.Lock()
	r.end = true
	r.mu.Unlock()
	r.tell()
	return nil
}

func (r *slowRemote) start(done func(error)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.waits = append(r.waits, done)
	if r.timer == nil {
		r.timer = time.AfterFunc(r.each, r.answer)
	}
}

func (r *slowRemote) StartWrite(_ []byte, _ int64, _ bool, done func(error)) { r.start(done) }
func (r *slowRemote) StartFlush(done func(error))                            { r.start(done) }

func (r *slowRemote) answer() {
	r.mu.Lock()
	if r.silent || len(r.waits) == 0 {
		r.timer = nil
		r.mu.Unlock()
		return
	}
	done := r.waits[0]
	r.waits = r.waits[1:]
	r.timer.Reset(r.each)
	r.mu.Unlock()
	done(nil)
	r.tell()
}

func (r *slowRemote) fallSilent() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.silent, r.quiet = true, time.Now()
}

// moverRemote is a slowRemote that tells when a byte moved.
type moverRemote struct{ *slowRemote }

func (r moverRemote) Moved() time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	end := time.Now()
	if r.silent {
		end = r.quiet
	}
	return end.Add(-end.Sub(r.begun) % r.moves)
}

// A window of writes may take minutes over a slow link, as long as something moves.
func TestASlowSecondaryIsNotTakenForASilentOne(t *testing.T) {
	const timeout = 8 * time.Second
	for _, tc := range []struct {
		name        string
		each, moves time.Duration
	}{
		{"answers come", 5 * time.Second, 0},
		{"bytes move", time.Minute, time.Second},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				slow := &slowRemote{Remote: DiskRemote(nullDisk(1 << 20)), each: tc.each, moves: tc.moves, begun: time.Now(), news: make(chan struct{}, 1)}
				var remote Remote = slow
				if tc.moves > 0 {
					remote = moverRemote{slow}
				}
				f := startForwarder(t, remote, ForwarderConfig{Timeout: timeout})
				for i := range int64(20) {
					forward1(t, f, 1, i*4096, 4096)
				}
				must(t, f.Mark(context.Background(), 1))
				must(t, f.Loaded(context.Background(), 1))
				if d := time.Since(slow.begun); d < 2*timeout {
					t.Errorf("the writes took %v, and could not be taken for lost", d)
				}

				forward1(t, f, 2, 0, 4096)
				slow.fallSilent()
				begin := time.Now()
				err := f.Mark(context.Background(), 2)
				d := time.Since(begin)
				if !errors.Is(err, ErrTimeout) || d < timeout-tc.moves || d > timeout+timeout/looks {
					t.Errorf("a silent side: %v, after %v", err, d)
				}
			})
		})
	}
}
