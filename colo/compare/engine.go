package compare

import (
	"errors"
	"hash/maphash"
	"time"

	"github.com/gocolo/lockstep/internal/packet"
)

// ErrEpoch says that a checkpoint's steps came in the wrong order.
var ErrEpoch = errors.New("compare: epoch out of order")

// maxFrame bounds a packet. A longer one is not taken for a packet at all.
const maxFrame = 4096 + 65536

// An Engine compares the packets of two guests. It belongs to one goroutine.
// [NewEngine] makes one that compares; see [Engine.Failover] for one that does
// not.
//
// A Frame given to it is not kept after the call, unless the result has it.
type Engine struct {
	cfg    Config
	strict *strict // if cfg.Strict: it does everything then

	thorough bool // for tests: no packet is taken as plain

	connections
	call
	epochs
	due

	seed  maphash.Seed // of the hashes of what has left
	sents int          // how many stretches (see sent) all flights keep; a mark counts anew

	pool  pool
	began time.Time // the time of instant 1
	dated bool      // began is known
	stats Stats
	waits Latency // of packets that matched
}

// connections has all connections of an engine.
type connections struct {
	conns    index
	newest   *conn // all of conns, in the order of their last packets; see evict
	oldest   *conn
	spare    *conn   // forgotten ones, for reuse
	lastConn *conn   // of the last packet: packets come in bursts
	crossing []*conn // those with a time in crossed
	flights  []*conn // those with a repetition that waits for its time, and some that had one; see relay.go
	partials []*conn // those with a time in partial, and some that had one
	loners   map[connKey]loners
	services map[serviceKey]*service
	aparts   int // how many flows are set apart
}

// call has what belongs to the packet that the engine has been given last, and to the
// result.
type call struct {
	now     instant
	ids     uint64 // counts packets
	in      pkt
	plain   plain         // the header fields of the packet, if it may be plain; here they need not be zeroed for each
	key     connKey       // the key of the packet in
	rest    connKey       // the key under which the packet would be compared if it were whole, or in fragments; see torn
	speaks  side          // who has sent in
	inbound packet.Packet // that Inbound has been given

	res   Result
	out   []Frame
	spent []spent // one for each frame of out
	notes []Note

	drafted *pkt // the memory of compose's packet, until something adopts it or scrap frees it
}

// A spent says of a packet that leaves when it came, and which memory of the engine the next
// call frees; p is nil where the memory is the caller's, also after takeOver.
type spent struct {
	at instant
	p  *pkt
}

// epochs has what changes with the steps of a checkpoint.
type epochs struct {
	next      uint64   // the epoch that the next mark ends
	received  uint64   // one more than the last epoch that was received
	loaded    bool     // the secondary's guest runs from the last mark, and its packets count from the receipt on
	passing   bool     // there is no session: packets pass
	deaf      bool     // packets of the secondary are dropped, since they are of an older epoch or some are missing
	crowded   bool     // there was no room for a connection in this epoch
	pieced    bool     // in this epoch a fragment has come to wait for its equal
	asked     bool     // in this epoch a checkpoint was asked for because of memory or pace
	repeats   bool     // a connection has a flight
	raised    bool     // a segment has left with a newer timestamp, and its echo may still come
	marked    []marked // packets of epochs that have ended
	ownerless queue    // packets without a connection, which a checkpoint has to cover; the next mark moves them to marked
}

// due has the times at which the engine has something to do, and the times of marks from
// which they follow.
type due struct {
	scan     instant       // for all connections
	soon     instant       // when connections are due that cannot wait so long; zero: there are none
	pace     instant       // for asking for the checkpoint of flows that are set apart; zero: none waits
	lastMark instant       // about when the last mark was
	took     time.Duration // from the last mark to its receipt; 0: not known
	heard    instant       // when the secondary's guest was heard to run from the last mark, or from an earlier one
	compared instant       // when the primary's guest sent a packet on a flow that is compared
	gathered int           // how many packets of flows set apart have come to wait for the next mark
	covered  int           // how many of them the last mark found
	late     time.Duration // how long after a packet its twin comes, of late, when both guests run
	varies   time.Duration // by how much that varies
}

// marked is a packet of an epoch that has ended and is not received.
type marked struct {
	p     *pkt
	epoch uint64
}

// NewEngine returns an engine that compares, in the epoch that Mark(0) ends.
func NewEngine(cfg Config) *Engine {
	cfg = cfg.withDefaults()
	e := &Engine{cfg: cfg, seed: maphash.MakeSeed(), connections: connections{
		conns: newIndex(), loners: make(map[connKey]loners), services: make(map[serviceKey]*service),
	}}
	e.pool.limit = cfg.MaxBytes
	if cfg.Strict {
		e.strict = newStrict(cfg, e.instant)
	}
	return e
}

