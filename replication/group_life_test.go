package replication

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/gocolo/lockstep/internal/require"
)

// lifeDisks is how many disks the guest of a groupLife has, and lifeSize their size.
const (
	lifeDisks = 2
	lifeSize  = 36 * BlockSize // more than two chunks
)

// groupLife is a guest of several disks with its two hosts, each of which loses its power at any moment.
type groupLife struct {
	t            *testing.T
	seed         uint64
	rng          *rand.Rand
	lead, follow *lifeHost
	primaries    [lifeDisks]*Primary
	members      Group
	linked       bool
	// missed are starts that were not made of all disks: the disks that follow may be at one of them, as soon as one of them is.
	missed       []images
	full         bool            // some writes of a host find no room
	rotten       bool            // the guest's disks have content that nobody has written, and that the other copies may lack
	cold         bool            // the guest was started from the copies that had followed, and the others may have what those lack
	parted       [lifeDisks]bool // which of the others say so: the guest had gone on with them alone
	overwrite    bool            // somebody has said that it is overwritten all the same
	epoch        uint64
	stands, next images // the follower's last checkpoint, and the one that may be there instead
	trace        []string
	counts       map[string]int
}

func (g *groupLife) logf(format string, args ...any) {
	g.trace = append(g.trace, fmt.Sprintf(format, args...))
}

func (g *groupLife) failf(format string, args ...any) {
	g.t.Helper()
	for _, line := range g.trace[max(0, len(g.trace)-40):] {
		g.t.Log(line)
	}
	g.t.Fatalf("seed %d: %s", g.seed, fmt.Sprintf(format, args...))
}

func (g *groupLife) secondary(i int) *Secondary { return g.members[i].(*Secondary) }

// bootLead starts the process of the guest's host.
func (g *groupLife) bootLead() {
	for i := range g.primaries {
		p, err := NewPrimary(reopened(g.t, g.lead.disks[i][0], g.lead.disks[i][1]), PrimaryConfig{Overwrite: g.overwrite, PermitOutdated: g.overwrite})
		if err != nil {
			g.failf("the guest's host: disk %d: %v", i, err)
		}
		g.primaries[i] = p
	}
	g.linked = false
}

// bootFollow starts the process of the other host, as often as its power fails meanwhile.
func (g *groupLife) bootFollow() {
	for {
		if g.rng.IntN(3) == 0 {
			g.follow.on(g.rng.IntN(30))
		}
		err := g.tryFollow()
		if err == nil && !g.follow.out() {
			g.follow.on(-1)
			return
		}
		if err != nil && !errors.Is(err, errPower) {
			g.failf("the host that follows: %v", err)
		}
		g.follow.cut(g.rng)
	}
}

func (g *groupLife) tryFollow() error {
	var list []Recovery
	for _, d := range g.follow.disks {
		j, err := OpenJournal(d[2], d[3])
		if err != nil {
			return err
		}
		m, err := OpenMetadata(d[1])
		if err != nil {
			return err
		}
		list = append(list, Recovery{Journal: j, Disk: &keptDisk{d[0], m}})
	}
	if _, _, err := RecoverGroup(context.Background(), list); err != nil {
		return err
	}
	g.members = nil
	for _, r := range list {
		s, err := NewSecondary(r.Disk, SecondaryConfig{Journal: r.Journal, Blank: true})
		if err != nil {
			return err
		}
		g.members = append(g.members, s)
	}
	g.linked = false
	return nil
}

// recovered checks what a host that follows has become after its power failed.
func (g *groupLife) recovered() {
	if g.stands[0] == nil && g.next[0] == nil {
		return
	}
	switch now := g.follow.contents(); {
	case g.stands[0] == nil && g.inconsistent(): // the first start was made of some disks, and not of all
		g.next = images{}
		return
	case slices.ContainsFunc(g.missed, now.equal):
		g.stands, g.missed = now, nil
		g.counts["missed starts"]++
	case now.equal(g.next):
		g.stands = g.next
		g.counts["forward"]++
	case now.equal(g.stands):
		g.counts["back"]++
	case g.stands[0] == nil: // it never had a checkpoint
		return
	default:
		g.failf("the disks that follow are those of no checkpoint")
	}
	g.next = images{}
	g.compareIdentities()
}

// inconsistent reports whether one of the disks says of itself that it is that of no checkpoint.
func (g *groupLife) inconsistent() bool {
	for i := range g.members {
		if g.secondary(i).meta.Identity().State == CopyInconsistent {
			return true
		}
	}
	return false
}

func (g *groupLife) compareIdentities() {
	for i, p := range g.primaries {
		ours, theirs := p.Identity(), g.secondary(i).lastIdentity()
		if theirs.State != CopyClean {
			g.failf("disk %d, at a checkpoint, is %v", i, theirs)
		}
		if n, err := Newest(ours, theirs); n > 0 || err != nil {
			g.failf("disk %d: the newest is %d, %v; ours is %v, theirs %v", i, n, err, ours, theirs)
		}
	}
}

