package compare_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo/compare"
	"github.com/gocolo/lockstep/internal/packet"
)

// Two guests receive what a client sends, each with its own losses, and tell the truth about it.
// The client judges each segment that leaves, as a TCP would that believes what it is told: see
// truthClient.judge. And each guest that could go on if the primary died must know what the
// client believes.

// A truthWorld is two guests, an engine and a client.
type truthWorld struct {
	e      *both
	r      *rand.Rand
	now    time.Time
	trace  []string
	wrong  string
	scale  uint8
	room   uint32
	size   uint32 // of the segments of both guests; 0: each has sizes of its own
	slow   bool   // the application of the secondary\'s guest does not read all
	losses int    // one of so many segments is lost to each guest

	p, s  truthGuest
	c     truthClient
	life  *truthLife
	nth   int
	lives []*truthLife
	base  uint32 // of the numbers of the guests
	loose bool   // the guests have come to differ, until the next checkpoint is complete

	told    testified            // by the primary's guest
	heard   testified            // by the guest of the last received checkpoint, and the secondary's since it runs from there
	pending map[uint64]testified // the primary's guest at marks that are not received
	marks   map[uint64]truthGuest
	bare    uint32 // the greatest acknowledgment that the primary's guest has given without data
	gave    map[uint32]int
	last    *truthFrame // what the primary's guest has said last
	named   [2][]span   // what the last acknowledgment of each guest has acknowledged selectively, if nothing has made it void
	next    uint64
	got     uint64 // one more than the last epoch that is received
	runs    uint64 // one more than the last epoch that the secondary's guest has become
	stream  []truthSaid

	left, lowered int
}

// A truthSaid is what the secondary's guest has sent, and what is on its way.
type truthSaid struct {
	frame []byte // nil: the marker of epoch
	life  *truthLife
	epoch uint64
}

func newTruthWorld(t testing.TB, seed uint64) *truthWorld {
	r := rand.New(rand.NewPCG(seed, 31))
	cfg := everything()
	cfg.Timeout = time.Hour
	w := &truthWorld{
		e: newBoth(t, cfg), r: r, now: time.Unix(1000, 0), scale: uint8(r.IntN(5)), room: 60 + uint32(r.IntN(400)), losses: 2 + r.IntN(12),
		pending: map[uint64]testified{}, marks: map[uint64]truthGuest{}, base: uint32(r.IntN(16)) << 28, nth: -1,
	}
	w.size, w.slow = uint32(r.IntN(2)*r.IntN(40)), r.IntN(3) == 0
	if r.IntN(2) == 0 {
		w.base -= uint32(r.IntN(300))
	}
	w.p.clock, w.s.clock = 1+uint32(r.IntN(50)), 1+uint32(r.IntN(50))
	if r.IntN(4) == 0 {
		w.p.clock -= 20
	}
	return w
}

func (w *truthWorld) chance(n int) bool { return w.r.IntN(n) == 0 }

func (w *truthWorld) note(format string, a ...any) {
	w.trace = append(w.trace, fmt.Sprintf(format, a...))
}

func (w *truthWorld) fail(format string, a ...any) {
	if w.wrong == "" {
		w.wrong = fmt.Sprintf(format, a...)
		w.note("WRONG: %s", w.wrong)
	}
}

// survivors are the guests that may go on if the primary dies now.
func (w *truthWorld) survivors() []testified {
	all := []testified{w.heard}
	for _, k := range w.pending {
		all = append(all, k)
	}
	return all
}

// begin opens another connection with the same ports.
func (w *truthWorld) begin() {
	w.nth++
	was := uint32(0)
	if w.life != nil {
		was = w.life.client
	}
	l := &truthLife{nth: w.nth, guest: w.base + uint32(w.nth)<<28, scale: w.scale, times: w.r.IntN(3) > 0, sacks: w.r.IntN(4) > 0, dialed: w.chance(4), limit: 1}
	switch w.r.IntN(4) {
	case 0:
		l.client = was + uint32(w.r.IntN(3000))
	case 1:
		l.client = -uint32(w.r.IntN(200))
	case 2:
		l.client = was - uint32(w.r.IntN(1<<29))
	default:
		l.client = w.r.Uint32()
	}
	l.refused = !l.dialed && w.chance(6)
	w.life, w.lives = l, append(w.lives, l)
	w.p.inbox, w.s.inbox = nil, nil
	w.told, w.heard, w.bare, w.gave = testified{}, testified{}, 0, map[uint32]int{}
	w.last, w.named = nil, [2][]span{}
	for epoch := range w.pending {
		w.pending[epoch] = testified{}
	}
	w.c = truthClient{life: l, room: 100 + uint32(w.r.IntN(500)), clock: w.c.clock + 1, stamps: map[uint32]bool{}, again: map[uint32]int{}}
	w.note("life %d: %+v", w.nth, *l)
	if !l.dialed {
		w.syn()
	}
}

