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
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/colo/standby"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/qemufile"
)

const aboutStandby = `usage: qemu standby -listen ADDR -state DIR [flags] [-- qemu-system-x86_64 ...]

Standby is a secondary for a QEMU primary that runs no guest: it keeps the
primary's memory and device state, checkpoint by checkpoint, whatever the devices
are. It costs the guest's memory and the largest checkpoint, and no processor.

When the primary is lost, the guest is brought back from the last whole
checkpoint: the QEMU after -- is started with it, with -incoming and a monitor
(DIR/qmp) added; it must have the machine and devices of the primary's. Without
one, the state is left in DIR/guest, to be used as

    qemu-system-x86_64 ... -incoming "exec:cat DIR/guest"

A connection that is closed counts as a primary that is dead. That is so when its
process or host has died, but not when its operator has given it
x-colo-lost-heartbeat, nor when the network has reset the connection: name a
-fence that makes sure where that can happen, or two guests may run. A primary
that is only silent, or talks nonsense, is not taken for dead without a -fence.

SIGUSR1 brings the guest back at once, as an operator's order. SIGINT and SIGTERM
end the standby and leave the state in DIR/guest.

On the primary (or: qemu protect -qmp ADDR -to ADDR):
    migrate_set_capability x-colo on, return-path off; migrate -d tcp:HOST:PORT
`

type standbyOptions struct {
	listen, state string
	keep          int
	json          bool
	fence         string
	tls           string
	peer, idle    time.Duration
	maxRAM        uint64 // MB
	qemu          []string
}

func (o *standbyOptions) flags(f *flag.FlagSet) {
	f.StringVar(&o.listen, "listen", "", "take the primary at `ADDR`")
	f.StringVar(&o.state, "state", "", "`DIR` for what is left behind")
	f.IntVar(&o.keep, "keep", 0, "keep the last `N` checkpoints in DIR, each a whole stream; the next one waits until it is written")
	f.BoolVar(&o.json, "json", false, "print events as JSON lines")
	f.StringVar(&o.fence, "fence", "", "shell `COMMAND` that succeeds when the primary surely does not run any more")
	f.StringVar(&o.tls, "tls", "", "TLS with the certificates in `DIR`, named as for QEMU's tls-creds-x509: ca-cert.pem, server-cert.pem, server-key.pem")
	f.DurationVar(&o.peer, "peer-timeout", colo.DefaultPeerTimeout, "a primary that makes no progress in a checkpoint for so long is silent")
	f.DurationVar(&o.idle, "idle-timeout", 5*time.Minute, "a primary that begins no checkpoint for so long is silent; more than its x-checkpoint-delay")
	f.Uint64Var(&o.maxRAM, "max-ram", 0, "take no guest of more than so many `MB`")
}

func (o *standbyOptions) check() error {
	switch {
	case o.listen == "":
		return errors.New("-listen is missing")
	case o.state == "":
		return errors.New("-state is missing")
	case o.keep < 0:
		return errors.New("-keep cannot be negative")
	case slices.Contains(o.qemu, "-incoming"):
		return errors.New("-incoming is added to the QEMU's arguments, leave it out")
	}
	if len(o.qemu) > 0 {
		if _, err := exec.LookPath(o.qemu[0]); err != nil {
			return err
		}
	}
	return nil
}

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
	return &standbyRun{standbyOptions: o, p: &printer{terminal: t, json: o.json}, guest: standby.New(standby.Config{MaxRAM: o.maxRAM << 20})}
}

