package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/colo/protect"
	"github.com/gocolo/lockstep/colo/protect/control"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/internal/cli"
	"github.com/gocolo/lockstep/internal/signals"
	"github.com/gocolo/lockstep/internal/threads"
	"github.com/gocolo/lockstep/kvm/gokvmhost"
)

// machineType is the machine type that both sides name.
const machineType = "lockstep-gokvm"

// A host is this side of a guest that is protected: the guest, and the job that keeps
// it so.
type host struct {
	o        options
	terminal *console
	p        *printer
	guest    *guest
	events   event.Bus
	nic      *protect.Proxy // nil: none
	cable    cable          // of nic, which closes it
	peer     protect.Peer   // how the other host is reached
	job      atomic.Pointer[protect.Job]
	saving   sync.Mutex    // the guest is being saved
	typing   sync.Once     // the console is read
	quit     chan struct{} // capacity one: an order to end

	saved *protect.Saved // of -resume -lazy; nil: the guest's memory is here
	file  *os.File       // of saved, until closeFile

	life  context.Context // of the job and of the machine
	end   context.CancelCauseFunc
	group sync.WaitGroup

	decided func() // ends the arbiter, when the job has told it how it ends; nil: there is none yet
}

var (
	errEnded  = errors.New("the guest has ended")
	errNoPeer = errors.New("no -peer was given")
	errNoSave = errors.New("no -save was given")
)

// runProtected runs this host's side of a guest that two hosts protect.
func runProtected(ctx context.Context, o options, c *console, p *printer) (err error) {
	if err := o.hw.probe(); err != nil {
		return err
	}
	h := &host{o: o, terminal: c, p: p, guest: newGuest(), quit: make(chan struct{}, 1)}
	h.life, h.end = context.WithCancelCause(context.WithoutCancel(ctx))
	defer func() {
		h.end(nil)
		h.group.Wait()
		if h.decided != nil {
			h.decided()
		}
	}()
	d, err := openDisk(o, h.diskGrown)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.close()) }()
	cfg, err := h.configure(d)
	if err != nil {
		return err
	}
	defer func() {
		h.end(nil)
		h.group.Wait() // whoever uses the machine
		h.terminal.close()
		err = errors.Join(err, h.closeFile(), h.guest.Close())
	}()
	printed := event.NewBuffered(4096, func(r event.Record, dropped uint64) { p.object(r) })
	h.group.Go(func() { printed.Run(h.life) })
	h.events.SubscribeAll(func(r event.Record) {
		printed.Put(r)
		p.event(r)
		if e, ok := r.Event.(event.JobStatusChange); ok {
			h.changed(e)
		}
	})
	job, err := protect.New(cfg)
	if err != nil {
		if h.cable != nil { // the network would have closed it, in the job's Run
			err = errors.Join(err, h.cable.Close())
		}
		return err
	}
	h.job.Store(job)
	p.setStatus(h.status)

	h.group.Go(h.runGuest)
	h.group.Go(func() { h.obey(ctx) })
	h.group.Go(h.watch)
	if h.saved != nil {
		h.group.Go(h.followMemory)
	}
	err = o.handles.Run(h.life, job, control.Config{
		Events: &h.events, Guest: h.guest, CheckpointDelay: o.interval, Quit: func() {
			select {
			case h.quit <- struct{}{}:
			default: // it is on its way
			}
		}, Save: h.save, Listening: func(handle, address string) { h.p.phase(handle, "at %s", address) },
	})
	h.saving.Lock() // who saves the guest has said so
	defer h.saving.Unlock()
	p.note(func(s *summary) { s.figures(job.Query().Stats, h.figures()) })
	return h.farewell(err)
}

