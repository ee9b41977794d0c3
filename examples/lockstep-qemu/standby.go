package main

import (
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/colo/metrics"
	"github.com/gocolo/lockstep/colo/standby"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/failover"
	"github.com/gocolo/lockstep/internal/cli"
	"github.com/gocolo/lockstep/internal/signals"
	"github.com/gocolo/lockstep/replication"
)

func standbyCommand(ctx context.Context, args []string, t terminal) int {
	var o standbyOptions
	f := flag.NewFlagSet("standby", flag.ContinueOnError)
	o.flags(f)
	if status, done := parse(f, aboutStandby, args, t, true); done {
		return status
	}
	if o.qemu = f.Args(); len(o.qemu) > 0 && !slices.Contains(args, "--") {
		return t.wrong("standby", fmt.Errorf("unexpected argument %q (the QEMU comes after --)", o.qemu[0]))
	}
	if err := o.check(); err != nil {
		return t.wrong("standby", err)
	}
	return newStandby(o, t).main(ctx)
}

func newStandby(o standbyOptions, t terminal) *standbyRun {
	s := &standbyRun{
		standbyOptions: o, p: &printer{terminal: t, json: o.json}, guest: standby.New(standby.Config{MaxRAM: o.maxRAM << 20}),
		orders: make(chan order),
	}
	s.heard, s.tries = newHeard(s.p), &rehearsals{s: s}
	s.present.Store(s.guest)
	s.keeper = &keeper{s.guest, s}
	s.loader = s.keeper
	return s
}

func (s *standbyRun) main(ctx context.Context) int {
	defer func() {
		s.tries.end()
		s.guest.Close()
		if s.reserve {
			os.Remove(filepath.Join(s.state, reserved))
		}
	}()
	if s.cleanup != nil {
		defer s.cleanup()
	}
	status, err := s.run(ctx)
	err = interrupted(ctx, err)
	s.giveBack("the guest does not run here any more")
	if err != nil {
		s.p.warn("%s", err)
	}
	s.report(status, err)
	return status
}

// standbyRun is a run of the command standby. It keeps one guest after another; most runs
// keep one.
type standbyRun struct {
	standbyOptions
	p     *printer
	guest *standby.Copy
	conn  *watched // of the session, or the last one; nil: none yet
	heard *heard

	orders chan order // orders of an operator; each wait takes them
	tries  *rehearsals

	command fencer // runs -fence

	arbiterOf failover.Arbiter // nil: none
	token     string           // the token of this process's claims at the arbiter
	began     failover.Record  // when the session did
	granted   failover.Grant   // zero: none

	// loader receives the guest: the keeper, or what a relay puts around it.
	keeper *keeper
	loader interface {
		colo.Loader
		colo.Stage
		colo.Settler
		colo.PageCounter
	}
	events *event.Bus
	disks  *disks            // nil: none
	others replication.Group // others that must have a checkpoint before it counts

	tally    tally
	recorder metrics.Recorder             // figures from events, for /metrics
	present  atomic.Pointer[standby.Copy] // guest, for goroutines that only read its Info

	strangers once // why connections have begun no migration

	protected bool // the primary was told that its guest is here
	epoch     atomic.Uint64

	placing sync.Mutex // guards place and qemu, which an operator may change
	place   string     // instead of state, for the guest

	lost time.Time    // when the session had ended
	last standby.Info // the guest then
	file string       // where the state was left
	kept []string     // files of earlier checkpoints, oldest first

	decision atomic.Pointer[string] // what is waited for, where the session has ended; nil: nothing

	stuck   atomic.Pointer[string] // what was told of a QEMU that is given the guest; nil: nothing
	brought time.Duration          // from the loss to the guest running again

	// committed, if set, is called after each checkpoint, when the primary's
	// guest runs again.
	committed func(epoch uint64)

	// handOver, if set, lets somebody else go on with the guest of a lost
	// primary; it returns false if there is nobody.
	handOver func(context.Context) (bool, error)

	// secondariesOf, if set, says how it stands with a relay's secondaries. It is called
	// from any goroutine.
	secondariesOf func() []secondaryStatus

	// cleanup, if set, is called before the guest's memory is freed.
	cleanup func()
}

