package protect

import (
	"errors"
	"strings"
	"testing"
	"time"
)

// A host that waits for an operator's word has lost the other one for as long as that takes. Query
// says so at once, and what goes wrong meanwhile beside it. What an operator has ordered is no loss.
func TestAHostThatAsksWhoGoesOnSaysWhatItHasLost(t *testing.T) {
	t.Parallel()
	bubble(t, "", func(t *testing.T, w *world) {
		none := func(c *Config) { c.Arbiter = nil }
		b := w.boot("b", false, none)
		a := w.boot("a", true, none)
		a.is(Protected)
		b.is(Following)
		time.Sleep(300 * time.Millisecond)
		w.f.part("a", "b", false)
		for h, words := range map[*host]string{a: "the connections with b have ended", b: "the connections with a have ended"} {
			h.is(Asking)
			q := h.job.Query()
			if q.LastError == nil || !strings.HasPrefix(q.LastError.Error(), words) || !q.LastErrorAt.Equal(q.Since) {
				t.Errorf("%s, which asks: %v, at %v, since %v", h.name, q.LastError, q.LastErrorAt, q.Since)
			}
		}
		time.Sleep(time.Minute)
		lost := a.job.Query().LastError
		worse := errors.New("worse")
		a.job.note(worse)
		if q := a.job.Query(); !errors.Is(q.LastError, lost) || !errors.Is(q.LastError, worse) || !q.LastErrorAt.After(q.Since) {
			t.Errorf("%v, at %v, since %v", q.LastError, q.LastErrorAt, q.Since)
		}
		if err := a.job.Failover(); err != nil {
			t.Fatal(err)
		}
		a.is(Alone)
		if err := a.job.Query().LastError; !errors.Is(err, lost) {
			t.Error(err)
		}
		w.f.join("a", "b")
		a.is(Protected)
		b.is(Following)
		a.halt()
		b.halt()
	})
}
