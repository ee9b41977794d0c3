package compare

import "time"

// Some flows never agree: what they say is random (TLS, SSH, QUIC). Comparing them
// makes a checkpoint for each packet. After a few epochs with a divergence a flow
// is set apart: its data leaves with checkpoints only, which are asked for at the
// host's pace, and what the secondary's guest says of it is not looked at.
// Acknowledgments and what repeats leave as ever. Now and then it is tried again.

// settled is how many packets have to match in an epoch to make up for one that
// differed.
const settled = 16

// A NoteKind says what a [Note] is about.
type NoteKind uint8

// The kinds.
const (
	NoteDiverged NoteKind = iota // the guests' packets differ
	NoteApart                    // the flow is not compared any more
	NoteTogether                 // the flow is compared again, to see
)

var noteNames = [...]string{"diverged", "apart", "together"}

// String returns the kind as a word.
func (k NoteKind) String() string {
	if int(k) < len(noteNames) {
		return noteNames[k]
	}
	return "unknown"
}

// A Note tells of a flow. At most one of each kind is made for a flow in an epoch.
type Note struct {
	Kind   NoteKind
	Flow   Flow
	Reason Reason        // why, of NoteDiverged and NoteApart
	Retry  time.Duration // of NoteApart: when it is tried again
}

// maxNotes bounds the notes of one call.
const maxNotes = 64

func (e *Engine) note(n Note) {
	if len(e.notes) < maxNotes {
		e.notes = append(e.notes, n)
	}
}

// A service is what flows have in common that differ in the other side's address
// and port: the guest's service, or the one that it asks. It remembers for new flows
// what the old ones came to.
type service struct {
	strikes uint8
	used    instant
}

// serviceKey names one by the lower of the two ports.
type serviceKey struct {
	proto uint8
	port  uint16
	ours  bool // it is the guest's
}

// maxServices bounds the memory for them. If there are more, the oldest are
// forgotten.
const maxServices = 256

func serviceOf(c *conn) serviceKey {
	src, dst := uint16(c.key.Ports>>16), uint16(c.key.Ports)
	return serviceKey{c.key.Proto, min(src, dst), src <= dst}
}

// strike is called once for a flow in an epoch in which it has diverged.
func (e *Engine) strike(c *conn, why Reason) {
	if !e.cfg.Adaptive || c.apart || c.key.kind == kindClaim {
		return
	}
	c.strikes++
	v := e.service(serviceOf(c))
	v.strikes = min(v.strikes+1, 4*e.cfg.Strikes)
	v.used = e.now
	if c.strikes >= e.cfg.Strikes || v.strikes >= 2*e.cfg.Strikes {
		e.setApart(c, why)
	}
}

func (e *Engine) setApart(c *conn, why Reason) {
	c.strikes = max(c.strikes, e.cfg.Strikes)
	retry := e.cfg.Retry << min(c.strikes-e.cfg.Strikes, 5)
	c.apart, c.until = true, e.now.Add(retry)
	e.aparts++
	e.stats.SetApart++
	e.note(Note{Kind: NoteApart, Flow: flowOf(&c.key.Key), Reason: why, Retry: retry})
	if c.key.kind == kindSegment || c.key.kind == kindDatagram {
		e.drop(&c.s)
	}
}

func (e *Engine) service(k serviceKey) *service {
	v := e.services[k]
	if v == nil {
		if len(e.services) >= maxServices {
			var oldest serviceKey
			at := e.now
			for k, v := range e.services {
				if !v.used.After(at) {
					oldest, at = k, v.used
				}
			}
			delete(e.services, oldest)
		}
		v = &service{used: e.now}
		e.services[k] = v
	}
	return v
}

// newcomer is called when a flow has its first data to be compared. A service whose
// flows have never agreed is not tried with each new one.
func (e *Engine) newcomer(c *conn) {
	if !e.cfg.Adaptive || len(e.services) == 0 {
		return
	}
	if v := e.services[serviceOf(c)]; v != nil && v.strikes >= 2*e.cfg.Strikes && e.now.Sub(v.used) < e.cfg.Retry {
		e.setApart(c, ReasonNone)
	}
}

// agreed is called for each packet that has matched.
func (c *conn) agreed() {
	if c.matched < settled {
		c.matched++
	}
}

// review is called for each flow at a mark: an epoch has ended.
func (e *Engine) review(c *conn) {
	if !e.cfg.Adaptive {
		return
	}
	switch {
	case c.apart:
		if !e.now.Before(c.until) {
			c.apart = false
			e.aparts--
			e.note(Note{Kind: NoteTogether, Flow: flowOf(&c.key.Key)})
		}
	case !c.diverged && c.matched >= settled:
		if c.strikes > 0 {
			c.strikes--
		}
		if v := e.services[serviceOf(c)]; v != nil && v.strikes > 0 {
			v.strikes--
		}
	}
	c.matched = 0
}

// maxPace bounds the pace that a host leaves to the engine.
const maxPace = 5 * time.Millisecond

// paceOf returns the time from one mark to the next for what is set apart.
func (e *Engine) paceOf() time.Duration {
	switch {
	case e.cfg.Pace > 0:
		return e.cfg.Pace
	case e.took > 0:
		return min(e.took, maxPace)
	}
	return maxPace
}

// paces is called when a packet of a flow that is set apart waits for its
// checkpoint: one is asked for, at once if the last is long enough ago.
func (e *Engine) paces(c *conn) {
	if !c.apart || !e.pace.IsZero() || e.asked {
		return
	}
	if due := e.lastMark.Add(e.paceOf()); e.now.Before(due) {
		e.pace = due
		e.sooner(due)
		return
	}
	e.asked = true
	e.want(ReasonPace)
}
