//go:build !race

package compare_test

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo/filter/tap"
	"github.com/gocolo/lockstep/internal/netns"
	"github.com/gocolo/lockstep/internal/packet"
	"github.com/gocolo/lockstep/internal/profile"
)

// A share names who spends a part of the processor time, while a client and the guests of a pair
// talk. Time of the race detector belongs to none.
type share string

const (
	ourCode    share = "our code"                   // of this module, with what it compares and copies
	ourTaps    share = "the guests' taps"           // calls of ours to read and write them; what the guest's stack does at once is in there
	ourWires   share = "between the hosts"          // calls of ours to read and write connections
	ourRuntime share = "Go's runtime for our code"  // locks, channels, waking up
	restOfGo   share = "Go's runtime by itself"     // its scheduler, poller and collector
	outside    share = "guests, client, their link" // programs, stacks and the client's tap: all that would be there without us
)

const module = "github.com/gocolo/lockstep/"

// shareOf returns whose the time of a sample is: of the first function in its stack that is
// of this module.
func shareOf(s profile.Sample) share {
	if s.Labels["outside"] != "" {
		return outside
	}
	at := slices.IndexFunc(s.Stack, func(f string) bool { return strings.HasPrefix(f, module) })
	if at < 0 {
		if slices.ContainsFunc(s.Stack, func(f string) bool {
			return strings.HasPrefix(f, "net.") || strings.HasPrefix(f, "math/rand") || strings.HasPrefix(f, "crypto/") || strings.HasPrefix(f, "testing.")
		}) {
			return outside
		}
		return restOfGo
	}
	first, leaf := s.Stack[at], s.Stack[0]
	switch {
	case strings.HasPrefix(first, module+"colo/compare_test."), strings.HasPrefix(first, module+"internal/netns."):
		return outside
	case strings.Contains(leaf, "yscall") && strings.HasPrefix(first, module+"colo/filter/tap."):
		return ourTaps
	case strings.Contains(leaf, "yscall"):
		return ourWires
	case !strings.HasPrefix(leaf, "runtime.") && !strings.HasPrefix(leaf, "internal/runtime/"), strings.HasPrefix(leaf, "runtime.mem"):
		return ourCode
	}
	return ourRuntime
}

// shares returns how fn's time is shared, and the sum.
func shares(t *testing.T, fn func()) (of map[share]time.Duration, functions map[string]time.Duration, all time.Duration) {
	t.Helper()
	samples, err := profile.CPU(fn)
	if err != nil {
		t.Fatal(err)
	}
	of, functions = map[share]time.Duration{}, map[string]time.Duration{}
	for _, s := range samples {
		w := shareOf(s)
		of[w] += s.Time
		all += s.Time
		if w == ourCode {
			name := strings.TrimPrefix(s.Stack[0], module)
			if by := s.Stack[slices.IndexFunc(s.Stack, func(f string) bool { return strings.HasPrefix(f, module) })]; by != s.Stack[0] {
				name += " in " + strings.TrimPrefix(by, module)
			}
			functions[name] += s.Time
		}
	}
	return of, functions, all
}

