package main

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gocolo/lockstep/colo/proxy"
	"github.com/gocolo/lockstep/internal/threads"
	"github.com/gocolo/lockstep/kvm/gokvmhost"
	"github.com/gocolo/lockstep/vmstate"
)

// A solo is a guest that is not protected, with its machine, console and network here.
type solo struct {
	o        options
	terminal *console
	p        *printer
	guest    *guest
	cable    cable            // nil: none
	nic      *proxy.Primary   // of cable: it has no session, so all passes
	known    *proxy.Neighbors // the addresses that the guest has
	ended    chan error       // how the machine's Run has ended
	over     atomic.Bool      // the guest has ended

	life  context.Context // it ends with the machine
	end   context.CancelFunc
	group sync.WaitGroup
	wired bool // nic runs, and closes cable
}

// newSolo makes the guest, which stands still. The caller owns the storage of its disk;
// nil: it has none.
func newSolo(ctx context.Context, o options, c *console, p *printer, storage gokvmhost.Disk) (_ *solo, err error) {
	s := &solo{o: o, terminal: c, p: p, guest: newGuest(), known: new(proxy.Neighbors), ended: make(chan error, 1)}
	s.life, s.end = context.WithCancel(context.WithoutCancel(ctx))
	devices := gokvmhost.Config{Console: c, MAC: o.mac, Disk: storage}
	if s.cable, err = openCable(o); err != nil {
		s.end()
		return nil, err
	}
	if s.cable != nil {
		header := headerOf(s.cable)
		s.nic = proxy.NewPrimary(proxy.PrimaryConfig{VM: s.guest, Deliver: s.guest.receive, VNetHdr: header})
		devices.Uplink, devices.VNetHdr = heard{s.nic, s.known, header}, header
	}
	if s.guest.machine, err = o.hw.machine(o, devices); err != nil {
		s.end()
		if s.cable != nil {
			err = errors.Join(err, s.cable.Close())
		}
		return nil, err
	}
	s.group.Go(func() {
		defer threads.More(o.vcpus)()
		err := s.guest.machine.Run(s.life)
		s.over.Store(true)
		s.ended <- err
	})
	return s, nil
}

// heard is a network card's uplink, of whose frames the guest's addresses are learned.
type heard struct {
	*proxy.Primary
	known  *proxy.Neighbors
	header int
}

// WritePacket implements pc.Uplink.
func (h heard) WritePacket(frame []byte) error {
	h.known.FromGuest(frame, h.header)
	return h.Primary.WritePacket(frame)
}

// ComposePacket implements pc.Composer.
func (h heard) ComposePacket(n int, compose func(frame []byte) bool) error {
	return h.Primary.ComposePacket(n, func(frame []byte) bool {
		if !compose(frame) {
			return false
		}
		h.known.FromGuest(frame, h.header)
		return true
	})
}

// begin lets the guest have the console and the network, and run. order is called for a
// key after Ctrl-A.
func (s *solo) begin(ctx context.Context, order func(key byte)) error {
	if s.nic != nil && !s.wired {
		s.wired = true
		s.group.Go(func() {
			if err := s.nic.Run(s.life, s.cable); s.life.Err() == nil {
				s.p.say("the network: %v", err)
			}
		})
	}
	s.terminal.start(order)
	go s.terminal.feed(s.life, s.guest) // may wait for a key for as long as the program lives
	return s.resume(ctx)
}

// pause and resume go by way of the guest's network, which must know.
func (s *solo) pause(ctx context.Context) error {
	if s.nic != nil {
		return s.nic.Pause(ctx)
	}
	return s.guest.Pause(ctx)
}

func (s *solo) resume(ctx context.Context) error {
	if s.nic != nil {
		return s.nic.Resume(ctx)
	}
	return s.guest.Resume(ctx)
}

// register registers what moves with the guest, but for its memory.
func (s *solo) register(reg *vmstate.Registry) error {
	return errors.Join(s.guest.Register(reg), reg.Register(s.known.Entry(0), s.known))
}

// announce tells the network that the guest is here now.
func (s *solo) announce() {
	if s.cable == nil {
		return
	}
	cfg := proxy.AnnounceConfig{Neighbors: s.known.All(), VNetHdr: headerOf(s.cable)}
	s.group.Go(func() { proxy.Announce(s.life, s.cable, cfg) }) // its error is dropped: the network reports what is wrong with the cable
}

// drainTimeout is how long an ended guest's last frames may take to leave.
const drainTimeout = 5 * time.Second

// drain waits until what the guest has said last has left.
func (s *solo) drain() {
	if s.nic != nil && s.wired {
		ctx, cancel := context.WithTimeout(s.life, drainTimeout)
		defer cancel()
		s.nic.Drain(ctx)
	}
}

// finish returns how the guest has ended, given the error of the machine's Run.
func (s *solo) finish(err error) error {
	how := howEnded(err)
	if how == "" {
		return err
	}
	s.drain()
	s.p.phase("ended", "%s", how)
	return nil
}

// mute keeps what the guest does from being seen or stored, but for its disk.
func (s *solo) mute() {
	s.terminal.close()
	if s.cable != nil {
		s.cable.Close()
	}
}

// close ends what runs, and closes the machine when nothing uses it any more.
func (s *solo) close() error {
	s.end()
	s.group.Wait()
	s.terminal.close()
	err := s.guest.Close()
	if s.cable != nil && !s.wired {
		err = errors.Join(err, s.cable.Close())
	}
	return err
}
