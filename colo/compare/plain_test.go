package compare_test

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo/compare"
	"github.com/gocolo/lockstep/internal/packet"
)

// Both are two engines that are told the same, one of which takes no packet as
// plain, and a third, whose packets are composed in its memory and leave from there. What
// follows must be the same each time.
type both struct {
	t            testing.TB
	e, thorough  *compare.Engine
	composed     *compare.Engine
	plain, total int // packets
}

func newBoth(t testing.TB, cfg compare.Config) *both {
	b := &both{t: t, e: compare.NewEngine(cfg), thorough: compare.NewEngine(cfg), composed: compare.NewEngine(cfg)}
	b.thorough.TakeNothingAsPlain()
	return b
}

// compose gives a packet to the engine that composes. Two more are begun meanwhile, and
// come to nothing.
func (b *both) compose(f compare.Frame, now time.Time) compare.Result {
	before, d, after := b.composed.Draft(len(f.Data)), b.composed.Draft(len(f.Data)), b.composed.Draft(1)
	copy(before.Data(), "nothing")
	copy(d.Data(), f.Data)
	b.composed.GiveBack(after)
	r := b.composed.Composed(d, f.VNetHdr, now)
	b.composed.GiveBack(before)
	return r
}

// fatalf fails the test, and tells which of its lines was the cause. A Helper in each method would
// tell that too, and cost more than the engines, with every packet.
func (b *both) fatalf(format string, args ...any) {
	b.t.Fatalf(format+"\n%s", append(args, debug.Stack())...)
}

// also compares what the engine that composes does with r, and has what it releases leave.
// The memory of that is written over: nothing else is in it.
func (b *both) also(r, s compare.Result) {
	if !slices.Equal(r.Notes, s.Notes) || r.Diverged != s.Diverged || r.Reason != s.Reason || r.Flow != s.Flow || r.Full != s.Full || len(r.Release) != len(s.Release) {
		b.fatalf("%+v, composed %+v", r, s)
	}
	p, q := b.e.Stats(), b.composed.Stats()
	for i, f := range s.Release {
		left := b.composed.TakeOver(i, f)
		if g := r.Release[i]; f.VNetHdr != g.VNetHdr || !bytes.Equal(left.Data(), g.Data) {
			b.fatalf("%x leaves, composed %x", g.Data, left.Data())
		}
		for k := range left.Data() {
			left.Data()[k] = 0xdb
		}
		b.composed.GiveBack(left)
	}
	if p != q || p != b.composed.Stats() {
		b.fatalf("%+v, composed %+v, and when all has left %+v", p, q, b.composed.Stats())
	}
}

func (b *both) same(r, s compare.Result, e1, e2 error) (compare.Result, error) {
	equal := func(f, g compare.Frame) bool { return f.VNetHdr == g.VNetHdr && bytes.Equal(f.Data, g.Data) }
	if !slices.EqualFunc(r.Release, s.Release, equal) || !slices.Equal(r.Notes, s.Notes) ||
		r.Diverged != s.Diverged || r.Reason != s.Reason || r.Flow != s.Flow || r.Full != s.Full || (e1 == nil) != (e2 == nil) {
		b.fatalf("%+v (%v), without plain segments %+v (%v)", r, e1, s, e2)
	}
	if p, q := b.e.Stats(), b.thorough.Stats(); p != q {
		b.fatalf("%+v, without plain segments %+v", p, q)
	}
	if p, q := b.e.Deadline(), b.thorough.Deadline(); !p.Equal(q) {
		b.fatalf("deadline %v, without plain segments %v", p, q)
	}
	if p, q := b.e.Waits(), b.thorough.Waits(); p != q {
		b.fatalf("waits of %d packets, without plain segments of %d, or others", p.N(), q.N())
	}
	return r, e1
}

func (b *both) packet(r, s, composed compare.Result) compare.Result {
	b.also(r, composed)
	b.total++
	if b.e.TookPlain() {
		b.plain++
	}
	r, _ = b.same(r, s, nil, nil)
	return r
}

func (b *both) Primary(f compare.Frame, now time.Time) compare.Result {
	return b.packet(b.e.Primary(f, now), b.thorough.Primary(f, now), b.compose(f, now))
}

func (b *both) Secondary(f compare.Frame, now time.Time) compare.Result {
	return b.packet(b.e.Secondary(f, now), b.thorough.Secondary(f, now), b.composed.Secondary(f, now))
}

func (b *both) Mark(epoch uint64) error {
	b.composed.Mark(epoch)
	_, err := b.same(compare.Result{}, compare.Result{}, b.e.Mark(epoch), b.thorough.Mark(epoch))
	return err
}

