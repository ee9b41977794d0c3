package compare

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
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
	strict *strict // Strict: everything is done there

	conns    map[connKey]*conn
	newest   *conn // all connections, by the time of their last packet
	oldest   *conn
	spare    *conn // forgotten ones, for reuse
	lastConn *conn // of the last packet: they come in bursts
	crossing []*conn
	loners   map[connKey]loners
	services map[serviceKey]*service
	aparts   int // flows that are set apart

	pool    pool
	ids     uint64
	in      pkt           // what has just come
	key     connKey       // its
	speaks  side          // whose it is
	inbound packet.Packet // Inbound's
	raised  bool          // something has left with a newer timestamp
	out     []Frame
	zombies []*pkt // released by the last call
	notes   []Note

	marked    []marked
	sidelined queue // held until the next mark, whatever the secondary says
	passing   bool
	deaf      bool   // the secondary's packets are of an older epoch
	next      uint64 // the epoch that the next mark ends
	received  uint64 // one more than the last epoch that is received
	loaded    bool   // the last mark's is, and the secondary's packets count once it is received
	crowded   bool   // there was no room for a connection in this epoch
	asked     bool   // for a checkpoint because of memory or pace, in this epoch

	scan     time.Time // when all is looked at
	soon     time.Time // when what cannot wait so long is; zero: there is nothing
	lastMark time.Time // about when the last mark was
	pace     time.Time // when a checkpoint is asked for, for what is set apart; zero: it is not

	now   time.Time // of the call
	res   Result
	stats Stats
	waits Latency // of matched packets
}

var zeroTime time.Time

// marked is a packet of an epoch that has ended and is not received.
type marked struct {
	p     *pkt
	epoch uint64
}

// NewEngine returns an engine that compares, in the epoch that Mark(0) ends.
func NewEngine(cfg Config) *Engine {
	cfg = cfg.withDefaults()
	e := &Engine{
		cfg: cfg, conns: make(map[connKey]*conn),
		loners: make(map[connKey]loners), services: make(map[serviceKey]*service),
	}
	if cfg.Strict {
		e.strict = newStrict(cfg)
	}
	return e
}

// begin is called first by everything that has a Result.
func (e *Engine) begin() {
	for _, p := range e.zombies {
		e.pool.put(p)
	}
	e.zombies = e.zombies[:0]
	if len(e.out) > 0 {
		clear(e.out)
		e.out = e.out[:0]
	}
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
	}
	e.out = append(e.out, p.Frame)
	if p.class >= 0 {
		e.zombies = append(e.zombies, p)
	}
}

func (e *Engine) want(why Reason) {
	e.stats.Diverged[why]++
	if !e.res.Diverged {
		e.res.Diverged, e.res.Reason = true, why
	}
}

// diverge is want, once for a connection in an epoch, and not for one that is
// set apart.
func (e *Engine) diverge(c *conn, why Reason) {
	if c.diverged || c.apart && why != ReasonLimit {
		return
	}
	c.diverged = true
	flow := flowOf(&c.key.Key)
	if !e.res.Diverged {
		e.res.Flow = flow
	}
	e.want(why)
	e.note(Note{Kind: NoteDiverged, Flow: flow, Reason: why})
	e.strike(c, why)
}

// recovered is called when packets of c have matched.
func (e *Engine) recovered(c *conn) {
	if c.diverged && c.p.len() == 0 {
		c.diverged = false
		e.stats.Recovered++
	}
}

