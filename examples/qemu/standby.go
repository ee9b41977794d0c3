package main

import (
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/colo/standby"
	"github.com/gocolo/lockstep/event"
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
		return t.wrong("standby", fmt.Errorf("what is %q? (the QEMU comes after --)", o.qemu[0]))
	}
	if err := o.check(); err != nil {
		return t.wrong("standby", err)
	}
	return newStandby(o, t).main(ctx)
}

func newStandby(o standbyOptions, t terminal) *standbyRun {
	s := &standbyRun{standbyOptions: o, p: &printer{terminal: t, json: o.json}, guest: standby.New(standby.Config{MaxRAM: o.maxRAM << 20})}
	s.keeper = &keeper{s.guest, s}
	s.loader = s.keeper
	return s
}

func (s *standbyRun) main(ctx context.Context) int {
	defer func() { s.guest.Close() }()
	if s.cleanup != nil {
		defer s.cleanup()
	}
	status, err := s.run(ctx)
	if err != nil {
		s.p.warn("%s", oneLine(err))
	}
	s.report(status, err)
	return status
}

// standbyRun is one guest that is taken in.
type standbyRun struct {
	standbyOptions
	p     *printer
	guest *standby.Guest
	conn  *watched

	// loader takes the guest in: the keeper, or what a relay puts around it.
	keeper *keeper
	loader interface {
		colo.Loader
		colo.Stage
		colo.Settler
		colo.PageCounter
	}
	events *event.Bus
	disks  *disks            // nil: none
	others replication.Group // who else must have a checkpoint before it counts

	protected bool // the primary was told that its guest is here

	lost time.Time    // when the session had ended
	last standby.Info // the guest then
	file string       // where the state was left
	kept []string     // files of earlier checkpoints, oldest first

	brought time.Duration // from the loss to the guest running again

	// committed, if set, is called after each checkpoint, when the primary's
	// guest runs again.
	committed func(epoch uint64)

	// handOver, if set, lets somebody else go on with the guest of a lost
	// primary; it returns false if there is nobody.
	handOver func(context.Context) (bool, error)

	// cleanup, if set, is called before the guest's memory is freed.
	cleanup func()
}

func (s *standbyRun) run(ctx context.Context) (int, error) {
	if err := os.MkdirAll(s.state, 0o700); err != nil {
		return exitFailed, err
	}
	var creds *tls.Config
	if s.tls != "" {
		var err error
		if creds, err = serverCreds(s.tls); err != nil {
			return exitFailed, err
		}
	}
	s.events = new(event.Bus)
	defer s.events.SubscribeAll(s.p.event)()
	defer event.Subscribe(s.events, func(event.CheckpointCommit) { s.protected = true })()
	if len(s.images) > 0 {
		var err error
		if s.disks, err = openDisks(s.images, s.nbd, creds, s.events); err != nil {
			return exitFailed, err
		}
		defer s.disks.close()
		s.p.say("waiting     for the disks at %s", s.disks.uri)
		s.p.object(map[string]string{"disks": s.disks.uri})
	}
	addr := s.listen
	for {
		l, uri, err := listen(addr)
		if err != nil {
			return exitFailed, err
		}
		s.p.say("waiting     for a primary: migrate %s", uri)
		s.p.object(map[string]string{"listening": uri})
		conn, err := accept(ctx, l, creds, s.refused)
		if err != nil {
			return s.interrupted(ctx, exitFailed), err
		}
		s.p.say("connected   %s", peer(conn))
		err = s.session(ctx, conn)
		s.lost = time.Now()
		if err == nil || s.protected || ctx.Err() != nil || s.disks.begun() {
			return s.after(ctx, err)
		}
		// It may have been anybody, and there was nothing to lose yet.
		s.refused(err)
		if err := s.anew(); err != nil {
			return exitFailed, err
		}
		addr = uri
	}
}

