package protect

import (
	"bytes"
	"errors"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo/colotest"
)

// A lateWord is a connection of a pair: its control connection holds back for a while the word that the session
// ends, and its session breaks where something is said after that word.
type lateWord struct {
	*colotest.Conn
	of    *lateWords
	first sync.Once
	said  []byte // the hello, by which one is told from the other
}

// lateWords has what the connections of a pair share.
type lateWords struct {
	late time.Duration
	set  atomic.Bool // from now on
	sent atomic.Int64
}

func (c *lateWord) Write(b []byte) (int, error) {
	c.first.Do(func() { c.said = bytes.Clone(b) })
	switch {
	case !c.of.set.Load():
	case bytes.Contains(c.said, []byte(`"channel":"session"`)):
		c.Break()
		return 0, errNoRoute
	case bytes.Contains(b, []byte(`"say":"end"`)):
		kept := bytes.Clone(b)
		time.AfterFunc(c.of.late, func() {
			c.of.sent.Add(1)
			c.Conn.Write(kept)
		})
		return len(b), nil
	}
	return c.Conn.Write(b)
}

// The word that a guest has ended comes on another connection than the end of its session, and
// may be read later. A secondary hears it out before it says that its primary is lost; and waits no longer than
// Lost for a word that never comes.
func TestASecondaryWhoseSessionBreaksHearsOutWhatItsPrimarySaysLast(t *testing.T) {
	for name, late := range map[string]time.Duration{"late": 300 * time.Millisecond, "too late": 3 * time.Second} {
		bubble(t, name, func(t *testing.T, w *world) {
			words := &lateWords{late: late}
			b := w.boot("b", false, nil)
			a := w.boot("a", true, func(c *Config) {
				dialBy(c, func(conn net.Conn) net.Conn { return &lateWord{Conn: conn.(*colotest.Conn), of: words} })
			})
			a.is(Protected)
			b.is(Following)
			time.Sleep(130 * time.Millisecond)
			words.set.Store(true)
			if err := a.job.Complete(t.Context()); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Minute)
			if words.sent.Load() == 0 {
				t.Fatal("the word was not kept back")
			}
			asked := strings.Contains(b.states(), Asking.String())
			if want := name == "too late"; asked != want || b.job.State() != Waiting {
				t.Errorf("b was %s: that it has asked is %v, want %v", b.states(), asked, want)
			}
			if err := b.job.Query().LastError; name == "late" && !errors.Is(err, ErrCompleted) {
				t.Errorf("b: %v", err)
			}
			<-a.done
			a.leave()
			b.halt()
		})
	}
}
