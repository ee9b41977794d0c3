package protect

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/failover"
	"github.com/gocolo/lockstep/internal/plain"
)

// A pending pair has a control connection, and not yet the others. It is guarded
// by the job's mu.
type pending struct {
	peer    *peer
	expires time.Time
	answers int // how many of its connections have been answered
}

// follow waits for a primary and follows it, until the session ends.
func (j *Job) follow(ctx context.Context) error {
	j.vm.face(false)
	if j.restart == 0 {
		j.fenceDisks() // for good: the guest never runs over them as they are now
	}
	broken := j.diskFailed() // each session over such a disk would end at its first checkpoint
	if broken != nil {
		j.turnsAway(broken)
		j.note(fmt.Errorf("protect: this host follows nobody: %w", broken))
	}
	if j.vm.isRunning() { // deposed
		if err := j.vm.Pause(ctx); err != nil {
			return fmt.Errorf("protect: pause the guest: %w", err)
		}
	}
	if err := j.rehearse(ctx); err != nil {
		return j.unready(ctx, err)
	}
	if there, err := j.hasMemory(ctx, Waiting); !there {
		return err
	}
	if broken == nil {
		j.turnsAway(nil)
	}
	p, err := j.awaitOrRestart(ctx)
	switch {
	case err != nil && j.State() == Waiting && ctx.Err() == nil:
		return err
	case err != nil || p == nil:
		return nil // the job has moved on, or the guest runs here
	}
	defer p.close()
	if !j.resumeCopy(p) {
		return nil
	}
	s, err := j.newSecondary(ctx, p)
	if err != nil {
		p.sayCannotFollow(j.followsNobody(err))
		p.close()
		return j.unready(ctx, err)
	}
	j.hindered = ""
	if err := j.tellWritten(ctx, s); err != nil {
		j.note(err)
		s.wire.Close()
		j.keepCopy(s, err)
		return nil
	}
	j.learn(p.generation)
	j.take(s)
	defer j.take(nil)
	if j.do(joined, "follows "+p.host) != nil {
		s.wire.Close()
		j.keepCopy(s, errMoved)
		return nil
	}
	j.deciding(p)
	err = j.attend(ctx, s)
	j.vm.keep(nil)
	j.keepCopy(s, err)
	return j.followed(ctx, s, err)
}

// followed is called at the end of a session that this host followed, and
// decides what comes next.
func (j *Job) followed(ctx context.Context, s *session, err error) error {
	switch {
	case tookOverHere(err):
		j.noteLoss(s.lossWith(err))
		j.mu.Lock()
		j.took = s.peer.token
		why := "switched over from " + s.peer.host
		if !s.wasHanded() {
			why = "took over from " + s.peer.host
			j.stats.Takeovers++
		}
		j.mu.Unlock()
		if err := j.do(tookOver, why); err != nil || !s.migration() {
			return err
		}
		j.do(doPause, "migrated from "+s.peer.host) // or it was deposed or stopped at once
		return nil
	case errors.Is(err, failover.ErrTorn):
		j.do(torn, err.Error())
		return err
	case ctx.Err() != nil:
		return context.Cause(ctx)
	}
	j.keeper.Drop() // a grant that came and could not be used
	why := s.refusedWith(err)
	end := s.peer.orderlyEnd()
	if errors.Is(err, colo.ErrNotPaused) {
		end = nil
	}
	if end != nil {
		why = end
	}
	if end == nil || errors.Is(end, ErrCompleted) {
		j.note(why)
	}
	in := refused
	if s.isEntrusted() {
		in = gaveUp
	}
	if j.do(in, why.Error()) != nil {
		return err
	}
	j.isOver(s)
	return nil
}

