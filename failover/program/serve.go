package program

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/gocolo/lockstep/failover"
)

// MaxRequests bounds the requests that wait for their answers at one time.
const MaxRequests = 64

// Serve is the program's side: it answers the requests of r to w until r ends, and returns
// nil then. All that it has begun has ended when it returns; a request that still waits is
// given up. It fails if r or w does, or if a line is no request. The end of ctx does not end
// a read of r: whoever calls Serve closes r.
//
// A request that comes while MaxRequests others wait is answered with an error.
func Serve(ctx context.Context, r io.Reader, w io.Writer, store failover.Store) error {
	ctx, cancel := context.WithCancelCause(ctx)
	s := server{store: store, w: w, waiting: make(map[uint64]context.CancelFunc), fail: cancel}
	err := s.serve(ctx, r)
	cancel(errors.New("program: the requests have ended"))
	s.group.Wait()
	return errors.Join(err, s.failed)
}

// server serves one Store.
type server struct {
	store failover.Store
	group sync.WaitGroup
	fail  context.CancelCauseFunc

	mu      sync.Mutex
	w       io.Writer
	failed  error // of the first write that failed; no more is written then
	waiting map[uint64]context.CancelFunc
}

func (s *server) serve(ctx context.Context, r io.Reader) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, MaxLine+1)
	for lines.Scan() && ctx.Err() == nil {
		var q request
		if err := decode(lines.Bytes(), &q); err != nil {
			return err
		}
		if err := s.take(ctx, q); err != nil {
			return err
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("program: reading requests: %w", err)
	}
	return nil
}

// take begins a request.
func (s *server) take(ctx context.Context, q request) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if q.Do == doForget {
		if forget := s.waiting[q.Of]; forget != nil {
			forget()
		}
		return nil
	}
	var do func(ctx context.Context) (answer, error)
	switch q.Do {
	case doLoad:
		do = func(ctx context.Context) (answer, error) {
			r, err := s.store.Load(ctx)
			return answer{Record: sent(r)}, err
		}
	case doSwap:
		do = func(ctx context.Context) (answer, error) {
			ok, err := s.store.Swap(ctx, q.Old.record(), q.Next.record())
			return answer{Swapped: ok}, err
		}
	case doChanged:
		do = func(ctx context.Context) (answer, error) {
			r, err := s.store.Changed(ctx, q.Seen.record())
			return answer{Record: sent(r)}, err
		}
	default:
		return fmt.Errorf("%w: nothing is called %.40q", errLine, q.Do)
	}
	if s.waiting[q.ID] != nil {
		return fmt.Errorf("%w: request %d twice", errLine, q.ID)
	}
	if len(s.waiting) == MaxRequests {
		s.write(answer{ID: q.ID, Error: fmt.Sprintf("more than %d requests at one time", MaxRequests)})
		return nil
	}
	ctx, forget := context.WithCancel(ctx)
	s.waiting[q.ID] = forget
	s.group.Go(func() {
		a, err := do(ctx)
		if err != nil {
			a = answer{Error: text(err)}
		}
		a.ID = q.ID
		forget()
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.waiting, q.ID)
		s.write(a)
	})
	return nil
}

// write sends an answer. s.mu is held.
func (s *server) write(a answer) {
	if s.failed != nil {
		return
	}
	if _, err := s.w.Write(encode(a)); err != nil {
		s.failed = fmt.Errorf("program: writing an answer: %w", err)
		s.fail(s.failed)
	}
}

// text returns what is told of an error.
func text(err error) string {
	if s := err.Error(); s != "" {
		return s[:min(maxText, len(s))]
	}
	return "failed"
}