// configure makes the guest, and returns the configuration of its job.
func (h *host) configure(d *disk) (cfg protect.Config, err error) {
	o := h.o
	t, err := openCable(o)
	if err != nil {
		return cfg, err
	}
	devices := gokvmhost.Config{Console: h.terminal, MAC: o.mac}
	cfg = protect.Config{
		Name: o.name, Host: o.host, Guest: h.guest, Start: o.mode == modePrimary, Events: &h.events, Machine: machineType,
		ArbiterKind:     o.decides(),
		CheckpointDelay: o.interval, MinInterval: max(o.atLeast, 1), LateResume: o.lateResume, CheckpointTimeout: o.patience,
		Beat: o.beat, Lost: o.lost, Term: o.term, PeerTimeout: max(colo.DefaultPeerTimeout, 3*o.lost),
	}
	if d != nil {
		devices.Disk, cfg.Disks = d.handle, []*protect.Disk{d.handle}
	}
	if t != nil {
		defer func() {
			if err != nil {
				t.Close()
			}
		}()
		if h.nic, err = protect.NewProxy(protect.ProxyConfig{
			Uplink: t, Deliver: h.guest.receive, Continuous: o.continuous, Events: &h.events, VNetHdr: headerOf(t),
		}); err != nil {
			return cfg, err
		}
		h.cable, devices.Uplink, devices.VNetHdr, cfg.Network = t, h.nic, headerOf(t), []protect.Network{h.nic}
	}
	if err = h.reach(); err != nil {
		return cfg, err
	}
	cfg.Peer = h.peer
	if cfg.Arbiter, h.decided, err = newArbiter(o, d, h); err == nil {
		h.guest.machine, err = o.hw.machine(o, devices)
	}
	if err == nil && o.resume != "" {
		if err = h.restore(&cfg); err != nil {
			err = errors.Join(err, h.guest.Close())
		}
	}
	if err == nil {
		if cfg.Offer, cfg.Judge, err = h.guest.cpu(); err != nil {
			err = errors.Join(err, h.closeFile(), h.guest.Close())
		}
	}
	if err != nil {
		cfg.Peer.Port.Close()
		return cfg, err
	}
	h.group.Go(func() {
		if err := cfg.Peer.Port.Serve(h.life); h.life.Err() == nil {
			h.end(fmt.Errorf("-listen: %w", err))
		}
	})
	return cfg, nil
}

// reach opens the port at which the other host reaches this one, and sets h.peer.
func (h *host) reach() error {
	o := h.o
	peer := protect.Peer{Dial: o.peer, Name: o.peerName, PortConfig: protect.PortConfig{Insecure: o.insecure}}
	if o.cert != "" {
		var err error
		if peer.TLS, err = protect.LoadTLS(o.cert, o.key, o.ca); err != nil {
			return err
		}
	}
	if o.hw.dial != nil {
		peer.Dial, peer.Dialer = "", func(ctx context.Context) (net.Conn, error) { return o.hw.dial(ctx, o.peer) }
	}
	if o.peer == "" {
		peer.Dialer = func(context.Context) (net.Conn, error) { return nil, errNoPeer }
	}
	var l net.Listener = nowhere(make(chan struct{}))
	if o.on != "" {
		var err error
		if l, err = net.Listen("tcp", o.on); err != nil {
			return cli.Listening("-listen", err)
		}
		h.p.phase("listening", "on %v", l.Addr())
	}
	var err error
	peer.Port, err = protect.NewPort(l, peer.PortConfig)
	h.peer = peer
	return err
}

// diskGrown tells the guest that its disk has become longer. The job calls it, which is made after the machine.
func (h *host) diskGrown(size int64) {
	if err := h.guest.DiskGrown(size); err != nil {
		h.p.say("the guest is not told that its disk has %d bytes: %s", size, oneLine(err))
		return
	}
	h.p.phase("grown", "the guest's disk has %d bytes", size)
}

// ask asks the other host how it stands, once.
func (h *host) ask(ctx context.Context) (protect.Standing, error) {
	if h.o.peer == "" {
		return protect.Standing{}, errNoPeer
	}
	ctx, cancel := context.WithTimeout(ctx, h.o.lost/2)
	defer cancel()
	return protect.Ask(ctx, h.peer, h.o.name, h.o.host)
}

// nowhere is the listener of a host without -listen: it accepts nothing. Such a host has the
// guest until it ends, or gives the guest away for good.
type nowhere chan struct{}

func (n nowhere) Accept() (net.Conn, error) { <-n; return nil, net.ErrClosed }
func (n nowhere) Addr() net.Addr            { return &net.TCPAddr{} }

func (n nowhere) Close() error {
	defer func() { recover() }() // it is closed more than once
	close(n)
	return nil
}

// runGuest runs the machine until the guest has ended for good.
func (h *host) runGuest() {
	defer threads.More(h.o.vcpus)()
	err := h.guest.run(h.life, func(ctx context.Context, how string) error {
		for {
			s, err := h.job.Load().Wait(ctx, protect.Alone, protect.Synchronising, protect.Protected, protect.Paused, protect.Cancelled)
			if err != nil {
				return err
			}
			if s == protect.Concluded {
				return errEnded
			}
			h.p.willEnd()
			if err = h.complete(ctx); err == nil {
				h.p.phase("ended", "%s", how)
				h.end(errEnded)
				return nil
			}
			h.p.say("the guest has ended: %v", err)
			select {
			case <-time.After(retry):
			case <-ctx.Done():
				return err
			}
		}
	})
	if err != nil && h.life.Err() == nil {
		h.end(err) // the other host has a guest that is well
	}
}