// welcome implements welcomer: a connection has come that is meant for this
// guest. It runs on a goroutine of the port and does not wait.
func (j *Job) welcome(conn net.Conn, h hello) {
	j.mu.Lock()
	j.strange = false
	j.mu.Unlock()
	if h.Channel == chAsk {
		j.tell(conn, h)
		return
	}
	if h.Channel == chAgain {
		j.reconnected(conn, h)
		return
	}
	if strings.HasPrefix(h.Channel, chGrown) {
		j.regrown(conn, h)
		return
	}
	answer := hello{Channel: h.Channel, Guest: h.Guest, Host: j.cfg.Host, Generation: h.Generation}
	var why error
	if s := j.State(); s == Created {
		why = refuse("%s is %s", j.cfg.Host, s) // it may not know yet what its guest has
	} else if h.Channel == chControl {
		if why = j.judge(h.Offer); why == nil {
			why = j.loads(h.Offer.Devices)
		}
		if why == nil {
			why = j.cfg.keeps(h.Offer)
		}
		j.misfits(h.Host, why)
		answer.Offer, answer.Arbiter, answer.HeedsFrom = j.offer(), j.cfg.kindOfArbiter(), failover.HeedsFrom(j.cfg.Arbiter)
	}
	if why == nil {
		answer.Token, answer.Holds, why = j.admit(conn, h)
	}
	if why != nil {
		var r *RefusedError
		reason := why.Error()
		if errors.As(why, &r) {
			reason = r.Reason
		}
		turnAway(conn, "%s", reason)
		return
	}
	err := writeHello(conn, answer)
	if err == nil {
		err = conn.SetDeadline(time.Time{})
	}
	j.answered(answer.Token, err)
}

// answered counts a connection whose answer has left; with the last one the pair
// is handed to Run.
func (j *Job) answered(token string, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	p := j.pending
	if p == nil || p.peer.token != token {
		return // given up meanwhile, and closed
	}
	if p.answers++; err == nil && p.answers < 3+len(j.channels)+p.peer.channels {
		return
	}
	j.pending = nil
	if err == nil {
		select {
		case j.joined <- p:
			return
		default: // there is one that has not been taken
		}
	}
	p.peer.close()
}

// admit takes a connection into the pair that it belongs to, and returns the token of the pair
// and, for its first connection, what the memory here is; or it returns why the connection is
// refused.
func (j *Job) admit(conn net.Conn, h hello) (token string, holds *position, why error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if h.Host == j.cfg.Host { // this host itself, as often as another of the same name
		return "", nil, refuse("both hosts are called %q", h.Host)
	}
	if h.Generation < j.generation {
		return "", nil, refuse("generation %d is over, the present one is %d", h.Generation, j.generation)
	}
	if s := j.m.state; s != Waiting {
		j.overtook(h)
		return "", nil, refuse("%s is %s", j.cfg.Host, s)
	}
	if j.unfit != nil {
		return "", nil, refuse("%s", j.followsNobody(j.unfit))
	}
	if h.Generation == j.wrote && j.wrote > 0 {
		// Nobody else can have that generation but by a mistake, of persons or of an
		// arbiter that has lost its record: what the guest here has written is kept.
		return "", nil, refuse("the disks of %s are a guest's own, of generation %d as well: the two hosts have gone on apart", j.cfg.Host, j.wrote)
	}
	p := j.pending
	if h.Channel == chControl {
		if p != nil {
			// The same primary, which has begun again, or one that has died.
			if time.Now().Before(p.expires) && p.peer.host != h.Host {
				return "", nil, refuse("%s is busy with %s", j.cfg.Host, p.peer.host)
			}
			p.peer.close()
		}
		h.Token = failover.NewToken()
		p = &pending{peer: newPeer(h), expires: time.Now().Add(greetTime)}
		p.peer.control, p.peer.channels = &line{conn}, j.cfg.Channels.agree(h.Offer)
		j.pending = p
		return h.Token, j.holds, nil
	}
	switch {
	case p == nil || h.Token == "" || h.Token != p.peer.token || h.Generation != p.peer.generation:
		return "", nil, refuse("the %s connection belongs to no pair", h.Channel)
	case h.Channel == chHeartbeat && p.peer.beat == nil:
		p.peer.beat = conn
	case h.Channel == chSession && p.peer.session == nil:
		if h.Resumes != nil && (j.holds == nil || *h.Resumes != *j.holds) {
			return "", nil, refuse("%s does not hold that checkpoint any more", j.cfg.Host)
		}
		p.peer.session, p.peer.resumes = conn, h.Resumes
	case (slices.Contains(j.channels, h.Channel) || slices.Contains(ofMemory(p.peer.channels), h.Channel)) && p.peer.more[h.Channel] == nil:
		p.peer.more[h.Channel] = conn
	default:
		return "", nil, refuse("there is no use for a %q connection", h.Channel)
	}
	return h.Token, nil, nil
}

