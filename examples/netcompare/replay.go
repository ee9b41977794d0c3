package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/gocolo/lockstep/colo/compare"
	"github.com/gocolo/lockstep/internal/packet"
)

// A replay feeds an engine from two captures or streams.
type replay struct {
	engine   *compare.Engine
	out      io.Writer
	progress io.Writer
	json     bool
	history  history
	first    map[packet.Key]uint32 // the position of the first byte of the primary's streams

	// Of a checkpoint the engine forgets what the secondary has said, because its
	// guest is rolled back. One that was captured was not: what it said of the
	// primary's streams beyond what the primary had said by then is said again.
	ends   map[packet.Key]uint32 // how far the primary's streams have come
	ahead  []compare.Frame       // segments of the secondary, the latest
	saying bool                  // again is running

	start, shown       time.Time
	primary, secondary int
	epoch              uint64
	left               int
	diverged           int
}

// captures compares two captures, whose secondary's clock is shifted by what shift
// says, or by what the captures say themselves if that is nil.
func (r *replay) captures(ctx context.Context, p, s *track, shift *time.Duration) error {
	for _, t := range []*track{p, s} {
		if err := t.survey(ctx); err != nil {
			return err
		}
	}
	snap := p.snap
	if snap == 0 || s.snap > 0 && s.snap < snap {
		snap = s.snap
	}
	if snap > 0 {
		for _, t := range []*track{p, s} {
			if err := t.remember(ctx); err != nil {
				return err
			}
		}
	}
	// A tag or a session that only one of the two has is where it was captured; tags that
	// both have tell networks apart.
	for _, t := range []*track{p, s} {
		t.sel.strip, t.sel.unwrap = p.tagged != s.tagged, p.dialled != s.dialled
	}
	if shift == nil {
		d := offset(p, s)
		shift = &d
		if d != 0 {
			r.note("the secondary's times are moved by %v", d)
		}
	}
	count, err := r.merge(ctx, p, s, *shift, snap)
	if err != nil {
		return err
	}
	r.conclude(p, s, count)
	if err := r.summary(); err != nil {
		return err
	}
	if err := errors.Join(p.broken, s.broken, ctx.Err()); err != nil {
		return err // the summary is of a part of the packets
	}
	if r.diverged > 0 {
		return errDiverged
	}
	return nil
}

// counted has the counts of packets that the engine does not keep.
type counted struct {
	cut, filled, unknown, anon int
	last                       time.Time
}

// merge compares the packets in the order of their times.
func (r *replay) merge(ctx context.Context, p, s *track, shift time.Duration, snap int) (count counted, err error) {
	type source struct {
		*track
		c       *capture
		n       *numbering
		head    shot
		ok      bool
		other   *track
		shifted time.Duration
	}
	sources := [2]*source{{track: p, other: s}, {track: s, other: p, shifted: shift}}
	for _, x := range sources {
		if x.c, err = x.rec.begin(); err != nil {
			return count, err
		}
		defer x.c.Close()
		x.n = x.numbers.again()
	}
	advance := func(x *source) {
		x.head, x.ok = x.next(x.c)
		x.head.at = x.head.at.Add(x.shifted)
	}
	advance(sources[0])
	advance(sources[1])
	for ctx.Err() == nil && (sources[0].ok || sources[1].ok) {
		side := 0 // of equal times the primary's is the first
		if !sources[0].ok || sources[1].ok && sources[1].head.at.Before(sources[0].head.at) {
			side = 1
		}
		x := sources[side]
		q := x.prepare(x.head, x.n, p, x.other, snap)
		if q.missing > 0 {
			count.cut++
		}
		count.filled += q.filled
		count.unknown += q.unknown
		if q.anon && side == 0 {
			count.anon++
		}
		count.last = q.at
		r.take(side, q.n, compare.Frame{Data: q.data}, q.at)
		advance(x)
		r.report(time.Now())
	}
	return count, nil
}

// patience is how long after the last packet one may still wait for its twin.
const patience = 10 * time.Second