// How much of a transfer's time on processors is ours: of the code of this module, and of
// the calls that it makes. The rest is that of two guests, a client and the link between
// them, which share the machine. The time is that of the processors: what else they do does
// not count.
func TestFiguresOfOurShareOfATransfer(t *testing.T) {
	if *stackRuns < 2 {
		t.Skip("with -stacks.runs: the least of so many")
	}
	for _, c := range []struct {
		name string
		dev  tap.Config
		n    int64 // bytes: so many that a second or more is spent on them
	}{
		{"whole segments", tap.Config{VNetHdrLen: 12, Offload: tap.OffloadTCP}, 512 << 20},
		{"no offloads", tap.Config{}, 192 << 20},
	} {
		n := c.n
		for _, way := range []int{bare, paired} {
			for _, what := range []string{"download", "upload"} {
				var best map[share]time.Duration
				var least time.Duration
				var functions map[string]time.Duration
				for run := range *stackRuns {
					t.Run(fmt.Sprintf("%s/%d/%s/%d", c.name, way, what, run), func(t *testing.T) {
						w := newWorldWith(t, c.dev, 0, func(l *link) { l.loss, l.dup, l.late = 0, 0, 0 }, false)
						if way == bare {
							w.bare.Store(true)
							w.cmp.Failover()
						}
						startServers(t, w)
						conn := w.dial(t, "tcp", at(netns.Guest4))
						fetch(t, conn, 1<<20)
						var took cost
						of, by, all := shares(t, func() {
							took = costOf(func() {
								if what == "download" {
									fetch(t, conn, n)
								} else {
									upload(t, conn, n, 2, func() {})
								}
							})
						})
						// What the profile has seen is what the kernel counts.
						if ratio := float64(all) / float64(took.cpu); ratio < 0.8 || ratio > 1.2 {
							t.Errorf("the shares are %v together, and the kernel counts %v", all, took.cpu)
						}
						if least == 0 || all < least {
							best, least, functions = of, all, by
						}
					})
				}
				if least == 0 {
					continue // -run leaves it out
				}
				line := fmt.Sprintf("%s, %s, %s: %.2f ns of CPU a byte", c.name, what, map[int]string{bare: "one guest", paired: "the pair"}[way], float64(least)/float64(n))
				for _, s := range []share{ourCode, ourRuntime, ourTaps, ourWires, restOfGo, outside} {
					line += fmt.Sprintf("; %s %.2f", s, float64(best[s])/float64(n))
				}
				t.Log(line)
				names := slices.SortedFunc(maps.Keys(functions), func(a, b string) int { return cmp.Compare(functions[b], functions[a]) })
				for _, f := range names[:min(len(names), 8)] {
					t.Logf("    %.2f %s", float64(functions[f])/float64(n), f)
				}
			}
		}
	}
}

// What the engine does is found to be ours, and nothing else is.
func TestOurCodeIsToldFromOthers(t *testing.T) {
	if testing.Short() {
		t.Skip("short: a profile needs a third of a second of processor time")
	}
	x, _, _ := opened(t, nil)
	a := ackSeg{seq: 100, ack: 1000, win: 50, flags: push, data: strings.Repeat("x", 60000)}
	pf, sf := a.frame(), a.frame()
	seq := a.seq
	const long = 300 * time.Millisecond // of each, which has a sample in ten milliseconds
	costs := func(fn func()) (took time.Duration) {
		for took < long {
			took += costOf(fn).cpu
		}
		return took
	}
	var wrong []string
	for range 4 { // a profile has few samples, of which some may be lost: not each time
		var ours, others time.Duration
		of, _, _ := shares(t, func() {
			ours = costs(func() {
				for range 10000 {
					packet.TCP(pf.Data[34:]).SetSeq(seq)
					packet.TCP(sf.Data[34:]).SetSeq(seq)
					seq += 60000
					x.Primary(pf, x.now)
					if r := x.Secondary(sf, x.now); len(r.Release) != 1 {
						t.Fatal("nothing has left")
					}
				}
			})
			others = costs(func() { guestsWork() })
		})
		wrong = nil
		for _, c := range []struct {
			of        share
			got, want time.Duration
		}{{ourCode, of[ourCode], ours}, {outside, of[outside], others}} {
			if ratio := float64(c.got) / float64(c.want); ratio < 0.5 || ratio > 1.5 {
				wrong = append(wrong, fmt.Sprintf("%s: %v, and the kernel counts %v", c.of, c.got, c.want))
			}
		}
		if wrong == nil {
			return
		}
	}
	t.Errorf("%q", wrong)
}

// guestsWork makes what a guest sends.
func guestsWork() { io.CopyN(io.Discard, pattern(1), 1<<20) }
