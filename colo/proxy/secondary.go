package proxy

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"github.com/gocolo/lockstep/colo/compare"
	"github.com/gocolo/lockstep/colo/filter"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/vmstate"
)

// SecondaryConfig configures a [Secondary]. VM and Deliver are required.
type SecondaryConfig struct {
	// VM and Deliver: as in PrimaryConfig. A packet that the guest's ring has no
	// room for is tried again for a while, since the primary's guest has it.
	// Deliver may be called by several goroutines, one at a time.
	VM      VM
	Deliver func(packet []byte) error

	// Continuous, Limit and VNetHdr have the primary's values. Limit bounds the packets
	// that the secondary's guest has sent since the last checkpoint. With Continuous the
	// primary is sent none of them.
	Continuous bool
	Limit      int
	VNetHdr    int

	// Rewriter configures the translation of sequence numbers. If it has an Edge, the host
	// carries connections through later failovers itself; see HandOver. Otherwise the
	// Secondary does.
	Rewriter filter.RewriterConfig

	// Gate is asked, once this side has taken over, before each packet that would
	// leave to the network. Nil is always open.
	Gate Gate

	// Announce says how the network is told that the guest is here, once this side has
	// taken over. The guest's addresses follow from its frames and from the primary's
	// section; those in Announce.Neighbors are announced besides. Announce.VNetHdr is
	// ignored in favour of VNetHdr, and a nil Announce.Gate is replaced by Gate. Rounds is
	// the number of rounds, 5 with QEMU; if it is 0 nothing is announced. A Neighbor that
	// cannot be announced makes Run return ErrNeighbor at once.
	Announce AnnounceConfig

	// Outbox bounds the packets that wait to be sent to the primary, in bytes. Zero is 4
	// MiB. A packet that finds no room is missing there, and so causes a checkpoint later.
	Outbox int
}

// A Secondary is the network of a secondary's guest: a colo.SecondaryNetwork and
// a colo.VM, and a device of the guest (register it with Entry). The guest is
// paused when it is made.
//
// All its methods may be called from any goroutine, except that the session's
// and the device's belong to the session. While the guest is paused the NIC calls
// nothing.
type Secondary struct {
	cfg   SecondaryConfig
	hello hello
	gate  gate
	slot  slot
	up    latch

	keep *filter.Buffer
	out  *filter.Outbox
	at   uint64 // the epoch of the packets that Serve reads; only Serve uses it

	known    *Neighbors
	edge     *filter.Edge
	announce *announcer

	drafts sync.Mutex // of draft; taken before any other
	draft  []byte     // where a packet is composed

	staged scaleImage // the scales that PreSave has gathered, or that were loaded and not yet committed

	mu        sync.Mutex
	rewriter  *filter.Rewriter
	scales    *compare.Scales // of the guest's windows
	inherited bool            // they were loaded since the last commit
	started   bool            // there was a commit
	alone     bool
	silent    bool // the guest has sent nothing since its commit
	connected bool
	epoch     uint64 // of the last commit
	count     secondaryCount
}

// secondaryCount counts packets as SecondaryStats does.
type secondaryCount struct{ delivered, refused, stale uint64 }

// SecondaryStats counts packets since the Secondary was made, except for what is
// "now".
type SecondaryStats struct {
	Delivered uint64 // packets that were delivered to the guest
	Refused   uint64 // packets that were dropped, because the guest's ring stayed full
	Stale     uint64 // packets that were dropped, because a checkpoint contains them already
	Unsent    uint64 // packets of the guest that found no room on the way to the primary

	Connected bool               // now: there is a connection to the primary
	Keep      filter.BufferStats // the packets that leave at a takeover: inherited ones, then the guest's own
	Rewriter  filter.RewriterStats
}