// conclude says what the captures lack, and lets what waits in vain be a divergence,
// if it would have been one.
func (r *replay) conclude(p, s *track, count counted) {
	if !p.cut && !s.cut && p.broken == nil && s.broken == nil && !count.last.IsZero() {
		r.tick(count.last.Add(patience))
	}
	for _, t := range []*track{p, s} {
		if t.frames == 0 && t.skipped {
			r.note("%s: no packet is of those that -guest and -vlan name", t.rec.name)
		}
		if t.foreign > 0 && t.broken == nil {
			r.note("%s: %d packets were not looked at, the first for this: %v", t.rec.name, t.foreign, t.strange)
		}
		if conns, lost := t.numbers.holes(); lost > 0 {
			r.note("%s: %d bytes of %d TCP connections are in no packet of it: who captured has dropped packets, or looked elsewhere",
				t.rec.name, lost, conns)
		}
		if t.cut {
			r.note("%s: the file ends within a packet, behind %d of the guest's", t.rec.name, t.frames)
		}
	}
	if count.cut > 0 {
		r.note("%d packets were cut when they were captured: of %d bytes one side has not, the other's were taken, and %d bytes neither has",
			count.cut, count.filled, count.unknown)
	}
	if count.anon > 0 {
		r.note("%d echo replies answer requests that were not the same: their sequence numbers and lengths were compared", count.anon)
	}
	lone := 0
	for k, list := range p.numbers.conns {
		for i, b := range list {
			if _, ok := s.numbers.difference(p.numbers, k, i); !ok && (b.known || i < len(s.numbers.conns[k])) {
				lone++
			}
		}
	}
	for k := range p.numbers.conns {
		if p.numbers.conns[k.Reverse()] != nil {
			r.note("the captures have both directions: -guest says whose packets are meant")
			break
		}
	}
	if lone > 0 {
		r.note("%d connections begin in one capture only, or in none: their numbers were compared as they are", lone)
	}
}

// note prints a note about the captures.
func (r *replay) note(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	r.print(map[string]string{"note": text}, func() { fmt.Fprintln(r.out, text) })
}

// take compares one packet of a side, 0 for the primary; n is its number there.
func (r *replay) take(side, n int, f compare.Frame, at time.Time) {
	r.tick(at)
	r.remember(side, n, f)
	if side == 0 {
		r.primary++
		r.show(at, "primary", n, r.engine.Primary(f, at))
	} else {
		r.secondary++
		r.show(at, "secondary", n, r.engine.Secondary(f, at))
	}
}

// remember notes what a packet carries, for a divergence.
func (r *replay) remember(side, n int, f compare.Frame) {
	var p packet.Packet
	data := f.Data[min(max(f.VNetHdr, 0), len(f.Data)):]
	r.history.add(side, n, data)
	if p.Parse(data); !p.IsTCP() {
		return
	}
	h, k := p.TCP(), flow(&p)
	if r.first == nil {
		r.first, r.ends = map[packet.Key]uint32{}, map[packet.Key]uint32{}
	}
	if side == 0 {
		if end, ok := r.ends[k]; !ok || int32(endOf(h)-end) > 0 || h.Flags()&packet.SYN != 0 {
			r.ends[k] = endOf(h)
		}
	} else {
		if len(r.ahead) >= maxAhead {
			r.ahead = append(r.ahead[:0], r.ahead[1:]...)
		}
		r.ahead = append(r.ahead, f)
	}
	_, known := r.first[k]
	var seq uint32
	switch {
	case h.Flags()&packet.SYN != 0:
		seq = h.Seq() + 1
	case !known:
		seq = h.Seq()
	default:
		return
	}
	if side == 0 || !known {
		r.first[k] = seq
	}
}

// maxAhead is how many segments of the secondary may be said again.
const maxAhead = 512

// endOf returns the position behind a segment.
func endOf(h packet.TCP) uint32 {
	end := h.Seq() + uint32(len(h.Payload()))
	if h.Flags()&(packet.SYN|packet.FIN) != 0 {
		end++
	}
	return end
}

// again lets the secondary say again what is beyond the primary's streams.
func (r *replay) again(at time.Time) {
	if r.saying {
		return // it has led to another divergence: that is enough
	}
	r.saying = true
	defer func() { r.saying = false }()
	said := r.ahead
	r.ahead = nil
	for _, f := range said {
		var p packet.Packet
		p.ParseVNet(f.Data, f.VNetHdr)
		if end, ok := r.ends[flow(&p)]; ok && p.IsTCP() && int32(endOf(p.TCP())-end) > 0 {
			r.ahead = append(r.ahead, f)
			r.show(at, "again", 0, r.engine.Secondary(f, at))
		}
	}
}

