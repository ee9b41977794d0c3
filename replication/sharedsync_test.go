package replication

import (
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
)

// A sync that was under way already does not count for those who come during it.
func TestSyncsOfAFileThatComeDuringOneShareTheNext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s sharedSync
		var begun, ended atomic.Int64
		release := make(chan struct{})
		once := func() error {
			begun.Add(1)
			<-release
			ended.Add(1)
			return nil
		}
		var wg sync.WaitGroup
		wg.Go(func() { must(t, s.run(once)) })
		synctest.Wait()
		for range 20 {
			wg.Go(func() {
				must(t, s.run(once))
				if ended.Load() < 2 {
					t.Error("a sync was answered by one that had begun before it")
				}
			})
		}
		synctest.Wait()
		if n := begun.Load(); n != 1 {
			t.Fatalf("%d syncs at the same time", n)
		}
		close(release)
		wg.Wait()
		if n := begun.Load(); n != 2 {
			t.Errorf("%d syncs for one and 20 that came meanwhile, want 2", n)
		}
		must(t, s.run(once))
		if n := begun.Load(); n != 3 {
			t.Errorf("%d syncs after another was asked for, want 3", n)
		}
	})
}

func TestSyncOfAFileThatFailsIsTheLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s sharedSync
		calls, lost := 0, errors.New("lost")
		release := make(chan struct{})
		once := func() error {
			calls++
			<-release
			return lost
		}
		var wg sync.WaitGroup
		for range 3 { // one makes the sync, and the others wait for the next
			wg.Go(func() {
				if err := s.run(once); err != lost {
					t.Errorf("%v, want the error of the sync", err)
				}
			})
			synctest.Wait()
		}
		close(release)
		wg.Wait()
		if err := s.run(once); err != lost || calls != 1 {
			t.Errorf("%v after %d syncs, want the error of the only one", err, calls)
		}
	})
}
