package protect

import (
	"cmp"
	"fmt"
)

// kindOfArbiter names what decides who goes on, in the words that the other host is told.
func (c *Config) kindOfArbiter() string {
	if c.Arbiter == nil {
		return cmp.Or(c.ArbiterKind, "an operator")
	}
	return cmp.Or(c.ArbiterKind, "an arbiter")
}

// deciding warns, once a session, that the other host has another arbiter than this one. The
// warning comes while nothing is lost, and the pair is protected all the same: an operator may be
// giving the two hosts an arbiter one after the other. A host that names no kind is of an earlier
// version. Two arbiters of one kind may still be different ones; see asksTheSame.
func (j *Job) deciding(p *peer) {
	here := j.cfg.kindOfArbiter()
	if p.arbiter == "" || p.arbiter == here {
		return
	}
	err := fmt.Errorf("protect: who goes on is decided by %s on this host, and by %s on host %s: both may go on when they are parted", here, p.arbiter, p.host)
	j.note(err)
	j.pairLog().Warn("the two hosts have different arbiters", "error", err, "peer", p.host)
}
