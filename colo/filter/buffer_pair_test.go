package filter_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/colo/filter"
	"github.com/gocolo/lockstep/internal/require"
)

// A pair of guests that say 0, 1, 2, ... is checkpointed, with an initial
// synchronisation, at random points of everything else: more packets, a
// network that takes packets slowly, and in the end a death.
func TestNothingIsLostReorderedOrEarlyWhateverHappens(t *testing.T) {
	seeds := require.Many[uint64](10, 100, 300)
	for seed := range seeds {
		synctest.Test(t, func(t *testing.T) { pair(t, seed) })
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

func pair(t *testing.T, seed uint64) {
	rnd := rand.New(rand.NewPCG(seed, 2))
	limit := 0
	if seed%2 == 1 {
		limit = 1 // the least
	}
	newHost := func() *host {
		h := &host{bench: start(t, filter.NewBuffer(filter.BufferConfig{Limit: limit}))}
		return h
	}
	p, s := newHost(), newHost()
	slow := rnd.IntN(4)
	var rmu sync.Mutex // the network delays on another goroutine
	p.out.delay = func() {
		rmu.Lock()
		d := time.Duration(rnd.IntN(10*slow + 1))
		rmu.Unlock()
		time.Sleep(d)
	}
	intn := func(n int) int {
		rmu.Lock()
		defer rmu.Unlock()
		return rnd.IntN(n)
	}
	p.say(intn(5), intn)

	// early is the last packet that may leave the primary; it moves when the
	// secondary has received a checkpoint. -1: everything.
	early, saved := -1, 0
	checkEarly := func() {
		synctest.Wait()
		if got := p.out.taken(); early >= 0 && len(got) > early {
			t.Errorf("%d packets left, %d may", len(got), early)
		}
	}
	committed := false
	epochs := intn(6)
	for e := range uint64(epochs) {
		if err := p.Mark(e); err != nil {
			t.Fatal(err)
		}
		mark := p.next
		if e == 0 {
			early = mark
		}
		state := save(t, p.Buffer)
		p.say(intn(20), intn)
		time.Sleep(time.Duration(intn(50)))
		checkEarly()
		if e > 0 {
			s.say(intn(20), intn)
		}
		if intn(10) == 0 {
			break // the primary dies, or the secondary, before that
		}
		load(t, s.Buffer, state)
		early = mark
		if err := p.Received(e); err != nil {
			t.Fatal(err)
		}
		p.say(intn(10), intn)
		time.Sleep(time.Duration(intn(50)))
		checkEarly()
		if err := s.Commit(e); err != nil {
			t.Fatal(err)
		}
		s.next = mark // the guest is now the primary's
		saved, committed = mark, true
		s.say(intn(20), intn)
		if err := p.Loaded(e); err != nil {
			t.Fatal(err)
		}
	}
	if got := s.out.taken(); len(got) > 0 {
		t.Errorf("the secondary said %d packets while the primary was there", len(got))
	}
	if !committed || intn(2) == 0 {
		// The secondary dies.
		if err := p.Failover(); err != nil {
			t.Fatal(err)
		}
		p.say(intn(5), intn)
		time.Sleep(time.Hour)
		synctest.Wait()
		p.check(t, "the primary alone", p.out.taken(), 0)
		if got := p.out.taken(); len(got) != p.next {
			t.Errorf("%d packets left, the guest sent %d", len(got), p.next)
		}
	} else {
		// The primary dies: what the network has taken is out, no more.
		p.stop()
		first := p.out.taken()
		p.check(t, "the primary", first, 0)
		if err := s.Failover(); err != nil {
			t.Fatal(err)
		}
		s.say(intn(5), intn)
		time.Sleep(time.Hour)
		synctest.Wait()
		then := s.out.taken()
		if len(then) > 0 {
			var from int
			fmt.Sscan(then[0], &from)
			s.check(t, "the secondary", then, from)
			if from > len(first) {
				t.Errorf("the primary said up to %d, the secondary goes on at %d", len(first), from)
			}
		} else if len(first) < saved {
			t.Errorf("the primary said %d packets, the secondary's guest remembers %d", len(first), saved)
		}
		if from(then)+len(then) != s.next && len(then) > 0 {
			t.Errorf("the secondary's guest sent %d, %d left last", s.next, from(then)+len(then))
		}
	}
	time.Sleep(time.Hour)
	p.stop()
	s.end()
	<-p.done
}

func from(packets []string) (n int) {
	if len(packets) > 0 {
		fmt.Sscan(packets[0], &n)
	}
	return n
}

type host struct {
	*bench
	next int // what the guest says next
}

// say makes the guest send n packets; a device that finds the buffer full keeps
// the packet, and here the guest then waits for another time.
func (h *host) say(n int, intn func(int) int) {
	for range n {
		p := fmt.Sprint(h.next)
		if intn(8) == 0 {
			p += strings.Repeat(" ", intn(60000))
		}
		switch intn(3) {
		case 0: // it is composed
			err := h.ComposePacket(len(p), func(b []byte) bool { return copy(b, p) == len(b) })
			if err != nil {
				return
			}
		case 1: // another is taken while it is composed, and goes before it
			err := h.ComposePacket(len(p)+1, func(b []byte) bool {
				if h.WritePacket([]byte(p)) != nil {
					return false
				}
				h.next++
				return copy(b, fmt.Sprintf("%-*d", len(b), h.next)) == len(b)
			})
			if err != nil {
				return
			}
		default:
			if h.WritePacket([]byte(p)) != nil {
				return
			}
		}
		h.next++
	}
}

func (h *host) check(t *testing.T, who string, packets []string, first int) {
	for i, p := range packets {
		if strings.TrimSpace(p) != fmt.Sprint(first+i) {
			t.Fatalf("%s said %.20q as number %d", who, p, first+i)
		}
	}
}