// misfits tells the operator of this host, which waits, why it refuses the primary that has come,
// each reason once: what the two hosts are does not fit. nil: it fits.
func (j *Job) misfits(host string, why error) {
	words := ""
	if why != nil {
		words = plain.Text(why.Error(), maxNote/8) // as long as the other side has made it
	}
	j.mu.Lock()
	tell := words != j.misfit && words != "" && j.m.state == Waiting
	if tell || words == "" {
		j.misfit = words
	}
	j.mu.Unlock()
	if tell {
		err := fmt.Errorf("%q is turned away: %s", host, words)
		j.note(err)
		j.say(event.ProtectionRefused{Mode: event.ModeSecondary, Error: err.Error()})
	}
}

// turnsAway makes this host refuse each primary that comes, or has come, and tell it why; nil
// makes it refuse none.
func (j *Job) turnsAway(why error) {
	j.mu.Lock()
	j.unfit = why
	j.mu.Unlock()
	if why != nil {
		j.refuseAll()
	}
}

// followsNobody says in words, for a primary, why this host does not follow.
func (j *Job) followsNobody(why error) string {
	return fmt.Sprintf("%s follows nobody: %v", j.cfg.Host, why)
}

// isStranger implements welcomer. A host with such a certificate is told nothing. The operator of
// this host is told once, until the host that is meant connects again.
func (j *Job) isStranger(err error) {
	words := plain.Text(err.Error(), maxNote/8) // a certificate may be for many names
	why := fmt.Errorf("protect: a host is turned away whose certificate is not for Peer.Name: %s", words)
	j.mu.Lock()
	told := j.strange
	j.strange = true
	j.mu.Unlock()
	if !told {
		j.note(why)
		j.ownLog().Warn("a host is turned away", "side", event.ModeNone.String(), "checkpoint", uint64(0), "error", why)
	}
}

func (j *Job) peerName() string { return j.cfg.Peer.Name }

// refuseAll ends the pairs and connections that have come and that nobody will
// take any more.
func (j *Job) refuseAll() {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.pending != nil {
		j.pending.peer.close()
		j.pending = nil
	}
	select {
	case p := <-j.joined:
		p.peer.close()
	default:
	}
}

// newSecondary makes the secondary's side of a session.
func (j *Job) newSecondary(ctx context.Context, p *peer) (_ *session, err error) {
	s := &session{peer: p, wire: j.cfg.Session.wire(event.ModeSecondary, p.session), over: ctx, began: time.Now()}
	defer func() {
		if err != nil {
			s.wire.Close()
		}
	}()
	if err := j.followNetworks(ctx); err != nil {
		return nil, err
	}
	cache, err := j.takeCopy(p)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			cache.Close()
		}
	}()
	reg, err := j.registerSecondary(cache)
	if err != nil {
		return nil, err
	}
	if err := j.followDisks(ctx); err != nil {
		return nil, err
	}
	if err := j.followSizes(ctx, p); err != nil {
		return nil, err
	}
	cfg := colo.SecondaryConfig{
		Logger: j.sessionLog(), Disks: group(j.cfg.Disks),
		VM: j.vm, State: reg, RAM: cache, Machine: j.cfg.Machine,
		Events: j.bus(s), Arbiter: j.arbiter(s), PeerTimeout: j.cfg.PeerTimeout,
		Channels: j.channelsOf(p),
		Step:     j.cfg.Session.step(event.ModeSecondary), Trace: j.cfg.Session.trace(event.ModeSecondary),
	}
	if len(j.cfg.Network) > 0 {
		cfg.Net = nets(j.cfg.Network)
	}
	secondary, err := colo.NewSecondary(s.wire.link(), cfg)
	if err != nil {
		return nil, err
	}
	s.secondary, s.colo, s.cache = secondary, secondary, cache
	return s, nil
}
