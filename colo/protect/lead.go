package protect

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/failover"
	"github.com/gocolo/lockstep/internal/wait"
	"github.com/gocolo/lockstep/vmstate"
	"github.com/gocolo/lockstep/vmstate/ram"
)

const (
	// minRedial and maxRedial bound the pause between two attempts to reach the
	// other host.
	minRedial = 20 * time.Millisecond
	maxRedial = time.Second
)

// lead seeks a secondary and protects the guest, until the session ends.
func (j *Job) lead(ctx context.Context) error {
	if err := j.describe(); err != nil {
		return j.unable(ctx, Alone, err)
	}
	if there, err := j.hasMemory(ctx, Alone); !there {
		return err
	}
	p, err := j.seek(ctx)
	if err != nil {
		return nil // the job has moved on
	}
	defer p.close()
	if ready, err := j.leadNetworks(ctx); err != nil {
		p.close()
		return j.unable(ctx, Alone, err)
	} else if !ready {
		return nil
	}
	s, err := j.newPrimary(ctx, p)
	if err != nil {
		p.close()
		j.dropBase() // it may have been made ready for that session
		return j.unable(ctx, Alone, err)
	}
	j.hindered = ""
	if err := j.hearWritten(ctx, s); err != nil {
		j.note(err)
		s.wire.Close()
		return nil
	}
	j.take(s)
	defer j.take(nil)
	s.primary.SetCheckpointDelay(j.CheckpointDelay()) // it may have changed since the session was made
	why := p.host + " follows"
	if p.resumes != nil {
		why += ", from the checkpoint on that it holds"
	}
	if j.do(agreed, why) != nil {
		s.wire.Close()
		return nil
	}
	j.deciding(p)
	err = j.attend(ctx, s)
	j.vm.keep(nil)
	s.endedBy(err)
	if err := j.led(ctx, s, err); err != nil {
		return err
	}
	j.take(nil)    // a verb that comes in the pause below has no session to end
	j.vm.keep(nil) // a verb that came too late may have set it
	j.again(ctx, s)
	return nil
}

// led is called at the end of a session that this host led, and decides what
// comes next.
func (j *Job) led(ctx context.Context, s *session, err error) error {
	switch {
	case tookOverHere(err):
		j.noteLoss(s.lossWith(err))
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if s.getPurpose() != toComplete { // a guest that has ended is left as it is
			if err := j.vm.runOn(ctx); err != nil {
				return err
			}
		}
		why := "went on without " + s.peer.host
		switch s.getPurpose() {
		case toPause, toCancel, toComplete: // which the state is about to say
			why = s.whoEnded()
		}
		j.alone(why)
		switch s.getPurpose() {
		case toPause:
			var reason string
			s.peer.get(func() { reason = s.peer.reason })
			j.do(doPause, reason) // here and below: this fails only if it was deposed or stopped at once
		case toCancel:
			j.do(doCancel, "cancelled")
		case toComplete:
			j.do(doComplete, "the guest has ended")
		}
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case j.State() == Waiting: // deposed
		return nil
	case errors.Is(err, failover.ErrRefused):
		in, reason := handed, s.peer.host+" has taken the guest over"
		if s.migration() {
			in, reason = migrated, "migrated to "+s.peer.host
		}
		if j.do(in, reason) == nil {
			return nil
		}
		// A session that broke while this host was releasing the guest, or before
		// the other said that it has it, has asked for it again, and was refused like
		// any other.
		err = s.refusedWith(err)
		j.note(err)
		s.fail(err)
		j.keeper.Drop()
		return j.do(refused, err.Error())
	case j.State() == Synchronising && s.getPurpose() == toComplete && !j.vm.isRunning():
		// The guest, which has ended, is left standing, and was this host's all the while.
		s.unharmed = true
		if err := j.do(unharmed, "the guest has ended"); err != nil {
			return err
		}
		return j.do(doComplete, "the guest has ended")
	case j.State() == Synchronising && j.vm.isRunning():
		s.unharmed = true
		if words := s.whoEnded(); words != "" {
			j.noteLoss(nil)
			return j.do(unharmed, words)
		}
		err = s.lossOf(err, j.cfg.Lost)
		j.noteLoss(err)
		return j.do(unharmed, err.Error())
	}
	return err
}

