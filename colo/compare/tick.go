package compare

import "time"

// Tick looks for packets that have waited too long, if the time for that has come. It is
// called at Deadline, or at any time.
func (e *Engine) Tick(now time.Time) Result {
	if e.strict != nil {
		e.strict.taken = e.strict.taken[:0]
		return e.strict.tick(now)
	}
	e.begin()
	e.now = e.instant(now)
	if !e.soon.IsZero() && !e.now.Before(e.soon) {
		e.tickSoon()
	}
	if !e.now.Before(e.scan) {
		e.scan = e.now.Add(e.cfg.Scan)
		e.tickAll()
	}
	return e.end()
}

// tickAll looks at all connections.
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
		if e.idle(c) && e.now.Sub(c.used) > e.cfg.Idle {
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
			flow := flowOf(&c.key.Key)
			if expired = true; !e.res.Diverged {
				e.res.Flow = flow
			}
			if !c.diverged { // a guest that sends nothing does not agree either
				c.diverged = true
				e.note(Note{Kind: NoteDiverged, Flow: flow, Reason: ReasonTimeout})
				e.strike(c, ReasonTimeout)
			}
		}
	}
	if expired || late(&e.ownerless, nil) {
		e.want(ReasonTimeout)
	}
}

// waitsAck reports whether the first packet of c has waited for longer than patience, and
// for an acknowledgment only.
func (c *conn) waitsAck(now instant, patience time.Duration) bool {
	if c.lacks() {
		return now.Sub(c.owed.at) > patience
	}
	return c.p.len() > 0 && c.p.at(0).waitsAck && now.Sub(c.p.at(0).at) > patience
}

// tickSoon looks at the connections that cannot wait for the next scan.
func (e *Engine) tickSoon() {
	e.soon = 0
	for i := 0; i < len(e.crossing); {
		c := e.crossing[i]
		if until := c.crossed.Add(e.cfg.Cross); e.now.Before(until) {
			e.sooner(until)
			i++
			continue
		}
		since := c.crossed
		e.uncross(c) // another connection takes its place in the list
		switch {
		case c.loner == neither:
			e.diverge(c, ReasonPacket)
		case e.parted(c, since):
			e.diverge(c, ReasonPorts)
		}
	}
	e.tickPartials()
	e.tickFlights()
	switch {
	case e.pace.IsZero():
	case e.now.Before(e.pace):
		e.sooner(e.pace)
	default:
		e.pace = 0
		if !e.asked {
			e.asked = true
			e.want(ReasonPace)
		}
	}
}

// sooner makes the next tickSoon come at t, if it would come later.
func (e *Engine) sooner(t instant) {
	if e.soon.IsZero() || t.Before(e.soon) {
		e.soon = t
	}
}

// Deadline returns when Tick has something to do; zero if it has nothing.
func (e *Engine) Deadline() time.Time {
	switch {
	case e.strict != nil:
		return e.strict.scan
	case e.conns.n == 0 && e.ownerless.len() == 0, e.passing:
		return time.Time{}
	case !e.soon.IsZero() && e.soon.Before(e.scan):
		return e.time(e.soon)
	}
	return e.time(e.scan)
}