// NewSecondary returns a Secondary of a paused guest. It panics without VM or
// Deliver, which is a mistake of the program.
func NewSecondary(cfg SecondaryConfig) *Secondary {
	if cfg.VM == nil || cfg.Deliver == nil {
		panic("proxy: SecondaryConfig needs VM and Deliver")
	}
	cfg.Limit = limitOf(cfg.Limit)
	cfg.Rewriter.KeepLate = true
	known, edge := new(Neighbors), new(filter.Edge)
	if cfg.Rewriter.Edge == nil {
		cfg.Rewriter.Edge = edge
	}
	s := &Secondary{
		known: known, edge: edge, announce: newAnnouncer(cfg.Announce, known),
		cfg: cfg, gate: newGate(cfg.VM, false),
		hello:    newHello(sideSecondary, cfg.Continuous, cfg.VNetHdr, cfg.Limit),
		keep:     filter.NewBuffer(filter.BufferConfig{Limit: cfg.Limit}),
		out:      filter.NewOutbox(cfg.Outbox),
		rewriter: filter.NewRewriter(cfg.Rewriter),
		scales:   new(compare.Scales),
	}
	_ = s.out.Failover() // closed until a mark
	return s
}

// Pause pauses the guest. No input is delivered from now on.
func (s *Secondary) Pause(ctx context.Context) error { return s.gate.pause(ctx) }

// Resume resumes the guest, and input is delivered again.
func (s *Secondary) Resume(ctx context.Context) error { return s.gate.resume(ctx) }

// WritePacket takes a copy of a packet that the guest sends. It never waits. If
// there is no room it returns [ErrFull] and has taken nothing; a packet that is
// empty or longer than filter.MaxFrame is a *filter.Error. Until a Failover it
// goes to the primary, and is kept; then to the network.
func (s *Secondary) WritePacket(packet []byte) error {
	if err := checkPacket(packet, s.cfg.VNetHdr); err != nil {
		return err
	}
	s.known.FromGuest(packet, s.cfg.VNetHdr)
	s.mu.Lock()
	s.scales.FromGuest(packet, s.cfg.VNetHdr)
	out, early := s.rewriter.OutboundCopy(packet, s.cfg.VNetHdr)
	early = bytes.Clone(early)
	var err error
	if !s.rewriter.Kept() {
		err = s.send(out)
	}
	s.sendLate()
	s.mu.Unlock()
	s.give(early)
	return err
}

// send takes a packet of the guest that has been translated. mu is held.
func (s *Secondary) send(packet []byte) error {
	err := s.keep.WritePacket(packet)
	if err == nil && !s.alone && !s.cfg.Continuous {
		s.silent = false
		_ = s.out.WriteFrame(filter.Frame{Data: packet, VNetHdr: s.cfg.VNetHdr}) // if there is no room or no connection, it is missing at the primary
	}
	return err
}

// Room returns a channel that receives a value when there may be room again for a packet
// that was refused. It is the same every time and is never closed.
func (s *Secondary) Room() <-chan struct{} { return s.keep.Room() }

// Run moves packets between the guest and the network once this side has taken over, and
// announces the guest there. Before that it neither reads nor writes. It returns why the
// network failed, or the cause of the end of ctx. It owns the network and closes it, if
// that has a Close; otherwise the caller must end a read that waits. Run is called once at
// a time. The goroutines that it starts have ended when it returns.
func (s *Secondary) Run(ctx context.Context, network Network) error {
	up, out := newUplink(network, s.edge, s.cfg.VNetHdr, true)
	return together(ctx, closerOf(network),
		func(ctx context.Context) error { return s.keep.Run(ctx, gated(ctx, s.cfg.Gate, out)) },
		func(ctx context.Context) error {
			if err := s.announce.check(); err != nil {
				return err
			}
			return s.announce.run(ctx, s.cfg.Gate, up)
		},
		func(ctx context.Context) error {
			alone := func() bool { return s.gate.alone }
			if err := s.gate.admit(ctx, alone, func() {}); err != nil {
				return err
			}
			var mine []byte
			for {
				packet, err := up.ReadPacket()
				if err != nil {
					return err
				}
				mine = append(mine[:0], packet...) // a copy, since it may be translated
				if err := s.input(ctx, latest, mine); err != nil {
					return err
				}
			}
		})
}