func (s *standbyRun) main(ctx context.Context) int {
	defer s.guest.Close()
	if s.cleanup != nil {
		defer s.cleanup()
	}
	status, err := s.run(ctx)
	if err != nil {
		s.p.warn("%s", strings.ReplaceAll(err.Error(), "\n", "; "))
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
	lost  time.Time    // when the session had ended
	last  standby.Info // the guest then
	file  string       // where the state was left
	kept  []string     // files of earlier checkpoints, oldest first

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
	l, uri, err := listen(s.listen)
	if err != nil {
		return exitFailed, err
	}
	s.p.say("waiting     for a primary: migrate %s", uri)
	s.p.object(map[string]string{"listening": uri})
	conn, err := accept(ctx, l, creds)
	if err != nil {
		return s.interrupted(ctx, exitFailed), err
	}
	s.p.say("connected   %s", peer(conn))
	err = s.session(ctx, conn)
	s.lost = time.Now()
	return s.after(ctx, err)
}

// session keeps the guest until the primary is lost. It returns nil if this side
// is to go on.
func (s *standbyRun) session(ctx context.Context, conn net.Conn) error {
	events := new(event.Bus)
	defer events.SubscribeAll(s.p.event)()
	s.conn = &watched{Conn: conn}
	sec, err := colo.NewSecondary(s.conn, colo.SecondaryConfig{
		VM: s.guest, Loader: s.guest, RAM: &keeper{s.guest, s},
		Events: events, Arbiter: colo.ArbiterFunc(s.arbitrate),
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
				if err := sec.Failover(); err != nil {
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
		return errors.New("the primary may be alive, and there is no -fence to make sure")
	}
	s.p.say("fencing     %s", s.fence)
	cmd := exec.CommandContext(ctx, "sh", "-c", s.fence)
	cmd.Env = append(os.Environ(), "LOCKSTEP_EPOCH="+strconv.FormatUint(c.Epoch, 10), "LOCKSTEP_CAUSE="+c.Cause.Error())
	cmd.WaitDelay = time.Second
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("-fence: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}

// after does what is left to do when the session has ended.
func (s *standbyRun) after(ctx context.Context, cause error) (int, error) {
	var err error
	if s.last, err = s.guest.Info(); err != nil {
		return s.interrupted(ctx, exitFailed), fmt.Errorf("there is no guest to bring back: %w", cause)
	}
	if cause == nil && s.handOver != nil {
		done, err := s.handOver(ctx)
		if err != nil {
			s.p.warn("%s", strings.ReplaceAll(err.Error(), "\n", "; "))
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

func (s *standbyRun) interrupted(ctx context.Context, otherwise int) int {
	if ctx.Err() != nil {
		return exitInterrupted
	}
	return otherwise
}

// leave writes the state to DIR/guest.
func (s *standbyRun) leave() error {
	s.file = filepath.Join(s.state, "guest")
	if err := s.write(s.file); err != nil {
		s.file = ""
		return fmt.Errorf("the state of the guest is lost: %w", err)
	}
	s.p.say("state       of checkpoint %d (%s) is in %s; to go on from it: -incoming \"exec:cat %s\"", s.last.Epoch, s.last.Machine, s.file, s.file)
	return nil
}

// write makes a file of the last checkpoint, all or nothing.
func (s *standbyRun) write(name string) error {
	f, err := os.CreateTemp(filepath.Dir(name), ".part-")
	if err != nil {
		return err
	}
	err = s.guest.Put(qemufile.NewWriter(f))
	if err == nil {
		err = f.Sync()
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
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

// keeper writes checkpoints to disk while the primary's guest runs.
type keeper struct {
	*standby.Guest
	s *standbyRun
}

// Settle is called after each checkpoint.
func (k *keeper) Settle() error {
	if err := k.Guest.Settle(); err != nil {
		return err
	}
	if k.s.committed == nil && k.s.keep == 0 {
		return nil
	}
	in, err := k.Guest.Info()
	if err != nil {
		return err
	}
	if k.s.committed != nil {
		k.s.committed(in.Epoch)
	}
	if k.s.keep == 0 {
		return nil
	}
	name := filepath.Join(k.s.state, fmt.Sprintf("checkpoint-%d", in.Epoch))
	if err := k.s.write(name); err != nil {
		// The guest is protected all the same.
		k.s.p.warn("-keep: %v", err)
		return nil
	}
	k.s.kept = append(k.s.kept, name)
	for len(k.s.kept) > k.s.keep {
		if err := os.Remove(k.s.kept[0]); err != nil {
			k.s.p.warn("-keep: %v", err)
		}
		k.s.kept = k.s.kept[1:]
	}
	return nil
}