// leadNetworks makes the networks ready for a session. While they are not, since
// what they hold cannot leave, none begins.
func (j *Job) leadNetworks(ctx context.Context) (ready bool, err error) {
	act, end := j.while(ctx, Alone)
	defer end()
	bound, cancel := context.WithTimeout(act, j.cfg.PeerTimeout)
	defer cancel()
	err = sided(j.cfg.Network, func(s Sided) error { return s.Lead(bound) })
	if err != nil && bound.Err() != nil {
		if act.Err() == nil {
			j.note(err)
		}
		return false, nil
	}
	return err == nil, err
}

// alone moves the job to Alone: the guest runs here after a session, which may
// have ended by an order, an answer of the arbiter, or both at the same time.
func (j *Job) alone(reason string) {
	if j.do(tookOver, reason) != nil && j.do(left, reason) != nil && j.State() == Asking { // not deposed
		j.do(granted, reason) // by a verb, while the session was asking
		j.do(tookOver, reason)
	}
}

// seek reaches for the other host until it agrees to follow. What keeps it from that is told
// when it has lasted as long as a change of sides may keep the other host busy.
func (j *Job) seek(ctx context.Context) (*peer, error) {
	act, end := j.while(ctx, Alone)
	defer end()
	var told string
	for pause := minRedial; ; pause = min(2*pause, maxRedial) {
		p, err := j.connect(act)
		if err == nil {
			return p, nil
		}
		if act.Err() == nil && pause == maxRedial {
			j.note(err)
			told = j.tellAlone(err, told)
		}
		if err := wait.For(act, pause); err != nil {
			return nil, err
		}
	}
}

// connect makes the connections of a pair.
func (j *Job) connect(ctx context.Context) (_ *peer, err error) {
	generation := j.keeper.Generation()
	h := hello{Channel: chControl, Guest: j.cfg.Name, Generation: generation, Host: j.cfg.Host, TookOver: j.took, Offer: j.offer(), Arbiter: j.cfg.kindOfArbiter()}
	h.Heard, _ = j.untold(generation)
	control, answer, err := dial(ctx, &j.cfg, h)
	if err != nil {
		return nil, err
	}
	p := newPeer(answer)
	p.generation, p.control = generation, &line{control}
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	if answer.Token == "" {
		return nil, fmt.Errorf("%w: no token", ErrHello)
	}
	if err := j.judge(answer.Offer); err != nil {
		return nil, err
	}
	if err := j.catchUp(ctx, p); err != nil {
		return nil, err
	}
	h.Offer, h.Arbiter, h.Heard, h.TookOver, h.Token = nil, "", 0, "", answer.Token
	p.channels = j.cfg.Channels.agree(answer.Offer)
	if j.base.fits(answer.Holds, j.cfg.Guest.Blocks()) && j.base.worth(answer.Holds, answer.Offer) {
		p.resumes = answer.Holds
	}
	return p, j.dialOthers(ctx, p, h)
}

// dialOthers makes the connections of a pair beside control, side by side, since each takes some
// round trips. h is what their hellos have in common.
func (j *Job) dialOthers(ctx context.Context, p *peer, h hello) error {
	names := slices.Concat([]string{chHeartbeat, chSession}, j.channels, ofMemory(p.channels))
	conns := make([]net.Conn, len(names))
	err := abreast(ctx, len(names), j.port.dialling, func(ctx context.Context, i int) (err error) {
		h := h
		if h.Channel = names[i]; h.Channel == chSession {
			h.Resumes = p.resumes
		}
		conns[i], _, err = dial(ctx, &j.cfg, h)
		return err
	})
	for i, conn := range conns {
		switch {
		case conn == nil:
		case names[i] == chHeartbeat:
			p.beat = conn
		case names[i] == chSession:
			p.session = conn
		default:
			p.more[names[i]] = conn
		}
	}
	return err
}