// lost has the hosts that are without power started again, and reports whether there was one.
func (g *groupLife) lost(why string, err error) bool {
	if err != nil && !errors.Is(err, errPower) && !errors.Is(err, ErrNotRunning) && !errors.Is(err, ErrGated) && !noRoom(err) {
		g.failf("%s: %v", why, err)
	}
	l, f := g.lead.out(), g.follow.out()
	if !l && !f {
		if noRoom(err) || g.full {
			g.noRoom(why, err)
			return err != nil
		}
		if err != nil {
			g.failf("%s: %v, and no power has failed", why, err)
		}
		return false
	}
	if !l {
		g.disconnect()
	}
	g.linked = false
	if l {
		g.logf("%s: the guest's host is lost", why)
		g.lead.cut(g.rng)
		g.bootLead()
	}
	if f {
		g.logf("%s: the host that follows is lost", why)
		g.follow.cut(g.rng)
		g.bootFollow()
		g.recovered()
	}
	return true
}

// disconnect has the guest go on without the other host.
func (g *groupLife) disconnect() {
	for _, p := range g.primaries {
		p.Stop(context.Background(), true)
		p.Detach()
	}
	g.linked = false
}

// noRoom ends the run of a host whose journals have no room. Its process may be another one when there is some again.
func (g *groupLife) noRoom(why string, err error) {
	if err == nil {
		return
	}
	g.logf("%s: %v", why, err)
	g.counts["no room"]++
	for _, p := range g.primaries {
		if err := p.LocalErr(); err != nil {
			g.failf("%s: for want of room the guest's disk cannot be used: %v", why, err)
		}
	}
	for i := range g.members {
		if err := g.secondary(i).LocalErr(); err != nil {
			g.failf("%s: for want of room the disk that follows cannot be used: %v", why, err)
		}
	}
	if why == "write" && g.inStep() { // the guest is told, and goes on
		g.counts["in step without room"]++
		return
	}
	g.disconnect()
	if g.rng.IntN(4) == 0 {
		g.logf("another process of the guest's host")
		g.lead.cut(g.rng)
		g.lead.full(fromImages, 0, 0)
		g.bootLead()
	}
	if g.rng.IntN(2) == 0 {
		g.logf("another process")
		g.follow.cut(g.rng)
		g.follow.full(fromImages, 0, 0)
		g.full = false
		g.bootFollow()
		g.recovered()
	}
}

// inStep reports whether replication goes on.
func (g *groupLife) inStep() bool {
	for i, p := range g.primaries {
		if p.State() != Running || p.Err() != nil || g.members[i].Err() != nil {
			return false
		}
	}
	return g.linked
}

// connect joins the two and makes the first checkpoint. The primary may come back to a run.
func (g *groupLife) connect() {
	ctx := context.Background()
	running := 0
	for i := range g.members {
		if g.secondary(i).State() == Running {
			running++
		}
	}
	if running > 0 && (running < lifeDisks || g.members.Err() != nil || g.rng.IntN(3) == 0) { // after an error as sessions do
		g.logf("stop")
		if err := g.members.Stop(ctx, false); g.lost("stop", err) {
			return
		}
		if now := g.follow.contents(); slices.ContainsFunc(g.missed, now.equal) {
			g.stands, g.next, g.missed = now, images{}, nil
		} else if now.equal(g.next) { // one disk had made that checkpoint, and so the others do
			g.stands, g.next = g.next, images{}
		} else if !now.equal(g.stands) {
			g.failf("stopped, the disks that follow are those of no checkpoint")
		}
		running = 0
	}
	g.logf("connect, running %d", running)
	g.epoch = 0
	for i, p := range g.primaries {
		err := joinOver(p, g.secondary(i))
		if g.cold && (errors.Is(err, ErrDiverged) || errors.Is(err, ErrOutdated)) {
			g.logf("refused: %v", err)
			g.counts["refused"]++
			g.disconnect()
			g.overwrite = true
			g.lead.cut(g.rng)
			g.bootLead()
			return
		}
		if err == nil && g.parted[i] && !g.overwrite {
			g.failf("disk %d, with which the guest had gone on, is overwritten, and nobody has said that it may be", i)
		}
		if err == nil {
			err = p.Synchronise(ctx, SyncConfig{})
		}
		if g.lost("synchronise", err) {
			return
		}
	}
	if g.rotten && !g.repair(RepairSecondary, 0) {
		return
	}
	if running > 0 {
		g.epoch = max(g.secondary(0).Epoch(), g.secondary(1).Epoch()) + 1
	}
	g.linked = g.checkpoint(g.epoch, func() error {
		if running > 0 {
			return g.members.Checkpoint(ctx, g.epoch)
		}
		return g.members.Start(ctx)
	}, true)
}

