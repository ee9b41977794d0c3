package main

import (
	"context"
	"crypto/tls"
	"errors"
	"os"
	"os/signal"
	"sync"
	"time"

	"github.com/gocolo/lockstep/internal/signals"
	"github.com/gocolo/lockstep/kvm/gokvmhost"
)

// A roamer is one host's side of a guest that is not protected and may move: the host has the
// guest, or waits for it.
type roamer struct {
	o        options
	terminal *console
	p        *printer
	secure   *tls.Config // nil: plain connections
	disk     *movingDisk // nil: none
	solo     *solo       // nil: the guest is not here yet
	begun    bool        // it has run here

	leave   chan struct{}   // capacity one: an order to move the guest
	goOn    chan struct{}   // capacity one: a person's word that it is nowhere else
	ordered context.Context // ends with an order to end

	arriving chan *arrival // capacity one

	mu       sync.Mutex
	busy     bool // a guest is here, or arriving
	arrivals map[string]*arrival
	order    []string // of arrivals, oldest first

	life  context.Context // of all goroutines
	group sync.WaitGroup
}

var (
	errMoving = errors.New("the guest is on its way already")
	errAlone  = errors.New("no -peer was given")
)

// runRoaming runs a guest that starts here and may move (migrate), or comes from another host
// (receive).
func runRoaming(ctx context.Context, o options, c *console, p *printer) (err error) {
	if err := o.hw.probe(); err != nil {
		return err
	}
	r := &roamer{
		o: o, terminal: c, p: p, disk: moving(o, p), ordered: ctx,
		leave: make(chan struct{}, 1), goOn: make(chan struct{}, 1), arriving: make(chan *arrival, 1), arrivals: make(map[string]*arrival),
	}
	if r.secure, err = security(o); err != nil {
		return err
	}
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	r.life = life
	defer func() {
		end()
		r.group.Wait()
		select {
		case a := <-r.arriving: // nobody has taken it
			a.link.Close()
		default:
		}
	}()
	defer func() { // the guest's last write is stable when the other host is not asked any more
		if r.solo != nil {
			err = errors.Join(err, r.solo.close())
		}
		err = errors.Join(err, r.disk.give())
	}()
	if o.mode == modeReceive {
		if err := r.disk.there(); err != nil {
			return err
		}
		l, e := r.listen()
		if e != nil {
			return e
		}
		r.group.Go(func() { r.accept(l) })
		defer l.Close()
		err = r.await()
	} else {
		err = r.start()
	}
	if err != nil || r.solo == nil {
		return err
	}
	return r.keep()
}

// start starts the guest here.
func (r *roamer) start() (err error) {
	if err := r.disk.here(); err != nil {
		return err
	}
	var storage gokvmhost.Disk // nil, not a nil *movingDisk
	if r.disk != nil {
		storage = r.disk
	}
	if r.solo, err = newSolo(r.life, r.o, r.terminal, r.p, storage); err != nil {
		return err
	}
	r.begun = true
	if err := r.solo.begin(r.life, r.press); err != nil {
		return err
	}
	r.p.phase("started", "the guest runs here, and moves to -peer with Ctrl-A s, or SIGUSR2")
	return nil
}

// await waits until a guest has come. Without one, there was an order to end.
func (r *roamer) await() error {
	for {
		select {
		case a := <-r.arriving:
			err := r.take(a)
			if err == nil {
				return nil
			}
			if r.begun || errors.Is(err, errNoDisk) {
				return err
			}
			r.p.phase("trouble", "the guest that was to come stays where it is: %s", oneLine(err))
		case <-r.ordered.Done():
			r.p.phase("ended", "as ordered")
			return nil
		}
	}
}

// keep runs the guest here until it ends or has moved.
func (r *roamer) keep() error {
	hand := make(chan os.Signal, 1)
	r.o.hw.notify(hand, signals.User2)
	defer signal.Stop(hand)
	var d *departure
	var gone chan struct{} // of d
	move := func() {
		switch {
		case r.o.peer == "":
			r.p.phase("refused", "%v", errAlone)
		case d != nil:
			r.p.phase("refused", "%v", errMoving)
		default:
			var err error
			if d, err = r.depart(); err != nil {
				d = nil
				r.p.phase("refused", "the guest runs on here: %s", oneLine(err))
				return
			}
			gone = d.done
		}
	}
	for {
		select {
		case <-hand:
			move()
		case <-r.leave:
			move()
		case <-gone:
			if d.err == nil || errors.Is(d.err, errNowhere) {
				r.solo.drain()
				return d.err
			}
			r.p.phase("trouble", "%s", oneLine(d.err))
			d, gone = nil, nil
		case err := <-r.solo.ended:
			if d != nil {
				d.cancel()
				<-d.done
			}
			return r.solo.finish(err)
		case <-r.ordered.Done():
			if d != nil {
				d.cancel()
				<-d.done
				if d.err == nil || errors.Is(d.err, errNowhere) {
					r.solo.drain()
					return d.err
				}
			}
			r.p.phase("ended", "as ordered")
			return nil
		}
	}
}

// press is a key after Ctrl-A.
func (r *roamer) press(key byte) {
	order := map[byte]chan struct{}{'s': r.leave, 'g': r.goOn}[key]
	select {
	case order <- struct{}{}:
	default: // it is on its way
	}
}

// describe returns the moveHello that describes the guest that is here.
func (r *roamer) describe() moveHello {
	h := moveHello{
		Version: moveVersion, Guest: r.o.name, Machine: machineType, Memory: r.o.mem, VCPUs: r.o.vcpus,
		Card: r.solo.cable != nil, Disk: r.disk.bytes(), Postcopy: r.o.postcopy,
	}
	if h.Card {
		h.Header = headerOf(r.solo.cable)
	}
	return h
}

// report says now and then what line returns, until stop is called.
func (r *roamer) report(line func() string) (stop func()) {
	ctx, cancel := context.WithCancel(r.life)
	var said sync.WaitGroup
	said.Go(func() {
		if r.o.progress == 0 {
			return
		}
		tick := time.NewTicker(r.o.progress)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
			r.p.object(map[string]string{"progress": line()})
			if !r.terminal.raw() { // the guest's screen is its own
				r.p.say("%s", line())
			}
		}
	})
	return func() {
		cancel()
		said.Wait()
	}
}

// roamingVM is the guest as package migrate sees it: its disk and its console go with it.
type roamingVM roamer

// Pause implements migrate.VM. From now on the disk belongs to the other host.
func (v *roamingVM) Pause(ctx context.Context) error {
	if err := v.solo.pause(ctx); err != nil {
		return err
	}
	v.solo.drain() // what it says on the other host comes behind what it has said here
	err := v.disk.give()
	if v.solo.over.Load() {
		err = errors.Join(err, errEnded)
	}
	if err != nil {
		err = errors.Join(err, v.Resume(ctx))
	}
	return err
}

// Resume implements migrate.VM.
func (v *roamingVM) Resume(ctx context.Context) error {
	if err := v.disk.take(v.life, v.ordered); err != nil {
		return err
	}
	if v.begun {
		return v.solo.resume(ctx)
	}
	v.begun = true
	return v.solo.begin(ctx, (*roamer)(v).press)
}