func (w *truthWorld) syn() {
	w.c.snd = 1
	w.send(truthSegment{life: w.life, syn: true, stamp: w.stamped()})
}

func (w *truthWorld) stamped() uint32 {
	if !w.life.times {
		return 0
	}
	w.c.stamps[w.c.clock] = true
	return w.c.clock
}

// send sends a segment to both guests, and to those that may still become the secondary's.
func (w *truthWorld) send(s truthSegment) {
	f := w.c.frame(s)
	w.note("client sends %d+%d ack %d syn %v fin %v", s.seq, s.n, s.ack, s.syn, s.fin)
	w.e.Inbound(compare.Frame{Data: f})
	lost := func() bool { return !s.syn && w.losses > 0 && w.chance(w.losses) }
	if w.losses > 0 && !s.syn && w.chance(2*w.losses) {
		return // before it was mirrored
	}
	if !lost() {
		w.p.inbox = append(w.p.inbox, s)
	}
	if !lost() {
		w.s.inbox = append(w.s.inbox, s)
	}
	for epoch, g := range w.marks {
		if !lost() {
			g.inbox = append(g.inbox, s)
			w.marks[epoch] = g
		}
	}
}

// client has the client do something.
func (w *truthWorld) client() {
	c := &w.c
	c.clock += uint32(w.r.IntN(2))
	switch {
	case !c.open && !w.life.dialed:
		if w.chance(3) && !w.life.refused {
			w.syn()
		}
		return
	case !c.open || c.over:
		return
	case w.life.dialed && c.una == 0:
		c.snd = 1
		w.send(truthSegment{life: w.life, syn: true, ackd: true, ack: 1, stamp: w.stamped(), echo: c.stamp, limit: c.rcv + c.room})
		return
	}
	switch w.r.IntN(8) {
	case 0: // again
		if x := c.lacks(1 + uint32(w.r.IntN(40))); x.from < x.to {
			w.send(c.segment(x.from, x.to-x.from, false))
		} else if c.ended {
			w.send(c.segment(c.snd-1, 0, true))
		}
	case 1: // a duplicate of anything
		if end := c.snd; end > 2 && !c.ended {
			from := 1 + uint32(w.r.IntN(int(end-1)))
			w.send(c.segment(from, min(end-from, 1+uint32(w.r.IntN(30))), false))
		}
	case 2:
		w.send(c.segment(c.una-1, 0, false)) // is it alive?
	case 3:
		w.send(c.segment(c.snd, 0, false))
	case 4:
		if w.chance(10) && !c.ended {
			c.ended = true
			c.snd++
			w.send(c.segment(c.snd-1, 0, true))
		}
	default:
		if n := min(1+uint32(w.r.IntN(60)), c.edge-min(c.edge, c.snd)); n > 0 && !c.ended && c.snd < 2500 {
			c.snd += n
			w.send(c.segment(c.snd-n, n, false))
		}
	}
}

