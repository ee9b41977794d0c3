package protect

import (
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/gocolo/lockstep/failover"
	"github.com/gocolo/lockstep/failover/failovertest"
)

// One host that was started without the arbiter of the other goes on by itself when the two are
// parted, and so does the other, by the arbiter. Both say so while nothing is lost.
func TestHostsWithArbitersOfDifferentKindsWarn(t *testing.T) {
	const none, other = "an operator", "the two hosts themselves"
	for what, c := range map[string]struct {
		a, b         func(*Config)
		atA, atB     string // what each says decides on the other host
		mayGoOnApart bool
	}{
		"the same":                        {nil, nil, "", "", false},
		"one has none":                    {nil, func(c *Config) { c.Arbiter = nil }, none, "an arbiter", true},
		"one has its own":                 {func(c *Config) { c.ArbiterKind = other }, nil, "an arbiter", other, true},
		"both are called by another word": {func(c *Config) { c.ArbiterKind = "etcd" }, func(c *Config) { c.ArbiterKind = "etcd" }, "", "", false},
	} {
		bubble(t, what, func(t *testing.T, w *world) {
			var logs [2]lines
			with := func(i int, more func(*Config)) func(*Config) {
				return func(c *Config) {
					c.Logger = slog.New(slog.NewTextHandler(&logs[i], nil))
					if more != nil {
						more(c)
					}
				}
			}
			b := w.boot("b", false, with(1, c.b))
			a := w.boot("a", true, with(0, c.a))
			a.is(Protected)
			b.is(Following)
			synctest.Wait() // both have said what they say when a session begins
			for i, h := range []*host{a, b} {
				want := 0
				if c.mayGoOnApart {
					want = 1
				}
				if n := logs[i].with("level=WARN", "different arbiters"); n != want {
					t.Errorf("%s tells it %d times, want %d: %q", h.name, n, want, logs[i].all())
				}
				err := h.job.Query().LastError
				there := []string{"by " + c.atA + " on host b", "by " + c.atB + " on host a"}[i]
				if c.mayGoOnApart != (err != nil && strings.Contains(err.Error(), there)) {
					t.Errorf("%s says %v, want %q", h.name, err, there)
				}
			}
			b.halt()
			a.halt()
		})
	}
}

func TestAHostOfAVersionThatDoesNotSayWhoDecidesIsTakenAtThat(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		a := w.boot("a", true, func(c *Config) { c.Arbiter = failover.NewStoreArbiter(new(failovertest.Store)) })
		a.is(Alone)
		synctest.Wait()
		before := a.job.Query().LastErrorAt
		a.job.deciding(&peer{host: "b"})
		if q := a.job.Query(); q.LastErrorAt != before {
			t.Errorf("%v", q.LastError)
		}
		a.halt()
	})
}
