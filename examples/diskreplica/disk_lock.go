package main

import (
	"context"
	"sync"
	"time"
)

// turn is a lock that is held while a disk is waited for, which may take for ever. It is no
// sync.Mutex, since in a test with synctest a goroutine that waits for a mutex keeps the clock from
// going on. The zero value is ready.
type turn struct {
	mu    sync.Mutex
	freed sync.Cond
	taken bool
}

func (t *turn) Lock() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for t.freed.L = &t.mu; t.taken; {
		t.freed.Wait()
	}
	t.taken = true
}

func (t *turn) Unlock() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.taken = false
	t.freed.Signal()
}

// patience is how long a command is waited for before the next one is read.
const patience = 5 * time.Second

// patiently carries out the command line by do. If that lasts, as behind a checkpoint that waits for a
// disk which does not answer, it says so, and returns: do goes on, and its error is printed.
func (s *secondary) patiently(ctx context.Context, line string, do func() error) error {
	done, left := make(chan error), make(chan struct{})
	s.ordered.Go(func() {
		err := do()
		select {
		case done <- err:
		case <-left:
			if err != nil {
				s.failed(err)
			}
		}
	})
	late := time.NewTimer(patience)
	defer late.Stop()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		close(left)
		return ctx.Err()
	case <-late.C:
		close(left)
		s.returned(map[string]any{"waits": line}, "%s: the disk has not let it be carried out for %v; it goes on, and says when it has ended", line, patience)
		return nil
	}
}
