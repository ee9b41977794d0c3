package protect

import (
	"errors"
	"fmt"
	"testing"

	"github.com/gocolo/lockstep/failover"
)

// The controls of what excuses a seed: without what it asks for, each excuses nothing.

// A guest that runs nowhere is lost where the last that had it are dead, and nowhere else.
func TestAGuestIsLostOnlyWithTheLastThatHadIt(t *testing.T) {
	type copies struct{ lives, dead, ended uint64 } // generations
	for _, c := range []struct {
		what   string
		copies copies
		record uint64
		word   uint64
		holder string // by token
		lost   bool
	}{
		{"the last that had it is dead", copies{lives: 2, dead: 3}, 3, 0, "", true},
		{"the last that had it has ended", copies{lives: 2, ended: 3}, 3, 0, "", true},
		{"one lives that has it as well", copies{lives: 3, dead: 3}, 3, 0, "", false},
		{"one is dead that had it before", copies{dead: 2}, 3, 0, "", false},
		{"nobody is dead", copies{lives: 2}, 3, 0, "", false},
		{"one that went on by a word died with it", copies{lives: 3, dead: 4}, 3, 4, "", true},
		{"one that went on by a word lives", copies{lives: 4, dead: 3}, 3, 4, "", false},
		{"what one that is dead had asked for came later", copies{lives: 3, dead: 2}, 3, 3, "dead", true},
		{"what one that lives had asked for came later", copies{lives: 3, dead: 2}, 3, 3, "lives", false},
	} {
		w := newWorld(t)
		has := func(name string, generation uint64) *host {
			h := &host{w: w, name: name, token: name}
			h.has(generation)
			return h
		}
		s := &simulation{world: w, live: map[string]*host{}}
		if g := c.copies.lives; g > 0 {
			s.live["a"] = has("lives", g)
		}
		if g := c.copies.dead; g > 0 {
			s.dead = append(s.dead, has("dead", g))
		}
		if g := c.copies.ended; g > 0 {
			s.ended = append(s.ended, has("ended", g))
		}
		s.word.Store(c.word)
		token := c.holder
		if token == "" {
			token = "nobody's"
		}
		if ok, err := w.store.Swap(t.Context(), failover.Record{}, failover.Record{Generation: c.record, Holder: "x", Token: token, Writes: 9}); !ok || err != nil {
			t.Fatal(ok, err)
		}
		if why := s.lost(); (why == "") != c.lost {
			t.Errorf("%s: %q", c.what, why)
		}
	}
}

// A job ends by an error of a disk or of a VMM only where one has failed.
func TestAJobMayEndByAFailureThatThereWas(t *testing.T) {
	worn, guest := fmt.Errorf("x: %w", errWorn), errors.New("the other host says: "+errGuest.Error())
	w := newWorld(t)
	w.images["a"] = &image{}
	for _, err := range []error{nil, worn, guest, errors.New("another")} {
		if w.mayEndBy(err) {
			t.Errorf("nothing has failed, and %v is an excuse", err)
		}
	}
	w.images["a"].breaks(errWorn)
	if !w.mayEndBy(worn) || w.mayEndBy(guest) || w.mayEndBy(nil) || w.mayEndBy(errors.New("another")) {
		t.Error("a disk that has failed excuses what it does not, or not what it does")
	}
	w = newWorld(t)
	(&host{w: w}).vmFails()
	if w.mayEndBy(worn) || !w.mayEndBy(guest) || w.mayEndBy(nil) {
		t.Error("a VMM that has failed excuses what it does not, or not what it does")
	}
}
