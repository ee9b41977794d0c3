package protect

import (
	"cmp"
	"fmt"
)

// kindOfArbiter returns what decides who goes on, as the other host is told.
func (c *Config) kindOfArbiter() string {
	if c.Arbiter == nil {
		return cmp.Or(c.ArbiterKind, "an operator")
	}
	return cmp.Or(c.ArbiterKind, "an arbiter")
}

// deciding warns, once a session, that the other host has another arbiter than this one. It is
// said in advance, while nothing is lost, and the pair is protected all the same: so is one whose
// hosts are given an arbiter one after the other. A host that says nothing is of an earlier
// version; two arbiters of one kind may still be two, for which see asksTheSame.
func (j *Job) deciding(p *peer) {
	here := j.cfg.kindOfArbiter()
	if p.arbiter == "" || p.arbiter == here {
		return
	}
	err := fmt.Errorf("protect: who goes on is decided by %s on this host, and by %s on host %s: both may go on when they are parted", here, p.arbiter, p.host)
	j.note(err)
	j.pairLog().Warn("the two hosts have different arbiters", "error", err, "peer", p.host)
}