func (s *standbyRun) run(ctx context.Context) (int, error) {
	if err := os.MkdirAll(s.state, 0o700); err != nil {
		return exitFailed, cli.Opening("-state", "", err)
	}
	var creds *certificates
	var err error
	if s.tls != "" {
		if creds, err = newCertificates("-tls", s.tls, serverCreds, s.p); err != nil {
			return exitFailed, err
		}
	}
	arb, end, err := openArbiter(s.arbiter, s.p)
	if err != nil {
		return exitFailed, err
	}
	defer end()
	s.arbiterOf = arb
	s.token = tokenOf("unix:" + filepath.Join(s.state, "qmp"))
	s.kept = keptIn(s.state)
	serving, stop := context.WithCancel(ctx)
	var served sync.WaitGroup
	defer served.Wait()
	defer stop()
	defer s.tries.end() // whoever has ordered one is being served
	if err := s.serve(serving, &served, creds.server()); err != nil {
		return exitFailed, err
	}
	s.events = new(event.Bus)
	defer s.events.SubscribeAll(func(r event.Record) {
		if !s.json && interruptedBy(ctx, r) {
			return // that it was interrupted is told in the end
		}
		s.p.event(r)
	})()
	defer s.events.SubscribeAll(s.recorder.Record)()
	defer event.Subscribe(s.events, func(c event.CheckpointCommit) {
		s.epoch.Store(c.Epoch)
		s.tally.committed.Store(time.Now().UnixNano())
		if !s.protected {
			s.protected = true
			s.first()
			if s.rehearse {
				s.tries.begin(nil)
			}
		}
	})()
	defer func() { s.disks.close() }()
	if len(s.kept) > 0 {
		s.offer()
	}
	for addr, nbd := s.listen, s.nbd; ; {
		if len(s.images) > 0 && s.disks == nil {
			if s.disks, err = openDisks(s.images, nbd, creds.server(), s.events, s.guestLog()); err != nil {
				return exitFailed, err
			}
			nbd = s.disks.uri
			s.p.say("waiting     for the disks at %s", s.disks.uri)
			s.p.object(map[string]string{"disks": s.disks.uri})
		}
		l, uri, err := listen(addr)
		if err != nil {
			return exitFailed, cli.Listening("-listen", err)
		}
		addr = uri
		waiting := func() {
			s.p.say("waiting     for a primary: migrate %s", uri)
			s.p.object(map[string]string{"listening": uri})
		}
		waiting()
		s.heard.idle()
		conn, want, err := s.acceptPrimary(ctx, l, creds.server(), func(err error) {
			if s.stranger(err) {
				waiting()
			}
		})
		switch {
		case err != nil:
			return s.interrupted(ctx, exitFailed), err
		case want != nil:
			return s.fromKept(ctx, want)
		}
		s.p.say("connected   %s", peer(conn))
		err = s.session(ctx, conn)
		s.lost = time.Now()
		if s.protected {
			s.strangers.again()
		}
		switch {
		case err == nil || ctx.Err() != nil:
			return s.after(ctx, err)
		case s.protected && s.control != "" && errors.Is(err, errForget):
			s.forget(err)
		case s.protected || s.disks.begun() && s.control == "":
			return s.after(ctx, err)
		default: // it may have been anybody, and there was nothing to lose yet
			s.refused(err)
		}
		if err := s.anew(); err != nil {
			return exitFailed, err
		}
	}
}

// serve begins to take orders and guardians.
func (s *standbyRun) serve(ctx context.Context, all *sync.WaitGroup, creds *tls.Config) error {
	l, err := listenForOrders(s.state, "standby")
	switch {
	case errors.Is(err, syscall.EADDRINUSE): // it lives: the socket of a dead one is taken over
		return inUse(s.state, "standby or relay")
	case err != nil:
		s.p.warn("orders are taken by signals only: %v", err)
	default:
		all.Go(func() { takeOrders(ctx, l, s.orders, s.status) })
	}
	if s.control != "" {
		l, uri, err := listen(s.control)
		if err != nil {
			return cli.Listening("-control", err)
		}
		s.p.say("waiting     for a guardian at %s", uri)
		s.p.object(map[string]string{"control": uri})
		all.Go(func() { s.heard.serve(ctx, l, creds) })
	}
	if s.http != "" {
		if err := (&page{role: "standby", status: s.status, metrics: s.metrics}).begin(ctx, all, s.http, s.p); err != nil {
			return err
		}
	}
	orders := make(chan os.Signal, 1)
	signal.Notify(orders, signals.User1)
	all.Go(func() {
		defer signal.Stop(orders)
		for {
			select {
			case <-orders:
			case <-ctx.Done():
				return
			}
			got := make(chan answer, 1)
			select {
			case s.orders <- order{Do: "promote", answer: got}:
				if a := <-got; a.Error != "" {
					s.p.warn("SIGUSR1: %s", a.Error)
				}
			case <-ctx.Done():
				return
			}
		}
	})
	return nil
}

// refused prints why a connection was refused.
func (s *standbyRun) refused(err error) {
	s.tally.refused.Add(1)
	s.p.warn("not protected: %s", err)
	s.p.object(map[string]string{"refused": err.Error()})
}

// stranger counts a connection that has begun no migration, and prints why it was refused, unless that was
// printed since a primary was there last: whoever can connect would fill a log otherwise. It reports whether
// it has printed anything.
func (s *standbyRun) stranger(err error) bool {
	if !s.strangers.first(err.Error()) {
		s.tally.refused.Add(1)
		return false
	}
	s.refused(err)
	return true
}

