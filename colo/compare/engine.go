package compare

import (
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

	conns     map[packet.Key]*conn
	newest    *conn // all connections, by the time of their last packet
	oldest    *conn
	spare     *conn // forgotten ones, for reuse
	pool      pool
	ids       uint64
	in        pkt // what has just come
	out       []Frame
	zombies   []*pkt // released by the last call
	marked    []marked
	sidelined queue // held until the next mark, whatever the secondary says
	passing   bool
	deaf      bool   // the secondary's packets are of an older epoch
	next      uint64 // the epoch that the next mark ends
	scan      time.Time
	asked     bool // for a checkpoint because of memory, in this epoch
	res       Result
	stats     Stats
	waits     Latency   // of matched packets
	now       time.Time // of the call
	lastConn  *conn     // the connection of lastKey: packets come in bursts
	lastKey   packet.Key
}

// marked is a packet of an epoch that has ended and is not received.
type marked struct {
	p     *pkt
	epoch uint64
}

// A conn is a connection, or what comes nearest to one.
type conn struct {
	key          packet.Key
	newer, older *conn
	used         time.Time

	p, s     queue // waiting; TCP: in the order of the stream
	diverged bool  // in this epoch
	blind    bool  // nothing leaves before a checkpoint

	tcp stream
}

// NewEngine returns an engine that compares, in the epoch that Mark(0) ends.
func NewEngine(cfg Config) *Engine {
	cfg = cfg.withDefaults()
	e := &Engine{cfg: cfg, conns: make(map[packet.Key]*conn)}
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
	e.res = Result{}
}

