package nbd

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestMemoryIsHandedOutWithinTheBoundAndInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory(64<<10, 40<<10)
		never := make(chan struct{})
		a, _ := m.get(40<<10, never)
		b, _ := m.get(1, never)
		if cap(a) != 40<<10 || cap(b) != 4<<10 || m.used != 44<<10 {
			t.Errorf("%d and %d bytes make %d", cap(a), cap(b), m.used)
		}
		var mu sync.Mutex
		var order []int
		note := func(i int) {
			mu.Lock()
			defer mu.Unlock()
			order = append(order, i)
		}
		take := func(i, n int, gone chan struct{}) {
			p, ok := m.get(n, gone)
			if !ok {
				note(-i)
				return
			}
			note(i)
			time.Sleep(time.Second)
			m.put(p)
		}
		gone := make(chan struct{})
		go take(1, 40<<10, never)
		synctest.Wait()
		go take(2, 30<<10, gone)
		synctest.Wait()
		go take(3, 4<<10, never) // would fit, but is not the first
		synctest.Wait()
		if len(order) != 0 {
			t.Fatalf("%v have got some", order)
		}
		close(gone)
		synctest.Wait()
		m.put(a)
		time.Sleep(5 * time.Second)
		m.put(b)
		if want := []int{-2, 1, 3}; len(order) != 3 || order[0] != want[0] || order[1]+order[2] != 4 {
			t.Errorf("order %v, want %v", order, want)
		}
		if m.used != 0 || len(m.waiting) != 0 {
			t.Errorf("%d bytes are used by nobody", m.used)
		}
	})
}

func TestMemoryThatIsGrantedToWhoHasGoneIsGivenToTheNext(t *testing.T) {
	m := newMemory(64<<10, 64<<10)
	never := make(chan struct{})
	a, _ := m.get(64<<10, never)
	gone := &memoryWait{64 << 10, make(chan struct{})}
	next := &memoryWait{64 << 10, make(chan struct{})}
	m.waiting = append(m.waiting, gone, next)
	m.put(a)
	<-gone.granted
	m.mu.Lock()
	m.leave(gone) // both had happened when get looked
	m.mu.Unlock()
	select {
	case <-next.granted:
	default:
		t.Error("the next one waits for nobody")
	}
	if m.used != 64<<10 {
		t.Errorf("%d bytes are used, want those of the next one", m.used)
	}
}

func TestMemoryThatIsKeptCountsToo(t *testing.T) {
	m := newMemory(1<<20, 1<<20)
	never := make(chan struct{})
	var all [][]byte
	for range 256 {
		p, _ := m.get(4096, never)
		all = append(all, p)
	}
	for _, p := range all {
		m.put(p)
	}
	if m.kept != 1<<20 {
		t.Errorf("%d bytes are kept", m.kept)
	}
	p, _ := m.get(1<<20, never)
	if m.used+m.kept > 1<<20 {
		t.Errorf("%d bytes are used and %d kept, of 1 MiB", m.used, m.kept)
	}
	m.put(p)
	if n := testing.AllocsPerRun(100, func() {
		p, _ := m.get(65536, never)
		m.put(p)
	}); n > 0 {
		t.Errorf("%v allocations for a buffer", n)
	}
}