func (b *both) Received(epoch uint64) (compare.Result, error) {
	r, e1 := b.e.Received(epoch)
	s, e2 := b.thorough.Received(epoch)
	composed, _ := b.composed.Received(epoch)
	b.also(r, composed)
	return b.same(r, s, e1, e2)
}

func (b *both) SecondaryMark(epoch uint64) (compare.Result, error) {
	r, e1 := b.e.SecondaryMark(epoch)
	s, e2 := b.thorough.SecondaryMark(epoch)
	composed, _ := b.composed.SecondaryMark(epoch)
	b.also(r, composed)
	return b.same(r, s, e1, e2)
}

func (b *both) Tick(now time.Time) compare.Result {
	r, _ := b.same(b.e.Tick(now), b.thorough.Tick(now), nil, nil)
	b.also(r, b.composed.Tick(now))
	return r
}

func (b *both) Failover() compare.Result {
	r, _ := b.same(b.e.Failover(), b.thorough.Failover(), nil, nil)
	b.also(r, b.composed.Failover())
	return r
}

func (b *both) Deafen() {
	b.e.Deafen()
	b.thorough.Deafen()
	b.composed.Deafen()
}

func (b *both) Inbound(f compare.Frame) {
	g, h := f, f
	g.Data, h.Data = bytes.Clone(f.Data), bytes.Clone(f.Data)
	b.e.Inbound(f)
	b.thorough.Inbound(g)
	b.composed.Inbound(h)
	if !bytes.Equal(f.Data, g.Data) || !bytes.Equal(f.Data, h.Data) {
		b.fatalf("the guests get %x, without plain segments %x, composed %x", f.Data, g.Data, h.Data)
	}
}

func (b *both) Stats() compare.Stats { return b.e.Stats() }

// shaped turns a segment into one of another shape: over IPv6, behind a virtio-net
// header of some length, and now and then without options, with others, padded, or
// with bits set here and there.
func shaped(choose func(int) int, v6 bool, vnet int, f []byte) compare.Frame {
	var p packet.Packet
	if p.Parse(f); !p.IsTCP() || p.Kind != packet.IP4 {
		return compare.Frame{Data: f}
	}
	h := slices.Clone(p.TCP())
	n := h.HeaderLen()
	odd := choose(12) == 0
	choice := func(n int) int {
		if odd {
			return choose(n)
		}
		return n - 1
	}
	switch choose(12) {
	case 0: // no options
		h = slices.Delete(h, packet.TCPLen, n)
		h[12] = 5 << 4
	case 1: // the same behind another one
		h = slices.Insert(h, packet.TCPLen, 5, 10, 0, 0, 0, 1, 0, 0, 0, 9, 1, 1)
		h[12] = byte(n+12) << 2
	}
	switch choice(5) {
	case 0:
		h[13] |= packet.URG
	case 1:
		h[13] |= 0x40 // ECE
	case 2:
		binary.BigEndian.PutUint16(h[14:], uint16(choose(1<<16)))
	}
	b := f[:p.L4]
	if v6 != (choice(4) == 0) {
		b = append(slices.Clone(f[:12]), 0x86, 0xdd)
		b = append(b, make([]byte, packet.IPv6Len)...)
		b[14], b[20] = 0x60, packet.ProtoTCP
		binary.BigEndian.PutUint16(b[18:], uint16(len(h)))
		b[37], b[53] = 1, 2
	} else {
		binary.BigEndian.PutUint16(b[16:], uint16(packet.IPv4Len+len(h)))
		switch choice(5) {
		case 0:
			b[20] = 0x20 // more fragments
		case 1:
			b[20] = 0x40 // do not
		case 2:
			b[16] = 0xff // longer than it is
		}
	}
	if choice(4) == 0 {
		vnet = []int{0, 10, 12, 20, 24}[choose(5)]
	}
	d := append(make([]byte, vnet), b...)
	d = append(append(d, h...), make([]byte, choose(2)*choose(7))...) // padding
	p = packet.Packet{}
	if p.Parse(d[vnet:]); p.IsTCP() {
		p.TCP().SetChecksum(p.TCPChecksum())
	}
	return compare.Frame{Data: d, VNetHdr: vnet}
}

