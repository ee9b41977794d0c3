package compare_test

import (
	"fmt"
	"io"
	"net"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gocolo/lockstep/colo/filter/tap"
	"github.com/gocolo/lockstep/internal/netns"
)

// The ways in which a guest is run for the figures.
const (
	bare   = iota // one guest on the link
	tolled        // two guests in step, the mirror, the way back and the rewriter, but no comparison: see toll
	paired        // all of it
	ways
)

// A cost counts the time, the processor time and the packets to the client of one transfer.
type cost struct {
	took, cpu time.Duration
	packets   int
}

func (c *cost) least(d cost) {
	if c.took == 0 || d.took < c.took {
		c.took = d.took
	}
	if c.cpu == 0 || d.cpu < c.cpu {
		c.cpu = d.cpu
	}
	if c.packets == 0 || d.packets < c.packets {
		c.packets = d.packets
	}
}

func costOf(fn func()) cost {
	cpu := func() time.Duration {
		var u unix.Rusage
		if unix.Getrusage(unix.RUSAGE_SELF, &u) != nil {
			return 0
		}
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	begin, used := time.Now(), cpu()
	fn()
	return cost{took: time.Since(begin), cpu: cpu() - used}
}

// What the pair costs a client, as a ratio to the same link and guest without one. The two
// guests, the client and all of the work between them share the machine: what that alone
// costs is told by the way that compares nothing.
func TestFiguresOfTransfersThroughAPair(t *testing.T) {
	if *stackRuns < 2 {
		t.Skip("with -stacks.runs: each way is the best of so many")
	}
	const n = 64 << 20
	for _, c := range []struct {
		name string
		dev  tap.Config
		loss float64
		rate string // of each stack's interface; "": as fast as it goes
	}{
		{"whole segments", tap.Config{VNetHdrLen: 12, Offload: tap.OffloadTCP}, 0, ""},
		{"no offloads", tap.Config{}, 0, ""},
		{"no offloads, 1 of 200 lost", tap.Config{}, 0.005, ""},
		// What the processors do not bound.
		{"whole segments, 1 Gbit/s", tap.Config{VNetHdrLen: 12, Offload: tap.OffloadTCP}, 0, "1gbit"},
		{"no offloads, 1 Gbit/s", tap.Config{}, 0, "1gbit"},
		{"no offloads, 1 Gbit/s, 1 of 200 lost", tap.Config{}, 0.005, "1gbit"},
	} {
		var best [ways][3]cost // download, upload, median of requests
		for run := range *stackRuns {
			for way := range best {
				t.Run(fmt.Sprintf("%s/%d/%d", c.name, run, way), func(t *testing.T) {
					seed := uint64(2 * run)
					w := newWorldWith(t, c.dev, 0, func(l *link) {
						seed++
						l.loss, l.dup, l.late, l.rng = c.loss, 0, 0, newLink(seed, nil).rng
					}, way == tolled)
					for _, h := range []*netns.Stack{w.client, w.primary, w.secondary} {
						if c.rate != "" {
							h.Limit(t, "net0", c.rate)
						}
					}
					if way == bare {
						w.bare.Store(true)
						w.cmp.Failover()
					}
					startServers(t, w)
					conn := w.dial(t, "tcp", at(netns.Guest4))
					fetch(t, conn, 1<<20) // the windows have opened
					before := w.down.packets()
					c := costOf(func() { fetch(t, conn, n) })
					c.packets = w.down.packets() - before
					best[way][0].least(c)
					best[way][1].least(costOf(func() { upload(t, conn, n, 2, func() {}) }))
					var took []time.Duration
					for range 500 {
						took = append(took, costOf(func() { fetch(t, conn, 100) }).took)
					}
					slices.Sort(took)
					best[way][2].least(cost{took: took[len(took)/2]})
				})
			}
		}
		if best[bare][0].took == 0 || best[tolled][0].took == 0 || best[paired][0].took == 0 {
			continue // -run leaves it out
		}
		for k, what := range []string{"download", "upload"} {
			b, g, p := best[bare][k], best[tolled][k], best[paired][k]
			rate := func(of, than cost) float64 { return float64(than.took) / float64(of.took) }
			cpu := func(of, than cost) float64 { return float64(of.cpu) / float64(than.cpu) }
			t.Logf("%s, %s: %.2f of the bare link's rate; without comparison %.2f, so %.2f of what two guests reach; CPU %.2f and %.2f times the bare link's; the comparison takes %.2f ns of CPU a byte",
				c.name, what, rate(p, b), rate(g, b), rate(p, g), cpu(p, b), cpu(g, b), float64(p.cpu-g.cpu)/n)
		}
		t.Logf("%s: %.3f times as many packets to the client; without comparison %.3f", c.name,
			float64(best[paired][0].packets)/float64(best[bare][0].packets), float64(best[tolled][0].packets)/float64(best[bare][0].packets))
		t.Logf("%s, requests: p50 %.2f times the bare link's", c.name, float64(best[paired][2].took)/float64(best[bare][2].took))
	}
}

// fetch is download without a look at what comes.
func fetch(t *testing.T, c net.Conn, n int64) {
	t.Helper()
	fmt.Fprintf(c, "down %d %d\n", n, 1)
	if _, err := io.CopyN(io.Discard, c, n); err != nil {
		t.Fatal(err)
	}
}