// begun reports whether begin would change nothing, as for the first of two packets that
// match. It is inlined.
func (e *Engine) begun() bool {
	return len(e.spent) == 0 && len(e.notes) == 0 && e.drafted == nil && !e.res.Diverged && !e.res.Full
}

// begin is called first by everything that has a Result, unless begun says that it need not be.
func (e *Engine) begin() {
	if e.drafted != nil {
		e.scrap()
	}
	for _, s := range e.spent {
		if s.p != nil {
			e.pool.bytes -= sizeOf(s.p.class)
			e.pool.keep(s.p)
		}
	}
	e.spent = e.spent[:0]
	if len(e.out) > 8 {
		clear(e.out) // of a few it does not matter how long they are kept
	}
	e.out = e.out[:0]
	e.notes = e.notes[:0]
	if e.res.Diverged || e.res.Full {
		e.res = Result{}
	}
}

func (e *Engine) end() Result {
	e.res.Release, e.res.Notes = e.out, e.notes
	return e.res
}

// release lets p leave.
func (e *Engine) release(p *pkt, count *uint64) {
	*count++
	if count == &e.stats.Matched {
		e.waits.Add(e.now.Sub(p.at))
		e.trails(p.at)
	}
	s := spent{at: p.at, p: p}
	if p.class < 0 {
		s.p = nil
	}
	e.out, e.spent = append(e.out, p.Frame), append(e.spent, s)
}

func (e *Engine) want(why Reason) {
	e.stats.Diverged[why]++
	if !e.res.Diverged {
		e.res.Diverged, e.res.Reason = true, why
	}
}

// diverge calls want for the first divergence of a connection in an epoch. It does nothing
// for a connection that is set apart.
func (e *Engine) diverge(c *conn, why Reason) {
	if c.diverged || c.apart && why != ReasonLimit {
		return
	}
	c.diverged = true
	if c.p.len() > 0 && why != ReasonTimeout && why != ReasonLimit && why != ReasonAck {
		e.trails(c.p.at(0).at)
	}
	flow := flowOf(&c.key.Key)
	if !e.res.Diverged {
		e.res.Flow = flow
	}
	e.want(why)
	e.note(Note{Kind: NoteDiverged, Flow: flow, Reason: why})
	e.strike(c, why)
}

// recovered is called when packets of c have matched. It counts a divergence that was
// false.
func (e *Engine) recovered(c *conn) {
	if c.diverged && c.p.len() == 0 {
		c.diverged = false
		e.stats.Recovered++
	}
}

// Primary takes a packet of the primary's guest.
func (e *Engine) Primary(f Frame, now time.Time) (r Result) {
	if e.strict != nil {
		e.strict.taken = e.strict.taken[:0]
		return e.strict.primary(f, now)
	}
	if !e.begun() {
		e.begin()
	}
	if e.primaryPlain(&f, now) {
		if len(e.out) > 0 { // else the caller copies sooner what is not written
			r.Release = e.out
		}
		return r
	}
	return e.primary(f, now)
}

// primary does what Primary does, for frames that are not plain segments.
func (e *Engine) primary(f Frame, now time.Time) Result {
	p := e.look(f, now)
	e.speaks = primary
	if e.passing {
		e.pass(p)
		return e.end()
	}
	if !e.room(len(f.Data), 0) {
		e.res.Full = true
		e.overLimit()
		return e.end()
	}
	k := &e.key
	k.kind = e.kindOf(p, k)
	switch {
	case k.kind == kindFragment:
		e.pieces(p)
	case k.kind == kindMangled, k.kind == kindNone && e.cfg.HoldUncompared:
		if p.segment.is && k.kind == kindMangled {
			e.obscures(p, k)
		}
		e.ownerless.push(e.pool.copy(p))
		e.halfFull()
		return e.end()
	case k.kind == kindNone:
		e.release(p, &e.stats.Passed)
		return e.end()
	}
	c := e.conn(p, k, e.now)
	if c == nil {
		e.ownerless.push(e.pool.copy(p))
		e.overLimit()
		return e.end()
	}
	if c.loner == secondary {
		e.unlist(c)
	}
	switch k.kind {
	case kindSegment:
		e.primaryTCP(c, p)
	case kindClaim:
		e.primaryClaim(c, p)
	default:
		e.primaryOther(c, p)
	}
	if !c.apart {
		e.compared = e.now
	}
	if c.p.len() > 0 {
		e.paces(c)
		if c.p.len() > e.cfg.MaxQueue+1 {
			e.diverge(c, ReasonLimit)
		}
	}
	e.halfFull()
	return e.end()
}

