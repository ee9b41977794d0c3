package protect

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/failover"
)

// Start for a guest that has run before needs its copy: whoever starts a program a second
// time learns what it lacks.
func TestAHostThatStartsAGuestAnewWithoutACopyIsToldWhatItLacks(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		a := w.boot("a", true, nil)
		a.is(Alone)
		a.halt()
		a = w.boot("a", true, nil)
		a.is(Waiting)
		const want = "the guest has run before, and nothing says that its copy is here"
		if i := a.job.Query(); !errors.Is(i.LastError, failover.ErrRefused) || !strings.Contains(i.LastError.Error(), want) || !strings.Contains(i.Reason, want) {
			t.Errorf("reason %q, error %v, want %q", i.Reason, i.LastError, want)
		}
		a.halt()
	})
}

// A host comes back alone with the guest's own disks, and the record is that of a later
// generation, whose host is gone: its log says why it starts nothing.
func TestAHostWhoseDisksAreOldSaysInItsLogThatTheyStartNoGuest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, false)
		generation := s.ranOnA()

		s.rewrite(ofNobody(generation + 1))
		var log bytes.Buffer
		a := s.start("a", false, func(c *Config) { c.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
		time.Sleep(10 * time.Second)
		a.is(Waiting)
		a.halt()
		if n := strings.Count(log.String(), "the disks here start no guest"); n != 1 || !strings.Contains(log.String(), "of generation 1, the present one is 2") {
			t.Errorf("said %d times:\n%s", n, &log)
		}
		s.close("a")
		s.clean()
	})
}

// A host knows of which generation its copy is before any primary has come, and lets none of an
// earlier one overwrite it.
func TestAHostThatHasBegunRefusesPrimariesOfGenerationsBeforeItsOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, false)
		s.wear = map[string]*wear{"a": {meta: memory{b: make([]byte, metadataBytes+512)}}}
		m, err := s.wear["a"].image(t, &image{b: make([]byte, diskSize)}).(kept).Metadata()
		if err == nil {
			err = m.Hold(5)
		}
		if err != nil {
			t.Fatal(err)
		}
		a := s.start("a", false, nil)
		a.is(Waiting)
		conn, err := s.f.dial(t.Context(), "b", "a")
		if err != nil {
			t.Fatal(err)
		}
		_, err = exchange(conn, hello{Channel: chControl, Guest: "guest", Host: "b", Generation: 4, Offer: a.job.offer()})
		var refused *RefusedError
		if !errors.As(err, &refused) || !strings.Contains(refused.Reason, "generation 4 is over, the present one is 5") {
			t.Errorf("%v", err)
		}
		conn.Close()
		a.halt()
	})
}
