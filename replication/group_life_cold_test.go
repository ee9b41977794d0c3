package replication

// startOther cuts the power of both hosts, and starts the guest first from the copy that followed, at its last checkpoint. The
// other copy, which may be newer, then follows: nothing of it is taken for what the guest has now.
func (g *groupLife) startOther() {
	g.follow.full(fromImages, 0, 0)
	g.lead.full(fromImages, 0, 0)
	g.full = false
	g.lead.cut(g.rng)
	g.follow.cut(g.rng)
	g.bootFollow()
	g.bootLead()
	g.recovered()
	if g.stands[0] == nil || g.inconsistent() {
		return
	}
	for i, p := range g.primaries {
		ours := g.secondary(i).Identity()
		g.parted[i] = !ours.descends(p.Identity())
	}
	g.logf("the other copy is started")
	g.counts["cold starts"]++
	g.lead, g.follow = g.follow, g.lead
	if !g.lead.contents().equal(g.stands) {
		g.failf("the guest is started from another disk than that of the last checkpoint")
	}
	g.stands, g.next, g.missed = images{}, images{}, nil
	g.cold = true
	g.bootLead()
	g.bootFollow()
}