// refused tells of a connection that came to nothing.
func (s *standbyRun) refused(err error) {
	s.p.warn("not protected: %s", oneLine(err))
	s.p.object(map[string]string{"refused": err.Error()})
}

// anew forgets a guest that was not received whole.
func (s *standbyRun) anew() error {
	err := s.guest.Close()
	s.guest = standby.New(standby.Config{MaxRAM: s.maxRAM << 20})
	s.keeper.Guest = s.guest
	return err
}

// session keeps the guest until the primary is lost. It returns nil if this side
// is to go on.
func (s *standbyRun) session(ctx context.Context, conn net.Conn) error {
	s.conn = watch(conn)
	sec, err := colo.NewSecondary(s.conn, colo.SecondaryConfig{
		VM: s.guest, Loader: s.loader, RAM: s.loader, Disks: append(s.disks.group(s.conn), s.others...),
		Events: s.events, Arbiter: colo.ArbiterFunc(s.arbitrate),
		PeerTimeout: s.peer, IdleTimeout: s.idle,
	})
	if err != nil {
		return err
	}
	order := make(chan os.Signal, 1)
	signal.Notify(order, syscall.SIGUSR1)
	ended := make(chan struct{})
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		for {
			select {
			case <-order:
				if err := sec.Fenced(); err != nil {
					s.p.warn("SIGUSR1: %v", err)
				}
			case <-ended:
				return
			}
		}
	}()
	err = sec.Run(ctx)
	signal.Stop(order)
	close(ended)
	<-watched
	return err
}

// arbitrate decides whether the primary is dead.
func (s *standbyRun) arbitrate(ctx context.Context, c colo.Claim) error {
	if s.fence == "" {
		if s.conn.closed.Load() {
			return nil
		}
		return fmt.Errorf("%w: the primary may be alive, and there is no -fence to make sure", colo.ErrRefused)
	}
	s.p.say("fencing     %s", s.fence)
	cmd := exec.CommandContext(ctx, "sh", "-c", s.fence)
	cmd.Env = append(os.Environ(), "LOCKSTEP_EPOCH="+strconv.FormatUint(c.Epoch, 10), "LOCKSTEP_CAUSE="+c.Cause.Error())
	cmd.WaitDelay = time.Second
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: -fence: %w: %s", colo.ErrRefused, err, strings.TrimSpace(string(out)))
	}
	return nil
}

// after does what is left to do when the session has ended.
func (s *standbyRun) after(ctx context.Context, cause error) (int, error) {
	var err error
	if cause != nil && !s.protected {
		return s.interrupted(ctx, exitFailed), fmt.Errorf("there is no guest to bring back: %w", cause)
	}
	if s.last, err = s.guest.Info(); err != nil {
		return s.interrupted(ctx, exitFailed), fmt.Errorf("there is no guest to bring back: %w", cause)
	}
	if err := s.disks.rollBack(); err != nil {
		return exitFailed, errors.Join(err, s.leave())
	}
	if err := s.disks.close(); err != nil { // they are the guest's now
		return exitFailed, errors.Join(err, s.leave())
	}
	if cause == nil && s.handOver != nil {
		done, err := s.handOver(ctx)
		if err != nil {
			s.p.warn("%s", oneLine(err))
		}
		if done {
			if err != nil {
				return exitFailed, nil
			}
			return exitOK, nil
		}
	}
	if cause == nil && len(s.qemu) > 0 {
		return s.bringBack(ctx)
	}
	if err := s.leave(); err != nil {
		return exitFailed, err
	}
	switch {
	case cause == nil:
		return exitOK, nil
	case errors.Is(cause, colo.ErrRefused):
		return exitUnfenced, cause
	}
	return s.interrupted(ctx, exitFailed), cause
}

func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }

func (s *standbyRun) interrupted(ctx context.Context, otherwise int) int {
	if ctx.Err() != nil {
		return exitInterrupted
	}
	return otherwise
}

// report ends the JSON lines.
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
