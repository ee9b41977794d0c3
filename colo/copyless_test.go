package colo_test

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/colo/colotest"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// newCopyless makes a pair whose secondary keeps no copy of the primary's memory.
// Both guests make progress before every step.
func newCopyless(t testing.TB, o options) *pair {
	t.Helper()
	var x *pair
	primary, secondary := o.primary, o.secondary
	o.cache.StagedOnly = true
	o.primary = func(c *colo.PrimaryConfig) {
		c.Step = func(string, uint64) { x.p.step(1) }
		if primary != nil {
			primary(c)
		}
	}
	o.secondary = func(c *colo.SecondaryConfig) {
		c.Step = func(string, uint64) { x.s.step(1) }
		if secondary != nil {
			secondary(c)
		}
	}
	x = newPair(t, o)
	return x
}

// runAll runs it to the end of its last checkpoint.
func (x *pair) runAll(t testing.TB) {
	t.Helper()
	defer event.Subscribe(&x.p.bus, func(c event.CheckpointCommit) {
		if c.Epoch == checkpoints {
			x.pc.Break()
		}
	})()
	x.start(t.Context())
	x.wait()
}

func skipWithoutSparseMemory(t testing.TB) {
	t.Helper()
	c, err := ram.NewCache(nil, nil, ram.CacheConfig{StagedOnly: true})
	if errors.Is(err, errors.ErrUnsupported) {
		t.Skip(err)
	}
	if c == nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

func TestASecondaryWithoutACopyMayBeCutAnywhere(t *testing.T) {
	skipWithoutSparseMemory(t)
	for _, m := range []manner{manners[0], manners[len(manners)-1]} {
		t.Run(m.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { cutWithoutACopy(t, m) })
		})
	}
}

func cutWithoutACopy(t *testing.T, m manner) {
	cut := func(ps, sp colotest.Flow, again *pair, dies bool) *pair {
		x := newCopyless(t, options{ps: ps, sp: sp, again: again, guest: m.guest, record: again == nil, primary: m.apply})
		if dies {
			x.witness.Deny = func(c colo.Claim) error {
				if c.Mode == event.ModePrimary && len(x.s.net.Calls()) > 0 {
					return errors.New("dead")
				}
				return nil
			}
		}
		x.runAll(t)
		return x
	}
	x := cut(colotest.Flow{}, colotest.Flow{}, nil, false)
	defer func() { x.close() }()
	x.wantWhole(t)
	if x.s.cache.KeepsCopy() {
		t.Error("the secondary kept a copy")
	}
	ps, sp, stream := x.pc.Sent(), x.sc.Sent(), x.tee.sent
	inside := pages(stream, uint64(len(x.p.guest.Memory())))
	took, n := map[string]int{}, 0
	try := func(ps, sp colotest.Flow) {
		n++
		x = cut(ps, sp, x, n%2 == 0)
		took[x.wantWhole(t).name]++
		if t.Failed() {
			t.Fatalf("cut at %v from the primary, %v from the secondary", ps.Break, sp.Break)
		}
	}
	for at := range ps.Points(func(i int64) bool {
		return *every || inside[i] && i%60013 == 0 || !inside[i] && i%(4001*int64(sparse())) == 0
	}) {
		try(colotest.Flow{Break: at}, colotest.Flow{})
	}
	for at := range sp.Points(func(i int64) bool { return *every || i%int64(3*sparse()) == 0 }) {
		try(colotest.Flow{}, colotest.Flow{Break: at})
	}
	if took["primary"] == 0 || took["secondary"] == 0 {
		t.Errorf("took over: %v, want both sides to have had their turn", took)
	}
}

// words returns the messages that a side's Trace was told of, as words.
func words(list *[]string) func(string, colo.Message, uint64) {
	return func(dir string, m colo.Message, _ uint64) { *list = append(*list, dir+" "+m.String()) }
}

func TestASecondaryWithoutACopyTellsWhatItWroteAtEachCheckpoint(t *testing.T) {
	skipWithoutSparseMemory(t)
	synctest.Test(t, func(t *testing.T) {
		var p, s []string
		x := newCopyless(t, options{
			primary:   func(c *colo.PrimaryConfig) { c.Trace = words(&p) },
			secondary: func(c *colo.SecondaryConfig) { c.Trace = words(&s) },
		})
		defer x.close()
		x.runAll(t)
		x.wantWhole(t)
		if m := x.s.cache.Memory(); m != 0 {
			t.Errorf("%d bytes are held after the session", m)
		}
		want := "> checkpoint-request < dirty-pages < checkpoint-reply"
		if got := strings.Join(p, " "); strings.Count(got, want) < checkpoints {
			t.Errorf("the primary's words: %s", got)
		}
		want = "< checkpoint-request > dirty-pages > checkpoint-reply"
		if got := strings.Join(s, " "); strings.Count(got, want) < checkpoints {
			t.Errorf("the secondary's words: %s", got)
		}
	})
}

