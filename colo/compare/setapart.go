package compare

import "time"

// Some flows never agree, because what they carry is random (TLS, SSH, QUIC). Comparing
// them would ask for a checkpoint at each packet. After a few epochs with a divergence
// such a flow is set apart: its data leaves with checkpoints only, which are asked for at
// the host's pace, and the packets of the secondary's guest are not looked at.
// Acknowledgments and repeated data leave as they do otherwise. From time to time the
// engine tries to compare the flow again.

// settled is the number of packets that must match in an epoch to cancel one earlier epoch
// with a divergence.
const settled = 16

// A NoteKind says what a [Note] is about.
type NoteKind uint8

// The kinds of notes.
const (
	NoteDiverged NoteKind = iota // the guests' packets differ
	NoteApart                    // the flow is not compared any more
	NoteTogether                 // the flow is compared again, as a trial
)

var noteNames = [...]string{"diverged", "apart", "together"}

// String returns "diverged", "apart" or "together".
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
	Reason Reason        // why the guests differ, with NoteDiverged and NoteApart
	Retry  time.Duration // how long until the flow is tried again, with NoteApart
}

// maxNotes bounds the number of notes that one call returns.
const maxNotes = 64

func (e *Engine) note(n Note) {
	if len(e.notes) < maxNotes {
		e.notes = append(e.notes, n)
	}
}

// A service stands for all flows that differ only in the address and port of the other
// side: one service that the guest offers, or one that it uses. It remembers whether its
// flows agreed, so that a new flow begins with what is known of the earlier ones.
type service struct {
	strikes uint8
	used    instant
}

// serviceKey names a service by the lower of the two ports.
type serviceKey struct {
	proto uint8
	port  uint16
	ours  bool // the port belongs to the guest
}

// maxServices bounds the number of services that are remembered. Beyond it the oldest are
// forgotten.
const maxServices = 256

func serviceOf(c *conn) serviceKey {
	src, dst := uint16(c.key.Ports>>16), uint16(c.key.Ports)
	return serviceKey{c.key.Proto, min(src, dst), src <= dst}
}

// strike counts an epoch in which c has diverged. It is called once in such an epoch.
func (e *Engine) strike(c *conn, why Reason) {
	if !e.cfg.Adaptive || c.apart || c.key.kind == kindClaim {
		return
	}
	c.strikes = max(c.strikes, c.strikes+1) // it stays at its greatest value
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

// newcomer is called when a flow has its first data to compare. It sets the flow apart at
// once if no earlier flow of its service has ever agreed.
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

// review updates what is known of c's agreement. It is called for each flow at a mark,
// which ends an epoch.
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

// maxPace bounds how long a flow that is set apart waits so that others gain by
// it.
const maxPace = 5 * time.Millisecond

// paces is called when a packet of a flow that is set apart waits for its checkpoint. It
// asks for one, at once or when it is time.
func (e *Engine) paces(c *conn) {
	if !c.apart || e.asked {
		return
	}
	e.gathered++
	due := e.paced()
	switch {
	case e.deaf && e.cfg.Pace <= 0: // it is asked for when the secondary's guest is heard
		due = e.now.Add(unheard)
	case !e.now.Before(due):
		e.asked, e.pace = true, 0
		e.want(ReasonPace)
		return
	}
	if e.pace.IsZero() || due.Before(e.pace) {
		e.pace = due
		e.sooner(due)
	}
}

// unheard is how long flows that are set apart wait for the secondary's guest to run from
// the last checkpoint before they ask for the next one all the same.
const unheard = 100 * time.Millisecond

// paced returns when flows that are set apart may ask for a checkpoint, if the host has set
// no pace: when the secondary's guest runs from the last one, and a little later if others
// gain by it. If they asked for one right after the other, flows that agree would never have
// the time to, and each checkpoint would cover the first of the packets that come
// together. So they wait: where flows are compared, for as long as the secondary's packets
// usually take; and where fewer packets wait than the checkpoints before have covered, whose
// clients ask for more, for a fraction of what a checkpoint takes, at least as long.
func (e *Engine) paced() instant {
	if e.cfg.Pace > 0 {
		return e.lastMark.Add(e.cfg.Pace)
	}
	few := e.gathered < e.covered
	if !few && e.compared.Before(e.lastMark) {
		return e.heard
	}
	wait := e.late + e.varies + e.late/16
	if few {
		wait = max(wait, e.took/8)
	}
	return e.heard.Add(min(wait, maxPace))
}

// waited calls trails for a packet whose twin has not come before a mark: the twin takes
// at least so long. Without these packets the engine would learn nothing of twins that
// come too late each time.
func (e *Engine) waited(at instant) {
	if e.now.Sub(max(at, e.heard)) > e.late {
		e.trails(at)
	}
}

// trails notes that a packet has waited since the instant at, until now, for its twin, or
// for the packet that came in the twin's place.
func (e *Engine) trails(at instant) {
	e.trail(min(e.now.Sub(max(at, e.heard)), maxPace))
}

func (e *Engine) trail(d time.Duration) {
	off := d - e.late
	e.late += off / 8
	e.varies += (max(off, -off) - e.varies) / 8
}