// report says now and then how far it has come.
func (r *replay) report(now time.Time) {
	if now.Sub(r.shown) > time.Second {
		r.shown = now
		fmt.Fprintf(r.progress, "%d packets of the primary, %d of the secondary, %d left, %d checkpoints\n", r.primary, r.secondary, r.left, r.epoch)
	}
}

func (r *replay) tick(now time.Time) {
	if r.start.IsZero() {
		r.start = now
	}
	// A result may be followed by another one: what has waited on other flows.
	for range 1000 {
		res := r.engine.Tick(now)
		r.show(now, "timer", 0, res)
		if !res.Diverged {
			return
		}
	}
}

// line is printed about one packet.
type line struct {
	Time    float64 `json:"time"` // seconds since the first packet
	Side    string  `json:"side"`
	Packet  int     `json:"packet"` // counted from 1 in its capture or stream
	Left    int     `json:"left"`   // packets of the primary that leave now
	Diverge string  `json:"diverged,omitempty"`
	Flow    string  `json:"flow,omitempty"`
	*finding
}

func (r *replay) show(at time.Time, side string, n int, res compare.Result) {
	r.left += len(res.Release)
	if len(res.Release) == 0 && !res.Diverged {
		return
	}
	l := line{Time: at.Sub(r.start).Seconds(), Side: side, Packet: n, Left: len(res.Release)}
	if res.Diverged {
		r.diverged++
		l.Diverge, l.Flow = res.Reason.String(), res.Flow.String()
		if f, ok := r.history.look(res.Flow, r.base(res.Flow)); ok {
			l.finding = &f
		}
		r.history.clear(res.Flow) // what comes next is another divergence
	}
	r.print(l, func() {
		fmt.Fprintf(r.out, "%12.6f %-9s %6d", l.Time, l.Side, l.Packet)
		if l.Left > 0 {
			fmt.Fprintf(r.out, "  left %d", l.Left)
		}
		if l.Diverge != "" {
			fmt.Fprintf(r.out, "  diverged: %s, %s", l.Diverge, l.Flow)
			if l.finding != nil {
				fmt.Fprintf(r.out, ", %s", l.text())
			}
		}
		fmt.Fprintln(r.out)
	})
	if res.Diverged {
		r.checkpoint(at)
	}
}

// base returns a function for the sequence number from which the offsets of a stream count.
func (r *replay) base(f compare.Flow) func(*piece) uint32 {
	var first uint32
	for k, seq := range r.first {
		if uint16(k.Ports>>16) == f.Src.Port() && uint16(k.Ports) == f.Dst.Port() {
			first = seq
			if sides := r.history.flows[k]; sides != nil && r.history.find(f) == sides {
				break
			}
		}
	}
	return func(*piece) uint32 { return first }
}

func (r *replay) checkpoint(at time.Time) {
	if err := r.engine.Mark(r.epoch); err != nil {
		return
	}
	res, err := r.engine.Received(r.epoch)
	if err == nil {
		err = r.engine.Loaded(r.epoch)
	}
	if err != nil {
		return
	}
	r.epoch++
	r.show(at, "checkpoint", int(r.epoch), res)
	r.again(at)
}

func (r *replay) print(v any, text func()) {
	if r.json {
		json.NewEncoder(r.out).Encode(v)
		return
	}
	text()
}

func (r *replay) summary() error {
	s := r.engine.Stats()
	sum := struct {
		Primary     int    `json:"primary"`
		Secondary   int    `json:"secondary"`
		Matched     uint64 `json:"matched"`
		Uncompared  uint64 `json:"uncompared"`
		Checkpoint  uint64 `json:"left_at_checkpoints"`
		Checkpoints uint64 `json:"checkpoints"`
		Waiting     int    `json:"waiting"`
	}{r.primary, r.secondary, s.Matched, s.Passed, s.Checkpoint, r.epoch, s.Held}
	r.print(map[string]any{"summary": sum}, func() {
		fmt.Fprintf(r.out, "%d packets of the primary, %d of the secondary: %d matched, %d uncompared, %d at %d checkpoints, %d wait\n",
			sum.Primary, sum.Secondary, sum.Matched, sum.Uncompared, sum.Checkpoint, sum.Checkpoints, sum.Waiting)
	})
	return nil
}