// Primary takes a packet of the primary's guest.
func (e *Engine) Primary(f Frame, now time.Time) Result {
	if e.strict != nil {
		return e.strict.primary(f, now)
	}
	e.begin()
	p := e.look(f, now)
	e.speaks = primary
	if e.passing {
		e.pass(p)
		return e.end()
	}
	if !e.room(len(f.Data)) {
		e.res.Full = true
		e.overLimit()
		return e.end()
	}
	k := &e.key
	k.kind = e.kindOf(p, k)
	switch {
	case k.kind == kindMangled, k.kind == kindNone && e.cfg.HoldUncompared:
		e.sidelined.push(e.pool.copy(p))
		return e.end()
	case k.kind == kindNone:
		e.release(p, &e.stats.Passed)
		return e.end()
	}
	c := e.conn(p, k, now)
	if c == nil {
		e.sidelined.push(e.pool.copy(p))
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
	if c.p.len() > 0 {
		e.paces(c)
		if c.p.len() > e.cfg.MaxQueue+1 {
			e.diverge(c, ReasonLimit)
		}
	}
	if e.pool.bytes > e.cfg.MaxBytes/2 {
		e.overLimit()
	}
	return e.end()
}

// pass lets p leave without a session. What a SYN says of the window is kept: the
// connection may live to see one.
func (e *Engine) pass(p *pkt) {
	if p.segment.is && p.flags&packet.SYN != 0 {
		e.key.kind = kindSegment
		if c := e.conn(p, &e.key, e.now); c != nil {
			c.tcp = stream{}
			c.tcp.told.note(p)
		}
	}
	e.release(p, &e.stats.Passed)
}

// Secondary takes a packet of the secondary's guest. It is never released.
func (e *Engine) Secondary(f Frame, now time.Time) Result {
	if e.strict != nil {
		return e.strict.secondary(f, now)
	}
	e.begin()
	if e.passing || e.deaf {
		e.stats.Stale++
		return e.end()
	}
	p := e.look(f, now)
	e.speaks = secondary
	k := &e.key
	if k.kind = e.kindOf(p, k); k.kind <= kindMangled {
		e.stats.Dropped++
		return e.end()
	}
	c := e.conn(p, k, now)
	// The other half of the memory is the primary's.
	if c == nil || !e.room(e.cfg.MaxBytes/2+len(f.Data)) {
		e.stats.Dropped++
		e.overLimit()
		return e.end()
	}
	if c.loner == primary {
		e.unlist(c)
	}
	if c.s.len() > e.cfg.MaxQueue {
		e.stats.Dropped++
		c.blind = true
		e.diverge(c, ReasonLimit)
		return e.end()
	}
	switch k.kind {
	case kindSegment:
		e.secondaryTCP(c, p)
	case kindClaim:
		e.secondaryClaim(c)
	default:
		e.secondaryOther(c, p)
	}
	return e.end()
}

// look parses f into e.in, which it returns. All of e.in is of f then.
func (e *Engine) look(f Frame, now time.Time) *pkt {
	p := &e.in
	e.ids++
	e.now = now
	p.Frame, p.id, p.at, p.class, p.owner = f, e.ids, now, -1, nil
	if f.VNetHdr < 0 || f.VNetHdr > len(f.Data) || len(f.Data) > maxFrame {
		p.Packet, p.segment = packet.Packet{}, segment{}
		return p
	}
	p.Parse(f.Data[f.VNetHdr:])
	if p.IsTCP() {
		p.parseSegment()
	} else {
		p.segment = segment{}
	}
	return p
}

// room says whether a packet of n bytes may be kept.
func (e *Engine) room(n int) bool { return e.pool.bytes+n <= e.cfg.MaxBytes }

func (e *Engine) overLimit() {
	if !e.asked {
		e.asked = true
		e.want(ReasonLimit)
	}
}

// Mark ends an epoch: the primary's guest is paused, and the packets that it
// has sent belong to epoch. Those that wait do so until Received; the
// secondary's are void. The time of a mark is that of the call before it. Epochs
// are marked in order, or from 0; anything else is
// [ErrEpoch].
func (e *Engine) Mark(epoch uint64) error {
	if epoch != 0 && (epoch != e.next || e.passing) {
		return fmt.Errorf("%w: mark %d", ErrEpoch, epoch)
	}
	if e.strict != nil {
		e.strict.mark()
	}
	if epoch == 0 {
		e.received = 0
	}
	e.passing, e.loaded = false, false
	e.next = epoch + 1
	e.deaf = true
	e.lastMark = e.now
	e.notes = e.notes[:0]
	first := len(e.marked)
	for _, p := range e.sidelined.all() {
		e.marked = append(e.marked, marked{p, epoch})
	}
	e.sidelined.clear()
	e.raised = false
	for c := e.newest; c != nil; c = c.older {
		e.markConn(c, epoch)
		e.raised = e.raised || c.tcp.left.waits()
	}
	clear(e.loners)
	clear(e.crossing)
	e.crossing = e.crossing[:0]
	slices.SortFunc(e.marked[first:], func(a, b marked) int { return cmp.Compare(a.p.id, b.p.id) })
	e.crowded, e.asked, e.pace, e.soon = false, false, zeroTime, zeroTime
	return nil
}

// markConn is Mark for one connection.
func (e *Engine) markConn(c *conn, epoch uint64) {
	if c.owed != nil {
		c.p.push(c.owed)
		c.owed = nil
	}
	for _, p := range c.p.all() {
		e.marked = append(e.marked, marked{p, epoch})
	}
	c.marked += c.p.len()
	c.p.clear()
	e.drop(&c.s)
	e.review(c)
	c.diverged, c.blind, c.loner, c.crossed = false, false, neither, zeroTime
	switch c.key.kind {
	case kindSegment:
		c.tcp.narrow(epoch)
	case kindClaim:
		c.claim.narrow(epoch)
	}
}

// Received releases what was marked with epoch, or before: the secondary has
// all of that checkpoint. So leaves what has come since, as far as that covers it.
// An epoch that is not marked is [ErrEpoch].
func (e *Engine) Received(epoch uint64) (Result, error) {
	if e.passing || epoch >= e.next {
		return Result{}, fmt.Errorf("%w: received %d", ErrEpoch, epoch)
	}
	if e.strict != nil {
		return e.strict.received(), nil
	}
	e.begin()
	e.receive(epoch)
	return e.end(), nil
}

func (e *Engine) receive(epoch uint64) {
	if epoch < e.received {
		return
	}
	e.received = epoch + 1
	for c := e.newest; c != nil; c = c.older {
		switch c.key.kind {
		case kindSegment:
			c.tcp.receive(epoch, e.cfg.ReleaseRetransmits)
		case kindClaim:
			c.claim.receive(epoch)
		}
	}
	n := 0
	for n < len(e.marked) && e.marked[n].epoch <= epoch {
		p := e.marked[n].p
		if p.owner != nil {
			p.owner.marked--
		}
		if c := e.ownerOf(p); c != nil && p.segment.is {
			e.leave(c, p, &e.stats.Checkpoint)
		} else {
			e.release(p, &e.stats.Checkpoint)
		}
		n++
	}
	e.marked = slices.Delete(e.marked, 0, n)
	for c := e.newest; c != nil; c = c.older {
		switch {
		case c.key.kind == kindSegment:
			if c.p.len() > 0 {
				e.advance(c, false)
			}
			if c.owed != nil {
				e.payOwed(c, false)
			}
		case c.key.kind == kindClaim && c.claim.said:
			e.secondaryClaim(c)
		}
	}
	if e.loaded && e.received == e.next {
		e.hear()
	}
}

// ownerOf returns the connection of a marked packet. One for which there was no
// room may have got it since.
func (e *Engine) ownerOf(p *pkt) *conn {
	if p.owner != nil || !p.segment.is {
		return p.owner
	}
	k := connKey{kind: kindSegment}
	p.Key(&k.Key)
	return e.conns[k]
}

// SecondaryMark says that the secondary's packets from now on belong to the
// epoch after this one. A marker of an epoch that is over is ignored; one of an
// epoch that is not marked yet is [ErrEpoch], for the secondary cannot know of
// it. What was marked with epoch is released: the secondary has it.
func (e *Engine) SecondaryMark(epoch uint64) (Result, error) {
	if e.passing || epoch >= e.next {
		return Result{}, fmt.Errorf("%w: secondary's mark %d", ErrEpoch, epoch)
	}
	if epoch+1 != e.next {
		return Result{}, nil
	}
	res, err := e.Received(epoch)
	e.hear()
	return res, err
}

// Loaded says that the secondary's guest runs epoch. Without Marks its packets
// count from here on, or from Received, if that comes later. An epoch that is not
// marked is [ErrEpoch].
func (e *Engine) Loaded(epoch uint64) error {
	if e.passing || epoch >= e.next {
		return fmt.Errorf("%w: loaded %d", ErrEpoch, epoch)
	}
	if !e.cfg.Marks && epoch+1 == e.next {
		if e.loaded = true; e.received == e.next || e.strict != nil {
			e.hear()
		}
	}
	return nil
}

// Deafen says that the secondary's packets do not arrive any more, or not all
// of them: its connection is lost, or a new one begins within an epoch. What
// arrives is void until the next SecondaryMark, or without Marks, Loaded. What
// has arrived counts.
func (e *Engine) Deafen() {
	e.deaf = true
	if e.strict != nil {
		e.strict.deaf = true
	}
}

// Deaf reports whether the secondary's packets are void at present: they are of
// an older epoch, or some are missing.
func (e *Engine) Deaf() bool { return e.deaf }

// Covered calls fn for each packet that was sent before the last mark and is not
// released, oldest first. fn keeps nothing of it.
func (e *Engine) Covered(fn func(Frame)) {
	if e.strict != nil {
		for _, p := range e.strict.marked {
			fn(p.Frame)
		}
		return
	}
	for _, m := range e.marked {
		fn(m.p.Frame)
	}
}

func (e *Engine) hear() {
	e.deaf = false
	if e.strict != nil {
		e.strict.deaf = false
	}
}

// Failover releases everything, oldest first, and lets packets pass from now on:
// this side goes on alone, or has no secondary yet. Mark(0) ends that.
func (e *Engine) Failover() Result {
	if !e.passing {
		_ = e.Mark(e.next) // it is the next one
	}
	res, _ := e.Received(e.next - 1)
	e.passing, e.next = true, 0
	if e.strict != nil {
		e.strict.passing = true
	}
	for c := e.newest; c != nil; {
		older := c.older
		if p := c.owed; p != nil {
			c.owed = nil
			e.release(p, &e.stats.Checkpoint)
		}
		if told := c.tcp.told; told.scaled {
			e.unlist(c)
			*c = conn{key: c.key, newer: c.newer, older: c.older, used: c.used, p: c.p, s: c.s}
			c.tcp.told = toldOf(&told)
		} else {
			e.forget(c)
		}
		c = older
	}
	e.aparts, e.raised = 0, false
	if e.strict == nil {
		res.Release = e.out
	}
	return res
}

// toldOf returns what is kept of told beyond a session.
func toldOf(t *told) told {
	return told{isn: t.isn, open: t.open, scale: t.scale, scaled: t.scaled}
}

// Tick looks for packets that have waited too long, if it is time to. It is
// called at Deadline, or at any time.
func (e *Engine) Tick(now time.Time) Result {
	if e.strict != nil {
		return e.strict.tick(now)
	}
	e.begin()
	e.now = now
	if !e.soon.IsZero() && !now.Before(e.soon) {
		e.tickSoon()
	}
	if !now.Before(e.scan) {
		e.scan = now.Add(e.cfg.Scan)
		e.tickAll()
	}
	return e.end()
}

// tickAll looks at everything.
func (e *Engine) tickAll() {
	late := func(q *queue, said *cover) bool {
		for _, p := range q.all() {
			if e.now.Sub(p.at) > e.cfg.Timeout && !(said != nil && said.tells(p)) {
				return true
			}
		}
		return false
	}
	expired := false
	var older *conn
	for c := e.newest; c != nil; c = older {
		older = c.older
		if c.idle() && e.now.Sub(c.used) > e.cfg.Idle {
			e.forget(c)
			continue
		}
		if e.cfg.AckTimeout < e.cfg.Timeout && c.waitsAck(e.now, e.cfg.AckTimeout) {
			e.diverge(c, ReasonAck)
		}
		if expired || c.apart {
			continue
		}
		if late(&c.p, nil) || late(&c.s, &c.tcp.cover) || c.tcp.late(e.now, e.cfg.Timeout) || c.lacks() && e.now.Sub(c.owed.at) > e.cfg.Timeout {
			if expired = true; !e.res.Diverged {
				e.res.Flow = flowOf(&c.key.Key)
			}
		}
	}
	if expired || late(&e.sidelined, nil) {
		e.want(ReasonTimeout)
	}
}

// waitsAck reports whether c has waited for longer than patience for nothing but
// an acknowledgment.
func (c *conn) waitsAck(now time.Time, patience time.Duration) bool {
	if c.lacks() {
		return now.Sub(c.owed.at) > patience
	}
	return c.p.len() > 0 && c.p.at(0).waitsAck && now.Sub(c.p.at(0).at) > patience
}

// tickSoon looks at what cannot wait for the next scan.
func (e *Engine) tickSoon() {
	e.soon = zeroTime
	for i := 0; i < len(e.crossing); {
		c := e.crossing[i]
		if until := c.crossed.Add(e.cfg.Cross); e.now.Before(until) {
			e.sooner(until)
			i++
			continue
		}
		e.uncross(c) // another takes its place
		e.diverge(c, ReasonPacket)
	}
	switch {
	case e.pace.IsZero():
	case e.now.Before(e.pace):
		e.sooner(e.pace)
	default:
		e.pace = zeroTime
		if !e.asked {
			e.asked = true
			e.want(ReasonPace)
		}
	}
}

// sooner sets the time of the next tickSoon to t, if it is not before that.
func (e *Engine) sooner(t time.Time) {
	if e.soon.IsZero() || t.Before(e.soon) {
		e.soon = t
	}
}

// Deadline returns when Tick has something to do; zero if it has nothing.
func (e *Engine) Deadline() time.Time {
	switch {
	case e.strict != nil:
		return e.strict.scan
	case len(e.conns) == 0 && e.sidelined.len() == 0, e.passing:
		return time.Time{}
	case !e.soon.IsZero() && e.soon.Before(e.scan):
		return e.soon
	}
	return e.scan
}

// Waits returns how long packets have waited that left because the secondary said
// the same. (Not with Strict.)
func (e *Engine) Waits() Latency { return e.waits }

// Stats returns the present counts.
func (e *Engine) Stats() Stats {
	if e.strict != nil {
		return e.strict.stats()
	}
	s := e.stats
	s.Conns = len(e.conns)
	s.HeldBytes = e.pool.bytes
	s.Apart = e.aparts
	s.Held = len(e.marked) + e.sidelined.len()
	for c := e.newest; c != nil; c = c.older {
		s.Held += c.p.len() + c.s.len()
		if c.owed != nil {
			s.Held++
		}
	}
	for _, p := range e.zombies {
		s.HeldBytes -= 1 << (poolMin + p.class)
	}
	return s
}