// guest has a guest do something, and returns what it says.
func (w *truthWorld) guest(g *truthGuest, own func(*truthLife) (uint32, uint32)) []byte {
	g.clock += uint32(w.r.IntN(2))
	if l := w.life; l.dialed && (g.life == nil || g.life.nth < l.nth) {
		syn, room := own(l)
		g.accepts(l, syn, room)
		return g.segment(packet.SYN, 0, "")
	}
	switch k := w.r.IntN(16); {
	case k < 8:
		if len(g.inbox) == 0 {
			return nil
		}
		i := 0
		for i < 2 && i+1 < len(g.inbox) && !g.inbox[i].syn && !g.inbox[i+1].syn && w.chance(4) {
			i++
		}
		s := g.inbox[i]
		if s.syn || !w.chance(10) { // else it comes again
			g.inbox = slices.Delete(g.inbox, i, i+1)
		}
		return g.take(s, own, w.chance(2))
	case g.life == nil || g.reset || !g.open:
		if g.life != nil && !g.reset && w.chance(8) {
			if g.life.dialed {
				return g.segment(packet.SYN, 0, "")
			}
			return g.segment(packet.SYN|packet.ACK, 0, "")
		}
		return nil
	case k < 10:
		if g.owes {
			return g.ack()
		}
	case k < 13:
		if w.size > 0 {
			return g.says(w.size)
		}
		return g.says(1 + uint32(w.r.IntN(50)))
	case k == 13:
		if g.used > 0 {
			was := g.edge
			g.used -= uint32(w.r.IntN(int(g.used) + 1))
			if g.rcv+g.room-g.used >= was+g.room/4 {
				return g.ack()
			}
		}
	case k == 14:
		return g.repeats(uint32(w.r.IntN(60)), 1+uint32(w.r.IntN(40)))
	case w.chance(4) && !g.fin && g.snd > 1:
		return g.segment(packet.ACK, g.snd-1, "")
	}
	return nil
}

func (w *truthWorld) primaryNumber(l *truthLife) (uint32, uint32) { return l.guest, w.room }

func (w *truthWorld) secondaryNumber(l *truthLife) (uint32, uint32) {
	if w.nth%2 == 0 {
		return l.guest, w.room
	}
	return w.r.Uint32(), w.room
}

// primary gives the engine what the primary's guest says.
func (w *truthWorld) primary(f []byte) {
	if f == nil {
		return
	}
	s := w.life.read(f)
	w.note("P %v", s)
	if of := w.p.life; of == w.life || of == nil {
		if w.last, w.named[0] = s, nil; s.bare() {
			w.named[0] = s.blocks
		}
		again := s.end <= w.told.snd
		if w.told.learns(s); s.bare() {
			w.bare = max(w.bare, s.ack)
		}
		if again { // a repetition of data may leave as an acknowledgment alone
			w.gave[s.ack]++
		}
	}
	w.take(w.e.Primary(compare.Frame{Data: f}, w.now), nil)
}

// secondary puts what the secondary's guest says on its way.
func (w *truthWorld) secondary(f []byte) {
	if f != nil {
		w.note("S %v", w.life.read(f))
		of := w.s.life
		if of == nil {
			of = w.life // it refuses that
		}
		w.stream = append(w.stream, truthSaid{frame: f, life: of})
	}
}

func (w *truthWorld) deliver() {
	if len(w.stream) == 0 {
		return
	}
	m := w.stream[0]
	w.stream = w.stream[1:]
	if m.frame == nil {
		w.note("marker %d", m.epoch)
		w.receive(m.epoch)
		w.take(w.e.SecondaryMark(m.epoch))
		return
	}
	if w.runs == w.next && m.life == w.life && !w.stale() {
		s := w.life.read(m.frame)
		w.note("s %v", s)
		wider := s.ack == w.heard.ack && s.edge > w.heard.edge
		if w.heard.learns(s); s.bare() && !wider {
			w.gave[s.ack]++
		}
		if s.flags&packet.ACK != 0 {
			w.named[1] = s.blocks
		}
	}
	w.take(w.e.Secondary(compare.Frame{Data: m.frame}, w.now), nil)
}

// stale reports whether a marker is still on its way.
func (w *truthWorld) stale() bool {
	return slices.ContainsFunc(w.stream, func(m truthSaid) bool { return m.frame == nil })
}

func (w *truthWorld) receive(epoch uint64) {
	if k, ok := w.pending[epoch]; ok {
		w.heard = k
		for e := range w.pending {
			if e <= epoch {
				delete(w.pending, e)
			}
		}
	}
	w.got = max(w.got, epoch+1)
}

func (w *truthWorld) mark() {
	w.note("mark %d", w.next)
	if err := w.e.Mark(w.next); err != nil {
		w.fail("%v", err)
	}
	k := w.told.clone()
	if g := &w.p; g.life == w.life && k.begun { // what it knows besides what it has said
		k.held = k.held.with(span{0, g.rcv})
		for _, s := range g.held {
			k.held = k.held.with(s)
		}
	}
	w.pending[w.next] = k
	w.last, w.named = nil, [2][]span{}
	w.marks[w.next] = w.p.clone()
	w.next++
}

