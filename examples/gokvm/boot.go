package main

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"time"

	"github.com/gocolo/lockstep/colo/proxy"
	"github.com/gocolo/lockstep/kvm/gokvmhost"
)

// boot runs a guest that nobody protects.
func boot(ctx context.Context, o options, c *console, p *printer) (err error) {
	if err := o.hw.probe(); err != nil {
		return err
	}
	d, err := openDisk(o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.close()) }()
	t, err := openCable(o)
	if err != nil {
		return err
	}
	var group sync.WaitGroup
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	defer group.Wait()
	defer end()

	g := newGuest()
	var nic *proxy.Primary // that has no session: all passes
	devices := gokvmhost.Config{Console: c, MAC: o.mac}
	if t != nil {
		nic = proxy.NewPrimary(proxy.PrimaryConfig{VM: g, Deliver: g.receive, VNetHdr: headerOf(t)})
		devices.Uplink, devices.VNetHdr = nic, headerOf(t)
		group.Go(func() {
			if err := nic.Run(life, t); life.Err() == nil {
				p.say("the network: %v", err)
			}
		})
	}
	if d != nil {
		devices.Disk = d.view()
	}
	if g.machine, err = o.hw.machine(o, devices); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, g.Close()) }()
	ended := make(chan error, 1)
	group.Go(func() {
		defer moreThreads(o.vcpus)()
		ended <- g.machine.Run(life)
	})
	defer func() { // the machine is closed when nothing uses it any more
		end()
		group.Wait()
		c.close()
	}()
	c.start(func(key byte) {
		if key == 'i' {
			p.say("%s", p.progress())
		}
	})
	go c.feed(life, g) // may wait for a key for as long as the program lives
	if err := resume(ctx, g, nic); err != nil {
		return err
	}
	select {
	case err := <-ended:
		how := howEnded(err)
		if how == "" {
			return err
		}
		if nic != nil {
			ctx, cancel := context.WithTimeout(life, drainTimeout)
			defer cancel()
			nic.Drain(ctx) // what it has said last
		}
		p.phase("ended", "%s", how)
	case <-ctx.Done():
		p.phase("ended", "as ordered")
	}
	return nil
}

// resume lets the guest run, by way of its network, which must know.
func resume(ctx context.Context, g *guest, nic *proxy.Primary) error {
	if nic != nil {
		return nic.Resume(ctx)
	}
	return g.Resume(ctx)
}

// drainTimeout is how long an ended guest's last frames may take to leave.
const drainTimeout = 5 * time.Second

// moreThreads lets the runtime run Go code beside that many vCPUs: a thread that
// comes back from the guest is to find a place for it. What it returns undoes that.
func moreThreads(vcpus int) (undo func()) {
	runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + vcpus)
	return func() { runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) - vcpus) }
}

// openCable opens the interface of the guest's network card, nil for none.
func openCable(o options) (cable, error) {
	if o.tap == "" {
		return nil, nil
	}
	c, err := o.hw.cable(o)
	if err != nil {
		return nil, fmt.Errorf("-tap: %w", err)
	}
	return c, nil
}