// forget prints why the copy is not used.
func (s *standbyRun) forget(err error) {
	s.tally.forgotten.Add(1)
	s.p.say("forgotten   %s", strings.TrimPrefix(oneLine(err), colo.ErrRefused.Error()+": "+errForget.Error()+": "))
	s.p.object(map[string]string{"forgotten": err.Error()})
}

// anew drops a guest that was not received whole, or that goes on elsewhere, and prepares for
// the next.
func (s *standbyRun) anew() error {
	s.tries.end()
	if s.cleanup != nil && s.protected {
		s.cleanup()
	}
	err := s.guest.Close()
	s.guest = standby.New(standby.Config{MaxRAM: s.maxRAM << 20})
	s.present.Store(s.guest)
	s.tally.committed.Store(0)
	s.keeper.Copy = s.guest
	s.protected = false
	if s.disks.begun() {
		err = errors.Join(err, s.disks.rollBack(), s.disks.close())
		s.disks = nil
	}
	s.disks.letIn()
	return err
}

// session keeps the guest until the primary is lost. It returns nil if this side
// is to go on.
func (s *standbyRun) session(ctx context.Context, conn *watched) error {
	s.conn, s.lost = conn, time.Time{}
	if err := conn.probe(s.peer); err != nil {
		s.p.warn("a primary's host without power is noticed late: %v", err)
	}
	if s.arbiterOf != nil {
		ask, cancel := context.WithTimeout(ctx, 5*time.Second)
		r, err := s.arbiterOf.Record(ask)
		cancel()
		if err != nil {
			conn.Close()
			return fmt.Errorf("the arbiter: %w", err)
		}
		s.began = r
	}
	s.heard.begin(func() (uint64, uint64) { return s.epoch.Load(), conn.received.Load() })
	sec, err := colo.NewSecondary(s.conn, colo.SecondaryConfig{
		VM: s.guest, Loader: s.loader, RAM: s.loader, Disks: append(s.disks.group(s.conn), s.others...),
		Events: s.events, Arbiter: colo.ArbiterFunc(s.arbitrate),
		PeerTimeout: s.peer, IdleTimeout: s.idle, Logger: s.sessionLog(),
	})
	if err != nil {
		return err
	}
	ended := make(chan struct{})
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		for {
			_, _, changed := s.heard.evidence()
			select {
			case o := <-s.orders:
				if o.Do == "rehearse" {
					s.tries.begin(o.answer)
				} else {
					o.reply(s.promoted(o, sec))
				}
			case <-changed:
				if err := s.heard.over(); err != nil {
					sec.Lost(err)
				}
			case <-ended:
				return
			}
		}
	}()
	err = sec.Run(ctx)
	close(ended)
	<-watched
	return err
}

// after is called when the session has ended: it brings the guest back, writes it to a file,
// or drops it.
func (s *standbyRun) after(ctx context.Context, cause error) (int, error) {
	var err error
	if cause != nil && !s.protected {
		return s.interrupted(ctx, exitFailed), fmt.Errorf("there is no guest to bring back: %w", cause)
	}
	if s.last, err = s.guest.Info(); err != nil {
		return s.interrupted(ctx, exitFailed), fmt.Errorf("there is no guest to bring back: %w", cause)
	}
	if cause == nil {
		s.tally.takeovers.Add(1)
		s.heard.goOn(s.granted.Generation)
	}
	err = errors.Join(s.disks.rollBack(), s.disks.close()) // the QEMU that goes on with the guest opens them next
	if err != nil {
		_, e := s.settle(ctx, false)
		return exitFailed, errors.Join(err, e)
	}
	if cause == nil && s.handOver != nil {
		done, err := s.handOver(ctx)
		if err != nil {
			s.p.warn("%s", err)
		}
		if done {
			if err != nil {
				return exitFailed, nil
			}
			return exitOK, nil
		}
	}
	if status, err := s.settle(ctx, cause == nil); cause == nil || err != nil {
		return status, err
	}
	switch {
	case errors.Is(cause, errForget):
		s.forget(cause)
		if e, _, _ := s.heard.evidence(); e.Word == standby.Planned {
			return exitOK, nil
		}
		return exitUnfenced, cause
	case errors.Is(cause, colo.ErrRefused):
		return exitUnfenced, cause
	}
	return s.interrupted(ctx, exitFailed), cause
}

func (s *standbyRun) interrupted(ctx context.Context, otherwise int) int {
	if ctx.Err() != nil {
		return exitInterrupted
	}
	return otherwise
}

// report prints the last of the JSON lines.
func (s *standbyRun) report(status int, err error) {
	r := map[string]any{"status": status}
	if in := s.last; in.Machine != "" {
		r["epoch"], r["machine"], r["ram"], r["staged"] = in.Epoch, in.Machine, in.RAM, in.Staging
	}
	if err != nil {
		r["error"] = err.Error()
	}
	if s.file != "" {
		r["state"] = s.file
	}
	if s.brought > 0 {
		r["brought-back-ms"] = float64(s.brought) / float64(time.Millisecond)
	}
	s.p.object(map[string]any{"standby": r})
}
