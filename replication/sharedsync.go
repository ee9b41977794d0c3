package replication

import "sync"

// sharedSync makes one sync at a time. Those who ask while one is under way share the next,
// since that one may have begun before their last write had ended. The first error is that
// of everybody who asks from then on. The zero value is ready; any goroutine may use it.
type sharedSync struct {
	mu    sync.Mutex
	ended sync.Cond // broadcast when a sync has ended
	runs  bool      // a sync is under way
	begun uint64    // how many syncs have begun
	done  uint64    // how many have ended
	err   error
}

// run returns when a sync has ended that began after run was called. What makes one is the
// same at every call; it is called without mu.
func (s *sharedSync) run(once func() error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended.L = &s.mu
	for next := s.begun + 1; s.err == nil && s.done < next; {
		if s.runs {
			s.ended.Wait()
			continue
		}
		s.runs = true
		s.begun++
		s.mu.Unlock()
		err := once()
		s.mu.Lock()
		s.runs = false
		s.done++
		s.err = err
		s.ended.Broadcast()
	}
	return s.err
}
