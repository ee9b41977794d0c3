package replication

import (
	"bytes"
	"context"
	"errors"
)

// rot changes the guest's disks behind everybody's back, and has them repaired, or the other copies made like them. A
// host may lose its power meanwhile, or the connection may be lost.
func (g *groupLife) rot() {
	if g.lead.out() || g.follow.out() {
		return
	}
	for range 1 + g.rng.IntN(4) {
		f := g.lead.disks[g.rng.IntN(lifeDisks)][0]
		fails := f.failWrite
		f.power, f.failWrite = nil, nil
		n := SectorSize * (1 + g.rng.Int64N(BlockSize))
		off := g.rng.Int64N(lifeSize-min(n, lifeSize/2)) / SectorSize * SectorSize
		_, err := f.WriteAt(bytes.Repeat([]byte{byte(g.rng.Uint32())}, int(min(n, lifeSize-off))), off)
		if err = errors.Join(err, f.Sync()); err != nil {
			g.failf("rot: %v", err)
		}
		f.power, f.failWrite = g.lead.power, fails
	}
	g.rotten = true
	cut := 0
	switch n := g.rng.IntN(4); n {
	case 0, 1:
		[]*lifeHost{g.lead, g.follow}[n].on(g.rng.IntN(40))
	case 2:
		cut = 1 + g.rng.IntN(2*lifeDisks)
	}
	g.repair([]Repair{RepairSecondary, RepairPrimary}[g.rng.IntN(2)], cut)
}

// repair repairs all disks in that direction, while the guest writes, and reports whether it did. The connection is lost when the other
// side is read for the cut-th time; 0: it is not.
func (g *groupLife) repair(direction Repair, cut int) bool {
	g.logf("repair %d, cut %d", direction, cut)
	reads := 0
	for i, p := range g.primaries {
		s := g.secondary(i)
		read := func() {
			if reads++; reads == cut {
				p.Cut()
			}
			if reads%2 == 1 && g.rng.IntN(2) == 0 { // never so often that it has to wait
				p.WriteAt(bytes.Repeat([]byte{byte(g.rng.Uint32())}, BlockSize), g.rng.Int64N(lifeSize-BlockSize)/SectorSize*SectorSize)
			}
		}
		_, err := p.VerifyOnline(context.Background(), VerifyConfig{Secondary: readHook{s.Export(), read}, Repair: direction})
		if cut > 0 && reads >= cut { // also if it was read for the last time
			g.counts["cut repairs"]++
			if !g.lost("cut", nil) {
				g.disconnect()
			}
			return false
		}
		if g.lost("repair", err) {
			g.counts["lost repairs"]++
			return false
		}
	}
	g.rotten = false
	g.counts["repairs"]++
	return true
}