// retry is the pause before what could not be done is tried again.
const retry = 200 * time.Millisecond

// completeFor bounds the wait for the arbiter when the guest has ended.
const completeFor = 30 * time.Second

// complete says that there is no guest any more, on either side.
func (h *host) complete(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, completeFor)
	defer cancel()
	return h.job.Load().Complete(ctx)
}

// leave ends this side for a reason. A guest that is protected goes on at the other
// host, to which it is handed over.
func (h *host) leave(why error) {
	if h.state() == protect.Protected {
		if err := h.switchover(); err != nil {
			h.p.say("%v", err)
		}
	}
	h.end(why)
}

var errOrdered = errors.New("as ordered")

// switchover gives the guest to the other host, which this one then follows.
func (h *host) switchover() error {
	err := h.job.Load().Switchover(h.life)
	if err == nil {
		h.p.phase("switched", "the other host runs the guest, which stood still for %v", h.job.Load().Query().Stats.Downtime.Round(time.Microsecond))
	}
	return err
}

// obey carries out what the user orders by a signal, or at the console.
func (h *host) obey(ctx context.Context) {
	hand := make(chan os.Signal, 1)
	h.o.hw.notify(hand, signals.User2)
	defer signal.Stop(hand)
	for {
		select {
		case <-hand:
			h.refused(h.switchover())
		case <-h.quit:
			h.leave(errOrdered)
			return
		case <-ctx.Done():
			if errors.Is(context.Cause(ctx), errEscape) {
				h.p.willEnd()
				if err := h.complete(h.life); err != nil {
					h.p.say("%v", err)
				}
			}
			h.leave(errOrdered)
			return
		case <-h.life.Done():
			return
		}
	}
}

// press is a key after Ctrl-A.
func (h *host) press(key byte) {
	switch key {
	case 'c':
		h.refused(h.job.Load().Checkpoint())
	case 's':
		h.refused(h.switchover())
	case 'w':
		if h.o.save == "" {
			h.refused(errNoSave)
			return
		}
		h.refused(h.save(h.life, h.o.save))
	case 'i':
		h.p.say("%s", h.p.progress())
	}
}

// refused prints why an order was not carried out; nil: it was.
func (h *host) refused(err error) {
	if err != nil {
		h.p.phase("refused", "%s", oneLine(err))
	}
}

// changed is called with each new state of the job, on the goroutine of the job.
func (h *host) changed(e event.JobStatusChange) {
	h.p.changed(e)
	switch e.State {
	case protect.Alone.String():
		h.terminal.start(h.press)
		h.typing.Do(func() { go h.terminal.feed(h.life, h.guest) }) // may wait for a key for as long as the program lives
	case protect.Waiting.String(), protect.Following.String():
		h.terminal.close()
	}
}

// state, open and about ask the job, on behalf of the arbiter.
func (h *host) state() protect.State {
	if job := h.job.Load(); job != nil {
		return job.State()
	}
	return protect.Created
}

func (h *host) open() bool {
	job := h.job.Load()
	return job != nil && job.Gate().Open()
}

func (h *host) about() (mode event.Mode, epoch uint64, cause string) {
	q := h.job.Load().Query()
	if q.Session != nil {
		epoch = q.Session.Epoch
	}
	return q.Role, epoch, q.Reason
}

// farewell returns how the run of this side has ended, in words for the user.
func (h *host) farewell(err error) error {
	cause := context.Cause(h.life)
	switch {
	case errors.Is(cause, errEnded):
		return nil
	case err == nil, errors.Is(cause, errOrdered):
		h.p.phase("ended", "as ordered")
		return nil
	}
	return err
}

// status returns the network's part of a line of progress.
func (h *host) status() string {
	if f := h.figures(); f != nil {
		return fmt.Sprintf(", frames released at a match %d, at a checkpoint %d", f.Matched, f.Checkpoint)
	}
	return ""
}

// figures count the output of a primary, nil where there is none.
func (h *host) figures() *netFigures {
	if h.nic == nil {
		return nil
	}
	s, _ := h.nic.Stats()
	if s == nil {
		return nil
	}
	return &netFigures{s.Matched, s.Checkpoint, s.Diverged}
}