// pass lets p leave while there is no session. It keeps what a SYN says of the window,
// since the connection may last until a session begins. How far the guest has come with it
// is not kept, since the guest will have come further by then.
func (e *Engine) pass(p *pkt) {
	if p.opens() && !p.deep() {
		e.key.kind = kindSegment
		if c := e.conn(p, &e.key, e.now); c != nil {
			t := toldOf(&c.tcp.told)
			t.note(p)
			c.tcp = stream{told: toldOf(&t)}
		}
	}
	e.release(p, &e.stats.Passed)
}

// Secondary takes a packet of the secondary's guest. It is never released.
func (e *Engine) Secondary(f Frame, now time.Time) (r Result) {
	if e.strict != nil {
		e.strict.taken = e.strict.taken[:0]
		return e.strict.secondary(f, now)
	}
	if !e.begun() {
		e.begin()
	}
	if !e.secondaryPlain(&f, now) {
		return e.secondary(f, now)
	}
	if e.res.Diverged || len(e.notes) > 0 { // packets that waited behind p leave too
		return e.end()
	}
	r.Release = e.out
	return r
}

// secondary does what Secondary does, for frames that are not plain segments.
func (e *Engine) secondary(f Frame, now time.Time) Result {
	if e.passing || e.deaf {
		e.stats.Stale++
		return e.end()
	}
	p := e.look(f, now)
	e.speaks = secondary
	k := &e.key
	if k.kind = e.kindOf(p, k); k.kind <= kindMangled {
		if k.kind == kindMangled && p.opens() {
			e.obscured(p, k)
		}
		e.stats.Dropped++
		return e.end()
	}
	c := e.conn(p, k, e.now)
	// The other half of the memory is the primary's.
	if c == nil || !e.room(len(f.Data), e.cfg.MaxBytes/2) {
		e.stats.Dropped++
		if c != nil && p.opens() {
			e.missed(c, p)
		}
		e.overLimit()
		return e.end()
	}
	if c.loner == primary {
		e.unlist(c)
	}
	if c.apart && c.p.len() > 0 {
		e.trails(c.p.at(0).at)
	}
	if c.s.len() > e.cfg.MaxQueue {
		e.stats.Dropped++
		c.blind = true
		if p.opens() {
			e.missed(c, p)
		}
		e.diverge(c, ReasonLimit)
		return e.end()
	}
	switch k.kind {
	case kindSegment:
		e.secondaryTCP(c, p)
	case kindClaim:
		e.secondaryClaim(c)
	case kindFragment:
		e.pieces(p)
		e.secondaryOther(c, p)
	default:
		e.secondaryOther(c, p)
	}
	return e.end()
}

// look parses f into e.in and returns that. It sets all of e.in, and so nothing of an
// earlier frame is left in it.
func (e *Engine) look(f Frame, now time.Time) *pkt {
	p := &e.in
	e.ids++
	e.now = e.instant(now)
	p.Frame, p.id, p.at, p.class, p.owner = f, e.ids, e.now, -1, nil
	if !f.fits() || len(f.Data) > maxFrame {
		p.Packet, p.segment = packet.Packet{}, segment{}
		return p
	}
	p.Parse(f.Data[f.VNetHdr:])
	if p.IsTCP() && !p.Routed {
		p.parseSegment()
	} else {
		p.segment = segment{}
	}
	return p
}

// room reports whether there is memory to keep a packet of n bytes beside so many others.
// There always is for the only one.
func (e *Engine) room(n, others int) bool {
	return e.pool.bytes == 0 || e.pool.bytes+others+costOf(n) <= e.cfg.MaxBytes
}

// halfFull asks for a checkpoint if half of the memory is in use.
func (e *Engine) halfFull() {
	if e.pool.bytes > e.cfg.MaxBytes/2 {
		e.overLimit()
	}
}

func (e *Engine) overLimit() {
	if !e.asked {
		e.asked = true
		e.want(ReasonLimit)
	}
}

// Waits returns how long packets have waited for their twins, counting those that left
// because the secondary's guest said the same. With Strict it counts none.
func (e *Engine) Waits() Latency { return e.waits }

// Stats returns the present counts.
func (e *Engine) Stats() Stats {
	if e.strict != nil {
		return e.strict.stats()
	}
	s := e.stats
	s.Conns = e.conns.n
	s.HeldBytes = e.pool.bytes
	s.Apart = e.aparts
	s.Held = len(e.marked) + e.ownerless.len()
	for c := e.newest; c != nil; c = c.older {
		s.Held += c.p.len() + c.s.len()
		if c.owed != nil {
			s.Held++
		}
	}
	for _, gone := range e.spent {
		if gone.p != nil {
			s.HeldBytes -= sizeOf(gone.p.class)
		}
	}
	return s
}