// A primary that does not send again gets a secondary that keeps a copy, and is
// not told what it would not understand.
func TestWithAPrimaryThatSendsNothingAgainACopyIsKept(t *testing.T) {
	skipWithoutSparseMemory(t)
	for name, primary := range map[string]func(*colo.PrimaryConfig){
		"a memory that cannot": func(c *colo.PrimaryConfig) { c.RAM = nil },
		"a QEMU's words":       func(c *colo.PrimaryConfig) { c.QEMUWire = true },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var s []string
				kept := false
				x := newCopyless(t, options{primary: primary, secondary: func(c *colo.SecondaryConfig) { c.Trace = words(&s) }})
				defer x.close()
				defer event.Subscribe(&x.s.bus, func(c event.CheckpointCommit) { kept = x.s.cache.KeepsCopy() })()
				x.runAll(t)
				x.wantWhole(t)
				if slices.Contains(s, "> dirty-pages") || !kept {
					t.Errorf("a copy is kept: %v; the secondary's words: %v", kept, s)
				}
			})
		})
	}
}

func TestASecondaryWithoutRoomForACopySaysSoBeforeItHasAGuest(t *testing.T) {
	skipWithoutSparseMemory(t)
	synctest.Test(t, func(t *testing.T) {
		x := newCopyless(t, options{cache: ram.CacheConfig{MaxStaged: ram.PageSize}, primary: func(c *colo.PrimaryConfig) { c.RAM = nil }})
		defer x.close()
		x.runAll(t)
		if !errors.Is(x.s.err, ram.ErrStagedFull) {
			t.Errorf("the secondary ended with %v", x.s.err)
		}
		if !errors.Is(x.p.err, colo.ErrGoodbye) || !strings.Contains(x.p.err.Error(), ram.ErrStagedFull.Error()) {
			t.Errorf("the primary ended with %v", x.p.err)
		}
		if x.survivor(t) != x.p {
			t.Error("the primary's guest does not run")
		}
	})
}

func TestACheckpointThatIsTooLargeEndsTheSessionAndTearsNothing(t *testing.T) {
	skipWithoutSparseMemory(t)
	synctest.Test(t, func(t *testing.T) {
		x := newCopyless(t, options{cache: ram.CacheConfig{MaxStaged: ram.PageSize}})
		defer x.close()
		x.runAll(t)
		x.wantWhole(t)
		said := fmt.Sprint(x.s.err, x.p.err, x.witness.Claims())
		if !strings.Contains(said, ram.ErrStagedFull.Error()) {
			t.Errorf("nobody says why: %s", said)
		}
	})
}

// tellsLies is a stage that tells the primary what it likes.
type tellsLies struct {
	*ram.Cache
	list []byte
}

func (l tellsLies) SaveDirty(w *qemufile.Writer) error {
	if err := l.Cache.SaveDirty(qemufile.NewWriter(new(bytes.Buffer))); err != nil {
		return err
	}
	_, err := w.Write(l.list)
	return err
}

func TestAListThatLiesEndsTheSessionAndNotTheGuest(t *testing.T) {
	skipWithoutSparseMemory(t)
	name := append([]byte{byte(len(colotest.Block))}, colotest.Block...)
	for _, x := range []struct {
		name string
		list []byte
		want error
	}{
		{"a block that is none", []byte{3, 'r', 'o', 'm', 0, 0, 0, 0, 0}, ram.ErrUnknownBlock},
		{"more words than the block has", slices.Concat(name, be32(1<<31)), ram.ErrDirtyList},
		{"a page beyond the block", slices.Concat(name, be32(1, 1<<10), be64(1), []byte{0}), ram.ErrDirtyList},
		{"no end", name[:3], nil}, // the reply is taken for a name
		{"nothing written", []byte{0}, ram.ErrNotResent},
	} {
		t.Run(x.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				// Large enough for each side to write pages that the other does not.
				large := colotest.VMConfig{Pages: 64, Touch: 2, TSCPerMille: 300, Seed: 1}
				p := newCopyless(t, options{guest: large, secondary: func(c *colo.SecondaryConfig) {
					c.RAM = tellsLies{c.RAM.(*ram.Cache), x.list}
				}})
				defer p.close()
				p.runAll(t)
				p.wantWhole(t)
				said := fmt.Sprint(p.p.err, p.s.err, p.witness.Claims())
				if x.want != nil && !strings.Contains(said, x.want.Error()) {
					t.Errorf("nobody says %q: %s", x.want, said)
				}
			})
		})
	}
}

// A Stage around it that knows nothing of copies: the cache finds that nobody
// tells the primary what is written here, and keeps one.
func TestAStageThatHidesWhatIsBehindItIsSafe(t *testing.T) {
	skipWithoutSparseMemory(t)
	synctest.Test(t, func(t *testing.T) {
		kept := false
		x := newCopyless(t, options{secondary: func(c *colo.SecondaryConfig) { c.RAM = struct{ colo.Stage }{c.RAM} }})
		defer x.close()
		defer event.Subscribe(&x.s.bus, func(c event.CheckpointCommit) { kept = x.s.cache.KeepsCopy() })()
		x.runAll(t)
		x.wantWhole(t)
		if !kept {
			t.Error("no copy was kept")
		}
	})
}