// checkpoint makes one by do, and reports whether it was made.
func (g *groupLife) checkpoint(epoch uint64, do func() error, first bool) bool {
	ctx := context.Background()
	g.logf("checkpoint %d", epoch)
	for _, p := range g.primaries {
		if g.lost("mark", p.Mark(ctx, epoch)) {
			return false
		}
	}
	g.next = g.lead.contents()
	if now := g.follow.contents(); !now.equal(g.next) {
		g.failf("the copies differ at the mark of %d", epoch)
	}
	err := do()
	if err != nil && first && epoch == 0 {
		g.missed = append(g.missed, g.next)
	}
	if g.lost("checkpoint", err) {
		return false
	}
	g.missed, g.cold, g.overwrite, g.parted = nil, false, false, [lifeDisks]bool{}
	g.stands, g.next = g.next, images{}
	for _, p := range g.primaries {
		err := p.Loaded(ctx, epoch)
		if err == nil && first {
			err = p.Start(ctx)
		}
		if g.lost("loaded", err) {
			return false
		}
	}
	g.compareIdentities()
	g.counts["checkpoints"]++
	return true
}

func (g *groupLife) step() {
	ctx := context.Background()
	switch n := g.rng.IntN(20); {
	case n < 10: // the guest writes
		i, k := g.rng.IntN(lifeDisks), 1+g.rng.Int64N(3)
		off := g.rng.Int64N(lifeSize/SectorSize-k*8) * SectorSize
		_, err := g.primaries[i].WriteAt(bytes.Repeat([]byte{byte(g.rng.Uint32())}, int(k)*BlockSize), off)
		g.lost("write", err)
	case n < 12:
		g.lost("flush", g.primaries[g.rng.IntN(lifeDisks)].Sync())
	case n < 14:
		h := []*lifeHost{g.lead, g.follow}[n-12]
		if !h.out() {
			h.on(g.rng.IntN(60))
		}
	case n < 15 && g.rng.IntN(3) == 0:
		g.full = true
		h := []*lifeHost{g.lead, g.follow, g.follow}[g.rng.IntN(3)]
		h.full(g.rng.IntN(fromJournals+1), g.rng.IntN(20), 1+g.rng.IntN(6))
	case n < 15 && g.linked: // the connection is lost
		g.logf("the link is lost")
		for _, p := range g.primaries {
			if g.lost("stop of the primary", p.Stop(ctx, true)) {
				return
			}
		}
		g.linked = false
	case n < 16 && g.linked && g.rng.IntN(3) == 0:
		g.failOver()
	case n < 17 && !g.linked && g.rng.IntN(8) == 0:
		g.startOther()
	case n < 17 && g.linked && g.rng.IntN(3) == 0:
		g.rot()
	case !g.linked:
		g.connect()
	default:
		g.epoch++
		g.linked = g.checkpoint(g.epoch, func() error { return g.members.Checkpoint(ctx, g.epoch) }, false)
	}
}

// failOver has the guest go on, on the host that follows, whose power may fail meanwhile.
func (g *groupLife) failOver() {
	g.logf("failover")
	g.follow.full(fromImages, 0, 0)
	g.lead.full(fromImages, 0, 0)
	g.full = false
	g.lead.cut(g.rng)
	own := g.rng.IntN(2) == 0
	var seen images
	for i := range g.members {
		s := g.secondary(i)
		if own {
			if _, err := s.WriteAt(bytes.Repeat([]byte{byte(g.rng.Uint32())}, BlockSize), g.rng.Int64N(lifeSize-BlockSize)/SectorSize*SectorSize); err != nil {
				g.bootLead()
				g.lost("the twin", err)
				return
			}
		}
		seen[i] = make([]byte, lifeSize)
		if err := readFull(s, seen[i], 0); err != nil {
			g.bootLead()
			g.lost("the twin", err)
			return
		}
	}
	err := g.members.Stop(context.Background(), true)
	if err != nil && !errors.Is(err, errPower) {
		g.failf("failover: %v", err)
	}
	if err != nil || g.rng.IntN(3) == 0 {
		g.follow.cut(g.rng)
		g.bootFollow()
	}
	now := g.follow.contents()
	if !now.equal(seen) && (err == nil || !now.equal(g.stands)) {
		g.failf("after the failover (%v) the disks are neither what the guest saw nor the last checkpoint", err)
	}
	if err != nil { // the other host's guest goes on instead, unless this one has
		a := g.secondary(0).meta.Identity()
		if !a.Writes {
			g.bootLead()
			g.next = images{}
			g.compareIdentities()
			return
		}
	}
	g.counts["failovers"]++
	g.lead, g.follow = g.follow, g.lead
	g.lead.on(-1)
	g.stands, g.next = images{}, images{}
	g.bootLead()
	g.bootFollow()
}

// Two hosts with the disks of one guest, which lose their power, their connection or their guest at any moment: what follows is
// always at one checkpoint, of which it says the truth, and what a host that comes back is sent makes it equal.
func TestDisksOfTwoHostsThatLoseTheirPower(t *testing.T) {
	counts := map[string]int{}
	seeds := require.Many[uint64](20, 120, 3000)
	if raceEnabled {
		seeds /= 6
	}
	for seed := range seeds {
		g := &groupLife{t: t, seed: seed, rng: rand.New(rand.NewPCG(seed, 21)), lead: newLifeHost(0x11), follow: newLifeHost(0), counts: counts}
		g.lead.on(-1)
		g.follow.on(-1)
		g.bootLead()
		g.bootFollow()
		for range 80 {
			g.step()
		}
	}
	t.Log(counts)
}