func (e *Engine) end() Result {
	e.res.Release = e.out
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

// diverge is want, once for a connection in an epoch.
func (e *Engine) diverge(c *conn, why Reason) {
	if !c.diverged {
		c.diverged = true
		if !e.res.Diverged {
			e.res.Flow = flowOf(&c.key)
		}
		e.want(why)
	}
}

// Primary takes a packet of the primary's guest.
func (e *Engine) Primary(f Frame, now time.Time) Result {
	if e.strict != nil {
		return e.strict.primary(f, now)
	}
	e.begin()
	p := e.look(f, now)
	if e.passing {
		e.release(p, &e.stats.Passed)
		return e.end()
	}
	if !e.room(len(f.Data)) {
		e.res.Full = true
		e.overLimit()
		return e.end()
	}
	if !e.comparable(p) {
		if e.cfg.HoldUncompared && len(f.Data) <= maxFrame {
			e.sidelined.push(e.pool.copy(p))
		} else {
			e.release(p, &e.stats.Passed)
		}
		return e.end()
	}
	c := e.conn(p, now)
	switch {
	case c == nil:
		e.sidelined.push(e.pool.copy(p))
		e.overLimit()
	case p.segment:
		e.primaryTCP(c, p)
	default:
		e.primaryOther(c, p)
	}
	if c != nil && c.p.len() > e.cfg.MaxQueue+1 {
		e.diverge(c, ReasonLimit)
	}
	if e.pool.bytes > e.cfg.MaxBytes/2 {
		e.overLimit()
	}
	return e.end()
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
	if !e.comparable(p) {
		e.stats.Dropped++
		return e.end()
	}
	c := e.conn(p, now)
	// The other half of the memory is the primary's.
	if c == nil || !e.room(e.cfg.MaxBytes/2+len(f.Data)) {
		e.stats.Dropped++
		e.overLimit()
		return e.end()
	}
	if c.s.len() > e.cfg.MaxQueue {
		e.stats.Dropped++
		c.blind = true
		e.diverge(c, ReasonLimit)
		return e.end()
	}
	if p.segment {
		e.secondaryTCP(c, p)
	} else {
		e.secondaryOther(c, p)
	}
	return e.end()
}

// look parses f into e.in, which it returns.
func (e *Engine) look(f Frame, now time.Time) *pkt {
	p := &e.in
	e.ids++
	e.now = now
	p.Frame, p.id, p.at, p.class = f, e.ids, now, -1
	p.segment, p.waitsAck = false, false
	if f.VNetHdr < 0 || f.VNetHdr > len(f.Data) || len(f.Data) > maxFrame {
		p.Packet = packet.Packet{}
		return p
	}
	p.Parse(f.Data[f.VNetHdr:])
	if p.IsTCP() {
		h := p.TCP()
		p.segment, p.dat = true, p.L4+h.HeaderLen()
		p.seq, p.ack, p.flags = h.Seq(), h.Ack(), h.Flags()
		p.end = p.seq + uint32(p.End-p.dat)
		p.ok = p.seq
	}
	return p
}

func (e *Engine) comparable(p *pkt) bool {
	return (p.Kind == packet.IP4 || p.Kind == packet.IP6) && (p.Tags == 0 || e.cfg.CompareVLAN)
}

// room says whether a packet of n bytes may be kept.
func (e *Engine) room(n int) bool { return e.pool.bytes+n <= e.cfg.MaxBytes }

func (e *Engine) overLimit() {
	if !e.asked {
		e.asked = true
		e.want(ReasonLimit)
	}
}

// conn returns the connection of p, a new one if it must be, nil if there are
// too many.
func (e *Engine) conn(p *pkt, now time.Time) *conn {
	var k packet.Key
	p.Key(&k)
	if c := e.lastConn; c != nil && k == e.lastKey {
		c.used = now
		return c
	}
	c := e.conns[k]
	if c == nil {
		if len(e.conns) >= e.cfg.MaxConns && !e.evict() {
			return nil
		}
		if c = e.spare; c != nil {
			e.spare = c.older
			*c = conn{key: k, p: c.p, s: c.s}
		} else {
			c = &conn{key: k}
		}
		e.conns[k] = c
		e.front(c)
	} else if e.newest != c {
		e.unlink(c)
		e.front(c)
	}
	c.used = now
	e.lastConn, e.lastKey = c, k
	return c
}

// evict forgets one of the connections that were idle longest, if one of them
// has nothing waiting.
func (e *Engine) evict() bool {
	c := e.oldest
	for range 16 {
		if c == nil {
			return false
		}
		if c.idle() {
			e.forget(c)
			return true
		}
		c = c.newer
	}
	return false
}

func (c *conn) idle() bool {
	if c.p.len() > 0 || c.blind {
		return false
	}
	for _, s := range c.s.all() {
		if !c.tcp.repeats(s) {
			return false
		}
	}
	return true
}

func (e *Engine) forget(c *conn) {
	e.drop(&c.s)
	delete(e.conns, c.key)
	e.unlink(c)
	if e.lastConn == c {
		e.lastConn = nil
	}
	c.older, e.spare = e.spare, c
}

func (e *Engine) front(c *conn) {
	c.newer, c.older = nil, e.newest
	if e.newest != nil {
		e.newest.newer = c
	} else {
		e.oldest = c
	}
	e.newest = c
}

func (e *Engine) unlink(c *conn) {
	if c.newer != nil {
		c.newer.older = c.older
	} else {
		e.newest = c.older
	}
	if c.older != nil {
		c.older.newer = c.newer
	} else {
		e.oldest = c.newer
	}
}

// drop forgets the secondary's packets.
func (e *Engine) drop(q *queue) {
	for _, p := range q.all() {
		e.pool.put(p)
	}
	q.clear()
}

// Mark ends an epoch: the primary's guest is paused, and the packets that it
// has sent belong to epoch. Those that wait do so until Received; the
// secondary's are void. Epochs are marked in order, or from 0; anything else is
// [ErrEpoch].
func (e *Engine) Mark(epoch uint64) error {
	if epoch != 0 && (epoch != e.next || e.passing) {
		return fmt.Errorf("%w: mark %d", ErrEpoch, epoch)
	}
	if e.strict != nil {
		e.strict.mark()
	}
	e.passing = false
	e.next = epoch + 1
	e.deaf = true
	first := len(e.marked)
	take := func(q *queue) {
		for _, p := range q.all() {
			e.marked = append(e.marked, marked{p, epoch})
		}
		q.clear()
	}
	take(&e.sidelined)
	for c := e.newest; c != nil; c = c.older {
		take(&c.p)
		e.drop(&c.s)
		c.diverged, c.blind = false, false
		c.tcp.rollBack()
	}
	slices.SortFunc(e.marked[first:], func(a, b marked) int { return int(int64(a.p.id - b.p.id)) })
	e.asked = false
	return nil
}

// Received releases what was marked with epoch, or before: the secondary has
// all of that checkpoint. An epoch that is not marked is [ErrEpoch].
func (e *Engine) Received(epoch uint64) (Result, error) {
	if e.passing || epoch >= e.next {
		return Result{}, fmt.Errorf("%w: received %d", ErrEpoch, epoch)
	}
	if e.strict != nil {
		return e.strict.received(), nil
	}
	e.begin()
	n := 0
	for n < len(e.marked) && e.marked[n].epoch <= epoch {
		e.release(e.marked[n].p, &e.stats.Checkpoint)
		n++
	}
	e.marked = slices.Delete(e.marked, 0, n)
	return e.end(), nil
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

// Loaded says that the secondary's guest runs epoch. An epoch that is not
// marked is [ErrEpoch].
func (e *Engine) Loaded(epoch uint64) error {
	if e.passing || epoch >= e.next {
		return fmt.Errorf("%w: loaded %d", ErrEpoch, epoch)
	}
	if !e.cfg.Marks && epoch+1 == e.next {
		e.hear()
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
	for e.newest != nil {
		e.forget(e.newest)
	}
	return res
}

// Tick looks for packets that have waited too long, if it is time to. It is
// called at Deadline, or at any time.
func (e *Engine) Tick(now time.Time) Result {
	if e.strict != nil {
		return e.strict.tick(now)
	}
	e.begin()
	if now.Before(e.scan) {
		return e.end()
	}
	e.scan = now.Add(e.cfg.Scan)
	late := func(q *queue, t *stream) bool {
		for _, p := range q.all() {
			if now.Sub(p.at) > e.cfg.Timeout && !(t != nil && t.repeats(p)) {
				return true
			}
		}
		return false
	}
	expired := false
	var older *conn
	for c := e.newest; c != nil; c = older {
		older = c.older
		if c.idle() && now.Sub(c.used) > e.cfg.Idle {
			e.forget(c)
			continue
		}
		if e.cfg.AckTimeout < e.cfg.Timeout && c.p.len() > 0 && c.p.at(0).waitsAck && now.Sub(c.p.at(0).at) > e.cfg.AckTimeout {
			e.diverge(c, ReasonAck)
		}
		expired = expired || late(&c.p, nil) || late(&c.s, &c.tcp) || c.tcp.late(now, e.cfg.Timeout)
	}
	if expired || late(&e.sidelined, nil) {
		e.want(ReasonTimeout)
	}
	return e.end()
}

// Deadline returns when Tick has something to do; zero if it has nothing.
func (e *Engine) Deadline() time.Time {
	if e.strict != nil {
		return e.strict.scan
	}
	if len(e.conns) == 0 && e.sidelined.len() == 0 {
		return time.Time{}
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
	s.Held = len(e.marked) + e.sidelined.len()
	for c := e.newest; c != nil; c = c.older {
		s.Held += c.p.len() + c.s.len()
	}
	for _, p := range e.zombies {
		s.HeldBytes -= 1 << (poolMin + p.class)
	}
	return s
}
