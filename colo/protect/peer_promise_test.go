package protect

import (
	"context"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// Over a link on which an answer takes longer than it is from one question to the next, each
// answer is to a question that has been followed by others.
func TestAPromiseThatTakesLongCountsFromWhenItWasAskedFor(t *testing.T) {
	const term = 100 * time.Millisecond
	var q promises
	begun := time.Now()
	var asked []note
	for i := range 10 {
		asked = append(asked, q.next(begun.Add(time.Duration(i)*term/perTerm), term))
	}
	for i, n := range asked {
		sent, held, ok := q.answer(note{Say: sayPromise, Seq: n.Seq, TermNS: n.TermNS})
		if late := i < len(asked)-perTerm; ok == late {
			t.Errorf("question %d of %d: %v", i, len(asked), ok)
		}
		if want := begun.Add(time.Duration(i) * term / perTerm); ok && (!sent.Equal(want) || held != term) {
			t.Errorf("question %d: sent at %v, want %v", i, sent.Sub(begun), want.Sub(begun))
		}
	}
	if _, held, ok := q.answer(note{Seq: 10, TermNS: int64(time.Hour)}); !ok || held != term {
		t.Errorf("an answer holds for %v, and %v was asked for", held, term)
	}
	for name, n := range map[string]note{
		"that was not asked yet": {Seq: 11, TermNS: int64(term)},
		"without a number":       {TermNS: int64(term)},
		"of no time":             {Seq: 10},
		"of less than no time":   {Seq: 10, TermNS: -1},
	} {
		if _, _, ok := q.answer(n); ok {
			t.Errorf("an answer %s counts", name)
		}
	}
	if _, _, ok := new(promises).answer(note{TermNS: 1}); ok {
		t.Error("an answer counts that nobody has asked for")
	}
}

func TestQuestionsThatAreAnsweredSlowlyAreAnsweredAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const term = 100 * time.Millisecond
		near, far := net.Pipe()
		p := newPeer(hello{})
		p.control = near
		ctx, cancel := context.WithCancel(t.Context())
		var q promises
		var group sync.WaitGroup
		group.Go(func() { q.ask(ctx, p, term) })
		for range 20 {
			n, err := readNote(far)
			if err != nil {
				t.Fatal(err)
			}
			asked := time.Now()
			group.Go(func() {
				time.Sleep(term * 6 / 10)
				if sent, held, ok := q.answer(note{Say: sayPromise, Seq: n.Seq, TermNS: n.TermNS}); !ok || !sent.Equal(asked) || held != term {
					t.Errorf("question %d: %v, %v after it was asked", n.Seq, ok, asked.Sub(sent))
				}
			})
		}
		cancel()
		far.Close()
		near.Close()
		group.Wait()
	})
}