// TestPlainSegmentsAreTakenLikeAllOthers drives an engine that takes plain segments
// by themselves beside one that does not, through epochs of two guests of which each
// is ahead now and then.
func TestPlainSegmentsAreTakenLikeAllOthers(t *testing.T) {
	runs := uint64(200)
	if testing.Short() {
		runs = 40
	}
	plain, total := 0, 0
	for seed := range runs {
		rnd := rand.New(rand.NewPCG(seed, 13))
		cfg := modelConfig(rnd.IntN)
		cfg.Adaptive = cfg.Adaptive && rnd.IntN(3) == 0
		cfg.MaxConns = max(cfg.MaxConns, 3+rnd.IntN(2)*61)
		if rnd.IntN(4) == 0 {
			cfg.MaxBytes = 1 << 14
		}
		b := newBoth(t, cfg)
		now := time.Unix(1000, 0)
		m := newModel(t, cfg, rnd.IntN) // for its guests
		b.Mark(0)
		b.SecondaryMark(0)
		epoch, committed := uint64(1), uint64(1)
		v6, vnet := rnd.IntN(2) == 0, []int{0, 10, 12, 20, 24}[rnd.IntN(5)]
		var said []compare.Frame // by the one that is ahead
		ahead := 0
		say := func(who int, f compare.Frame) {
			if who == 0 {
				b.Primary(f, now)
			} else {
				b.Secondary(f, now)
			}
		}
		for range 400 {
			now = now.Add(time.Duration(rnd.IntN(20)) * time.Millisecond)
			switch k := rnd.IntN(40); {
			case k < 16:
				f := shaped(rnd.IntN, v6, vnet, m.segment(&m.p, rnd.IntN(3)))
				say(ahead, f)
				said = append(said, f)
			case k < 32 && len(said) > 0:
				f := said[0]
				said = said[1:]
				if rnd.IntN(100) == 0 { // it differs a little
					f.Data = slices.Clone(f.Data)
					f.Data[len(f.Data)-1-rnd.IntN(40)] ^= byte(1 << rnd.IntN(8))
				}
				if rnd.IntN(100) > 0 {
					say(1-ahead, f)
				}
			case k == 32 && rnd.IntN(3) == 0:
				say(rnd.IntN(2), shaped(rnd.IntN, v6, vnet, m.segment(&m.p, rnd.IntN(3))))
			case k == 33 && len(said) == 0:
				ahead = 1 - ahead
			case k == 34:
				if b.Mark(epoch) == nil {
					epoch++
				}
				said = nil
			case k == 35 && epoch > 0:
				b.Received(epoch - 1)
			case k > 35 && epoch > committed:
				committed = epoch
				b.SecondaryMark(epoch - 1)
				said = nil
			case k == 36:
				b.Tick(now)
			}
		}
		b.Failover()
		plain, total = plain+b.plain, total+b.total
	}
	if plain < total/8 {
		t.Errorf("%d of %d packets were plain: the test tests little", plain, total)
	}
	t.Logf("%d of %d packets were plain", plain, total)
}

// TestPlainSegmentsAskForACheckpointAtTheSameSizeAsAllOthers has one guest run ahead with
// segments that take far more memory than they have bytes, until half of what there may
// be is used, and beyond.
func TestPlainSegmentsAskForACheckpointAtTheSameSizeAsAllOthers(t *testing.T) {
	for _, size := range []int{10, 300, 1100, 1990} {
		for limit := 1 << 12; limit < 1<<15; limit += 331 {
			for _, who := range []string{"primary", "secondary"} {
				cfg := everything()
				cfg.MaxBytes = limit
				b := newBoth(t, cfg)
				now := time.Unix(1000, 0)
				b.Mark(0)
				b.SecondaryMark(0)
				first := seg{port: 9, seq: 1000, ack: 1, flags: push, data: "first"}.frame()
				b.Primary(first, now)
				b.Secondary(first, now)
				say := b.Primary
				if who == "secondary" {
					say = b.Secondary
				}
				asked, n := false, 0
				for ; !asked && n < 1<<10; n++ {
					f := seg{port: 9, seq: uint32(1005 + n*size), ack: 1, flags: push, data: strings.Repeat("d", size)}.frame()
					asked = say(f, now).Diverged
					if over := b.Stats().HeldBytes > limit/2; over && !asked && who == "primary" {
						t.Fatalf("%d segments of %d bytes wait, in %d bytes of %d, and no checkpoint is asked for", n+1, size, b.Stats().HeldBytes, limit)
					}
				}
				if !asked || b.plain == 0 && n > 3 {
					t.Errorf("%s, %d bytes of %d: checkpoint wanted %v after %d packets, %d of them plain", who, size, limit, asked, n, b.plain)
				}
			}
		}
	}
}
