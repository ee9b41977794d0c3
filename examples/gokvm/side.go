package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"sync"
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/failover/heartbeat"
	"github.com/gocolo/lockstep/kvm/gokvmhost"
	"github.com/gocolo/lockstep/vmstate"
)

// A side is this host's guest with all that belongs to it, in any mode. What it
// starts ends with stop, and wait returns then.
type side struct {
	o        options
	terminal *console
	p        *printer
	disk     *disk
	net      *network
	guest    *guest
	state    vmstate.Registry
	events   event.Bus
	printed  *event.Buffered
	peer     *peer
	pulse    heartbeat.Pulse // of the other side

	ctx   context.Context // of everything that was started
	stop  context.CancelCauseFunc
	group sync.WaitGroup
	ended chan error // the guest's Run has returned
}

// newSide makes a side whose goroutines outlive the user's wish to end, which
// they are needed for. The caller closes it.
func newSide(ctx context.Context, o options, c *console, p *printer) *side {
	s := &side{o: o, terminal: c, p: p, ended: make(chan error, 1)}
	s.ctx, s.stop = context.WithCancelCause(context.WithoutCancel(ctx))
	return s
}

// build makes the guest and its network. The disk is there already.
func (s *side) build(n *network, g *guest) error {
	s.net, s.guest = n, g
	devices := gokvmhost.Config{Console: s.terminal, MAC: s.o.mac}
	if s.disk != nil {
		devices.Disk = s.disk.view
	}
	if n != nil {
		devices.Uplink = n.proxy
	}
	m, err := s.o.hw.machine(s.o, devices)
	if err == nil {
		g.machine = m
	}
	return err
}

// run starts the guest's machine, which stands still, and its network.
func (s *side) run() {
	s.group.Go(func() {
		// A thread that comes back from the guest is to find a place to run Go code.
		runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + s.o.vcpus)
		defer func() { runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) - s.o.vcpus) }()
		s.ended <- s.guest.Run(s.ctx)
	})
	if s.net != nil {
		s.group.Go(func() {
			if err := s.net.run(s.ctx); err != nil {
				s.p.say("the network: %v", err)
			}
		})
	}
}

// listen shows the console and takes its orders. checkpoint may be nil.
func (s *side) listen(checkpoint func()) {
	s.terminal.start(func(key byte) {
		switch {
		case key == 'c' && checkpoint != nil:
			checkpoint()
		case key == 'i':
			s.p.say("%s", s.p.progress())
		}
	})
	go s.terminal.feed(s.ctx, s.guest) // may wait for a key for as long as the program lives
}

// beat tells the peer and the session when the other side is lost.
func (s *side) beat(ctx context.Context, conn net.Conn, lost func(error)) {
	s.group.Go(func() {
		err := s.pulse.Run(ctx, conn, s.o.beat, s.o.lost)
		if ctx.Err() == nil {
			s.peer.lose(err)
			lost(err)
		}
	})
}

// tell prints the session's events, off its goroutine, and progress.
func (s *side) tell(observe func(event.Record)) {
	s.printed = event.NewBuffered(4096, func(r event.Record, dropped uint64) { s.p.object(r) })
	s.events.SubscribeAll(func(r event.Record) {
		s.printed.Put(r)
		s.p.event(r)
		if observe != nil {
			observe(r)
		}
	})
	s.group.Go(func() { s.printed.Run(s.ctx) })
	s.p.setStatus(s.net.status)
	if s.o.progress > 0 {
		s.group.Go(func() {
			tick := time.NewTicker(s.o.progress)
			defer tick.Stop()
			for {
				select {
				case <-tick.C:
					if !s.terminal.raw() { // the guest's screen is its own
						s.p.say("%s", s.p.progress())
					}
				case <-s.ctx.Done():
					return
				}
			}
		})
	}
}

// rest lets what the ended guest has said leave, and makes its disk stable.
func (s *side) rest() error {
	if s.net != nil {
		ctx, cancel := context.WithTimeout(s.ctx, drainTimeout)
		defer cancel()
		s.net.drained(ctx)
	}
	return s.disk.sync()
}

// drainTimeout is how long an ended guest's last frames may take to leave.
const drainTimeout = 5 * time.Second

// close ends everything and waits for it.
func (s *side) close(err error) error {
	s.stop(err)
	s.disk.cut()
	s.group.Wait()
	if s.net != nil {
		s.net.cable.Close() // by its Run already, if there was one
		s.p.note(func(sum *summary) { sum.Network = s.net.figures() })
	}
	if s.guest != nil && s.guest.machine != nil {
		err = errors.Join(err, s.guest.Close())
	}
	return errors.Join(err, s.disk.close())
}

// machineType is in the stream's configuration section: what both sides agree
// the guest to be.
const machineType = "lockstep-gokvm"

// peerTimeout bounds a wait within a checkpoint. The heartbeat is there to notice
// a dead peer; this is for one that lives and does not answer.
func (o *options) peerTimeout() time.Duration { return max(colo.DefaultPeerTimeout, 3*o.lost) }

// tookOver reports whether a session's Run returned because this side goes on
// alone, perhaps with something missing.
func tookOver(err error) bool { return err == nil || errors.Is(err, colo.ErrDegraded) }

// farewell is the end of a session without a takeover, in the user's words.
func (s *side) farewell(err error) error {
	ended, _ := s.peer.state()
	switch {
	case ended != "":
		s.p.phase("ended", "%s", ended)
		return nil
	case errors.Is(err, errPeerHas):
		s.p.phase("released", "the other side goes on with the guest")
		return nil
	}
	return fmt.Errorf("the session: %w", err)
}