func (w *truthWorld) received(epoch uint64) {
	w.note("received %d", epoch)
	w.receive(epoch)
	w.take(w.e.Received(epoch))
}

// commit has the secondary's guest become the primary's of the last mark, which is received.
func (w *truthWorld) commit() {
	epoch := w.next - 1
	clock := w.s.clock
	w.s = w.marks[epoch]
	w.s.clock = max(w.s.clock, clock)
	w.note("commit %d", epoch)
	clear(w.marks)
	w.runs = w.next
	w.stream = append(w.stream, truthSaid{epoch: epoch})
}

// checkpoint makes what is left of a checkpoint, or a whole one.
func (w *truthWorld) checkpoint(whole bool) {
	if whole {
		w.checkpoint(false)
		w.mark()
	}
	if w.got < w.next {
		w.received(w.next - 1)
	}
	if w.runs < w.next {
		w.commit()
	}
	for w.stale() {
		w.deliver()
	}
	w.loose = w.loose && !whole
}

// take judges what leaves.
func (w *truthWorld) take(r compare.Result, err error) {
	if err != nil {
		w.fail("%v", err)
	}
	if r.Diverged && !w.loose {
		w.fail("a checkpoint is asked for: %v", r.Reason)
	}
	for _, f := range r.Release {
		w.judge(f.Data)
	}
	w.promises()
}

func (w *truthWorld) judge(f []byte) {
	var p packet.Packet
	p.Parse(f)
	h := p.TCP()
	if h.Checksum() != p.TCPChecksum() {
		w.fail("a checksum is wrong")
	}
	l := w.life
	if of := w.lifeOf(h); of != l {
		w.note("  left of an older connection")
		if of == nil {
			w.fail("a client has not asked for %d, which is acknowledged by a RST", h.Ack())
		}
		return
	}
	s := l.read(f)
	w.note("  left %v", s)
	w.left++
	if p := w.last; p != nil && s.data != "" && s.seq == p.seq && s.end == p.end {
		w.named[0] = p.blocks // it has waited for its data
	}
	for _, k := range w.survivors() {
		switch {
		case s.flags&packet.ACK != 0 && (!k.acks || s.ack > k.ack):
			w.fail("%d is acknowledged, and a survivor has acknowledged %d", s.ack, k.ack)
		case s.flags&packet.ACK != 0 && s.flags&packet.RST == 0 && k.edge > 0 && s.edge > max(k.edge, w.c.right):
			w.fail("the window ends at %d, and that of a survivor at %d", s.edge, k.edge)
		case s.flags&packet.SYN != 0 && !k.begun, s.flags&packet.RST != 0 && !k.reset:
			w.fail("a survivor has not said this")
		case s.end > k.snd && s.end > s.seq:
			w.fail("%d has left, and a survivor has said %d", s.end, k.snd)
		}
		for _, b := range s.blocks {
			if !k.held.has(b) {
				w.fail("%v is acknowledged selectively, and a survivor has said that it holds %v", b, k.held)
			}
		}
	}
	if wrong := w.c.judge(s); wrong != "" {
		w.fail("%s", wrong)
	}
}

// promises checks what must be true at any time.
func (w *truthWorld) promises() {
	if w.life == nil || w.c.over || w.life.refused {
		return
	}
	least := w.bare
	for _, k := range w.survivors() {
		if least = min(least, k.ack); w.c.wl && w.c.wl1 > k.snd {
			w.fail("the client has a window from %d, and a survivor goes on at %d: it would not be believed", w.c.wl1, k.snd)
		}
	}
	if least >= w.c.top+1<<w.scale && !w.loose { // a number may be lowered until the window's edge is a multiple of its unit away
		w.fail("both guests have acknowledged %d, and the client knows of %d", least, w.c.top)
	}
	if b := w.untold(); b.from < b.to && !w.loose {
		w.fail("both guests hold %v, and the client has not been told", b)
	}
	for ack, n := range w.c.again {
		gave := 0
		for i := range uint32(1) << w.scale { // it may have been lowered by less than the window's unit
			gave += w.gave[ack+i]
		}
		if n > gave {
			w.fail("%d is acknowledged again %d times, and the guests did so %d times", ack, n, gave)
		}
	}
}