// newPrimary makes the primary's side of a session: everything of it is new, but
// for the guest and its networks.
func (j *Job) newPrimary(ctx context.Context, p *peer) (_ *session, err error) {
	s := &session{peer: p, wire: j.cfg.Session.wire(event.ModePrimary, p.session), over: ctx, began: time.Now()}
	defer func() {
		if err != nil {
			s.wire.Close()
		}
	}()
	reg := new(vmstate.Registry)
	saver := j.takeBase(p)
	if err := reg.RegisterLive(ramEntry(), saver, nil); err != nil {
		return nil, err
	}
	if err := j.register(reg); err != nil {
		return nil, err
	}
	cfg := colo.PrimaryConfig{
		Logger: j.sessionLog(), Disks: group(j.cfg.Disks),
		VM: j.vm, State: reg, RAM: saver, Machine: j.cfg.Machine,
		Events: j.bus(s), Arbiter: j.arbiter(s),
		CheckpointDelay: j.CheckpointDelay(), PeerTimeout: j.cfg.PeerTimeout,
		CheckpointTimeout: j.cfg.CheckpointTimeout, MinInterval: j.cfg.MinInterval, LateResume: j.cfg.LateResume,
		Channels: j.leadingChannels(p),
	}
	j.cfg.Session.primary(&cfg)
	cfg.Net = leading{nets(j.cfg.Network), j, s}
	primary, err := colo.NewPrimary(s.wire.link(), cfg)
	if err != nil {
		return nil, err
	}
	s.primary, s.colo, s.base = primary, primary, j.base
	return s, nil
}

func ramEntry() vmstate.Entry {
	return vmstate.Entry{Name: ram.SectionName, Version: ram.Version, MinVersion: ram.Version}
}

// errRegister marks an error that Register of the guest, or of a network, has returned.
var errRegister = errors.New("protect: register the devices")

func (j *Job) register(reg *vmstate.Registry) error {
	err := j.cfg.Guest.Register(reg)
	if err == nil {
		err = nets(j.cfg.Network).each(func(n Network) error { return n.Register(reg) })
	}
	if err != nil {
		return fmt.Errorf("%w: %w", errRegister, err)
	}
	return nil
}

// bus returns a session's own bus, which passes everything on.
func (j *Job) bus(s *session) *event.Bus {
	b := new(event.Bus)
	b.SubscribeAll(func(r event.Record) { j.observe(s, r.Event) })
	return b
}

func (j *Job) offer() *offer {
	o := &offer{Machine: j.cfg.Machine, Extra: j.cfg.Offer, Resends: true, Staged: j.cfg.MaxStaged, Channels: j.cfg.Channels.Count}
	for _, b := range j.cfg.Guest.Blocks() {
		o.Memory = append(o.Memory, part{b.Name, uint64(len(b.Host))})
	}
	for _, d := range j.cfg.Disks {
		o.Disks = append(o.Disks, part{d.cfg.Name, uint64(d.Size())})
		if d.canGrow() {
			o.Growing = append(o.Growing, grower{d.cfg.Name, d.id()})
		}
	}
	o.Devices = j.devices()
	sided(j.cfg.Network, func(s Sided) error {
		name, terms := s.Link()
		o.Networks = append(o.Networks, link{name, terms})
		return nil
	})
	return o
}

// judge says whether what the other side has fits.
func (j *Job) judge(o *offer) error {
	if err := j.offer().fits(o); err != nil {
		return err
	}
	if err := j.reaches(o); err != nil {
		return err
	}
	if j.cfg.Judge != nil {
		if err := j.cfg.Judge(o.Extra); err != nil {
			return refuse("%v", err)
		}
	}
	return nil
}