// latest stands for the epoch of packets from the network, which are never too old.
const latest = ^uint64(0)

// Serve runs the connection to the primary: it receives the guest's input, and sends the
// guest's output. It owns conn, and closes it at the end. It returns why the connection
// ended, or the cause of the end of ctx. A Failover does not end it: what the primary has
// sent is still delivered. It may be called again with a new connection, which ends the
// one before. While a packet waits for the commit of its epoch Serve does not read, and so
// sees the end of conn after that commit, a Failover or a new connection only. The
// goroutine that it starts has ended when it returns.
func (s *Secondary) Serve(ctx context.Context, conn io.ReadWriteCloser) error {
	ctx, free, err := s.slot.take(ctx, conn)
	if err != nil {
		return err
	}
	defer free()
	defer s.detach()
	greeted := make(chan struct{})
	s.at = 0
	c := filter.NewConn(conn, connConfig(s.cfg.VNetHdr, s.primaryMark))
	return together(ctx, conn,
		func(ctx context.Context) error {
			if err := s.hello.expect(conn); err != nil {
				return err
			}
			s.attach()
			close(greeted)
			if s.cfg.Continuous {
				return discard(c)
			}
			for {
				packet, err := c.ReadPacket()
				if err != nil {
					return err
				}
				if err := s.input(ctx, s.at, packet); err != nil {
					return err
				}
			}
		},
		func(ctx context.Context) error {
			if err := s.hello.write(conn); err != nil {
				return err
			}
			return outgoing(ctx, greeted, s.out, c)
		})
}

// Connected returns when Serve has a connection on which the other side has said its
// hello.
func (s *Secondary) Connected(ctx context.Context) error { return s.up.wait(ctx) }

// attach begins a connection. The primary ignores packets before a marker. If the guest
// has sent nothing since its commit, the marker of that commit can still be sent.
func (s *Secondary) attach() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.connected = true
	s.up.set(true)
	if s.started && s.silent && !s.alone && !s.cfg.Continuous {
		_ = s.out.Mark(s.epoch)
	}
}

func (s *Secondary) detach() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.connected = false
	s.up.set(false)
	_ = s.out.Failover()
}

// primaryMark is called for a marker in the primary's stream. The packets after it are for
// the guest as the commit of epoch makes it.
func (s *Secondary) primaryMark(epoch uint64) error {
	if epoch+1 < s.at && epoch != 0 || epoch+1 == latest {
		return &filter.Error{Op: "marker", Offset: -1, Err: filter.ErrEpoch}
	}
	s.at = epoch + 1
	return nil
}

// input delivers a packet of epoch once the guest is in that epoch. It may change the
// packet.
func (s *Secondary) input(ctx context.Context, epoch uint64, packet []byte) error {
	if checkPacket(packet, s.cfg.VNetHdr) != nil {
		return nil
	}
	translated := false
	for try := 1; ; try++ {
		full := false
		err := s.gate.admit(ctx, func() bool { return s.gate.due(epoch) }, func() {
			if epoch < s.gate.runs {
				s.mu.Lock()
				s.count.stale++
				s.mu.Unlock()
				return
			}
			if !translated {
				translated = true
				s.known.ToGuest(packet, s.cfg.VNetHdr)
				s.mu.Lock()
				deliver := s.rewriter.Inbound(packet, s.cfg.VNetHdr)
				if deliver {
					s.scales.ToGuest(packet, s.cfg.VNetHdr)
				}
				s.sendLate()
				s.mu.Unlock()
				if !deliver {
					return
				}
			}
			err := s.cfg.Deliver(packet)
			if full = err != nil && try < deliverTries; !full {
				s.note(err)
			}
		})
		if err != nil || !full {
			return err
		}
		// The primary's guest has the packet, so waiting a moment may save a checkpoint.
		timer := time.NewTimer(deliverPoll)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return context.Cause(ctx)
		}
	}
}

