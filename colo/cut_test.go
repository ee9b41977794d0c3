package colo_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/colo/colotest"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// checkpoints is how many checkpoints a run has before it is cut in any case.
const checkpoints = 3

// manner is a way of making checkpoints.
type manner struct {
	name   string
	apply  func(*colo.PrimaryConfig)
	stride int64 // of the bytes to cut at that are inside no page
	guest  colotest.VMConfig
}

// sparse returns n where a test tries one of n places.
func sparse() int {
	switch {
	case raceEnabled:
		return 8
	case testing.Short():
		return 17 // no multiple of what a message is long
	}
	return 1
}

// wide is a guest that does not write the same pages all the time.
var wide = colotest.VMConfig{Pages: 24, Touch: 2, TSCPerMille: 300, Seed: 1, Ring: 1024}

var manners = []manner{
	{"early resume", func(*colo.PrimaryConfig) {}, 5, small},
	{"late resume", func(c *colo.PrimaryConfig) { c.LateResume = true }, 13, small},
	{"ahead", func(c *colo.PrimaryConfig) { c.AheadThreshold = 1 }, 13, small},
	{"early", func(c *colo.PrimaryConfig) { c.EarlyShare, c.CheckpointDelay = 0.5, 30*time.Millisecond }, 13, wide},
}

// cutRun runs a pair whose guests make progress before every step of either
// session, until the link is cut. If the primary's host is to die with the link,
// the witness gives the guest to the secondary wherever there is one.
func cutRun(t testing.TB, m manner, ps, sp colotest.Flow, dies bool, again *pair) *pair {
	t.Helper()
	return cutRunWith(t, m, ps, sp, dies, again, func(*pair) {})
}

// cutRunWith is cutRun with a preparation.
func cutRunWith(t testing.TB, m manner, ps, sp colotest.Flow, dies bool, again *pair, prepare func(*pair)) *pair {
	t.Helper()
	var x *pair
	x = newPair(t, options{
		ps: ps, sp: sp, again: again, guest: m.guest, record: again == nil,
		primary: func(c *colo.PrimaryConfig) {
			m.apply(c)
			c.Step = func(string, uint64) { x.p.step(1) }
		},
		secondary: func(c *colo.SecondaryConfig) {
			c.Step = func(string, uint64) { x.s.step(1) }
		},
	})
	if dies {
		x.witness.Deny = func(c colo.Claim) error {
			if c.Mode == event.ModePrimary && len(x.s.net.Calls()) > 0 {
				return errors.New("dead")
			}
			return nil
		}
	}
	prepare(x)
	defer event.Subscribe(&x.p.bus, func(c event.CheckpointCommit) {
		if c.Epoch == checkpoints {
			x.pc.Break()
		}
	})()
	x.start(t.Context())
	x.wait()
	return x
}

// pages tells which bytes of a stream are inside a page of memory: one is as
// good as another to be cut at.
func pages(stream []byte, memory uint64) []bool {
	in := make([]bool, len(stream))
	for i := 0; i+8 < len(stream); i++ {
		// A page's record: address and flags (PAGE 0x08, CONTINUE 0x20), the
		// block's name without CONTINUE, 4096 bytes.
		word := binary.BigEndian.Uint64(stream[i:])
		at := i + 8
		switch word & 0xfff {
		default:
			continue
		case 0x28:
		case 0x08:
			if !bytes.HasPrefix(stream[at+1:], []byte(colotest.Block)) {
				continue
			}
			at += 1 + len(colotest.Block)
		}
		if word > memory || at+ram.PageSize > len(stream) {
			continue
		}
		for k := range ram.PageSize {
			in[at+k] = true
		}
		i = at + ram.PageSize - 1
	}
	return in
}

// tee records what is written to a connection, if it is asked to.
type tee struct {
	*colotest.Conn
	sent  []byte
	keeps bool // in sent
}

func (c *tee) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	if c.keeps {
		c.sent = append(c.sent, b[:n]...)
	}
	return n, err
}

func TestCutAnywhereLeavesOneSideInAStateThatWas(t *testing.T) {
	for _, m := range manners {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				whole := cutRun(t, m, colotest.Flow{}, colotest.Flow{}, false, nil)
				whole.wantWhole(t)
				ps, sp, stream := whole.pc.Sent(), whole.sc.Sent(), whole.tee.sent
				inside := pages(stream, uint64(len(whole.p.guest.Memory())))
				if n := bytes.Count(stream, be32(uint32(colo.EarlyPages))); (n >= checkpoints) != (m.name == "early") {
					t.Errorf("memory was sent early %d times", n)
				}
				// The initial synchronisation has many alike records of pages
				// that are zero.
				first := int64(bytes.Index(stream, []byte("\x00\x00\x00\x01\x00\x00\x00\x03")))
				sample := func(i int64) bool {
					switch {
					case *every:
						return true
					case inside[i]:
						return i%3989 == 0
					case i < first:
						return i%211 == 0
					}
					return i%(m.stride*int64(sparse())) == 0
				}
				took := map[string]int{}
				x, n, points := whole, 0, 0
				defer func() { x.close() }()
				try := func(ps, sp colotest.Flow) {
					if points++; testing.Short() && !*every && points%sparse() != 0 {
						return
					}
					n++
					x = cutRun(t, m, ps, sp, n%2 == 0, x)
					took[x.wantWhole(t).name]++
					wantOneExit(t, x)
					if t.Failed() {
						t.Fatalf("%s: cut at %v from the primary, %v from the secondary, drop %v, primary dies %v", m.name, ps.Break, sp.Break, ps.Drop || sp.Drop, n%2 == 0)
					}
				}
				for _, drop := range []bool{false, true} {
					for at := range ps.Points(sample) {
						try(colotest.Flow{Break: at, Drop: drop}, colotest.Flow{})
					}
					for at := range sp.Points(nil) {
						try(colotest.Flow{}, colotest.Flow{Break: at, Drop: drop})
					}
				}
				t.Logf("took over: %v", took)
				if took["primary"] == 0 || took["secondary"] == 0 {
					t.Errorf("took over: %v, want both sides to have had their turn", took)
				}
			})
		})
	}
}

// wantOneExit checks how the sides say that it is over.
func wantOneExit(t testing.TB, x *pair) {
	t.Helper()
	for _, h := range []*host{x.p, x.s} {
		exits := h.exits()
		if len(exits) > 1 {
			t.Errorf("the %s said COLO_EXIT %d times", h.name, len(exits))
		}
		for _, e := range exits {
			if e.Reason != event.ExitError || e.Error == "" {
				t.Errorf("the %s said %+v of a link that broke", h.name, e)
			}
		}
		var e *colo.Error
		if h.err != nil && !errors.As(h.err, &e) {
			t.Errorf("the %s ended with %v, which does not say where", h.name, h.err)
		}
	}
}