// Commit says that the guest has got the state of the primary's guest of epoch: what it
// sent before is void, and so is input that it has not been given. If the guest was not
// paused through the Secondary it returns [ErrRunning]; for an epoch out of order,
// filter.ErrEpoch. (A colo.SecondaryNetwork.)
func (s *Secondary) Commit(epoch uint64) error {
	if !s.gate.closed() {
		return ErrRunning
	}
	s.mu.Lock()
	err := s.keep.Commit(epoch)
	if err == nil {
		err = s.rewriter.Commit(epoch)
	}
	if err != nil {
		s.mu.Unlock()
		return err
	}
	if !s.inherited { // what is known is of a guest that is no more
		s.scales.Reset()
	}
	s.inherited = false
	s.started, s.alone, s.silent, s.epoch = true, false, true, epoch
	if s.connected && !s.cfg.Continuous { // nobody reads it there, and each wakes both hosts
		_ = s.out.Mark(epoch) // never fails
	}
	s.mu.Unlock()
	s.announce.cancel()
	s.gate.set(func() { s.gate.runs, s.gate.alone = epoch+1, false })
	return nil
}

// Resumed says that the secondary's guest runs from the checkpoint of epoch. (A
// colo.SecondaryNetwork.)
func (s *Secondary) Resumed(epoch uint64) error { return s.keep.Resumed(epoch) }

// Failover says that this side goes on alone: the packets that its guest inherited leave,
// then those that it has sent itself, and from now on packets pass. Run announces the
// guest. (A colo.SecondaryNetwork.)
func (s *Secondary) Failover() error {
	s.mu.Lock()
	s.alone = true
	err := errors.Join(s.out.Failover(), s.rewriter.Failover(), s.keep.Failover())
	s.mu.Unlock()
	s.gate.set(func() { s.gate.alone = true })
	s.announce.begin()
	return err
}

// Entry returns the entry under which the Secondary is registered in a vmstate.Registry.
// instance is the number of the NIC within the guest, as for the Primary on the other
// side.
func (s *Secondary) Entry(instance uint32) vmstate.Entry { return entry(instance) }

// PreSave gathers the packets that have not left, the guest's addresses, the connections that
// are translated, and the scales of the guest's windows. (A vmstate.PreSaver.)
func (s *Secondary) PreSave() error {
	if err := s.keep.PreSave(); err != nil {
		return err
	}
	s.mu.Lock()
	s.staged.gather(s.scales.Append)
	s.mu.Unlock()
	return preSave(s.known, s.edge)
}

// VMState saves what PreSave has gathered, or loads it; the guest inherits the packets at
// the next commit. (A vmstate.Device.)
func (s *Secondary) VMState(f *vmstate.Fields) {
	s.keep.VMState(f)
	stand(f, s.known, s.edge, &s.staged)
}

// PostLoad gives the guest the packets and addresses that were loaded. (A vmstate.PostLoader.)
func (s *Secondary) PostLoad(version uint32) error {
	if err := s.keep.PostLoad(version); err != nil {
		return err
	}
	s.mu.Lock()
	s.scales, s.inherited = s.staged.take(version, s.scales), true
	s.mu.Unlock()
	return postLoad(version, s.known, s.edge)
}

// Neighbors returns the addresses under which the network knows the guest, as far as they
// were learned.
func (s *Secondary) Neighbors() []Neighbor { return s.known.All() }

// OutputLatency returns how long the packets that have left after a takeover were
// kept, from when this side's guest sent them until the network had taken them.
// Inherited ones do not count.
func (s *Secondary) OutputLatency() event.Latency { return s.keep.OutputLatency() }

// note counts a packet to the guest.
func (s *Secondary) note(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		s.count.delivered++
	} else {
		s.count.refused++
	}
}

// Stats returns the present counts.
func (s *Secondary) Stats() SecondaryStats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return SecondaryStats{
		Delivered: s.count.delivered, Refused: s.count.refused, Stale: s.count.stale,
		Unsent: s.out.LostFrames(), Connected: s.connected,
		Keep: s.keep.Stats(), Rewriter: s.rewriter.Stats(),
	}
}
