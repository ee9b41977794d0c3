package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/colo/quickack"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/internal/qmp"
	"github.com/gocolo/lockstep/vmstate"
	"github.com/gocolo/lockstep/vmstate/ram"
)

const aboutRelay = `usage: qemu relay -listen ADDR -state DIR -to ADDR[,ADDR...] [flags] [-- qemu-system-x86_64 ...]

Relay is a standby that passes each checkpoint on to QEMU secondaries, each of
them started with -incoming ADDR. It answers the primary as soon as it has a
checkpoint itself, so a slow secondary does not hold the primary up: it gets the
newest checkpoint when it is ready for one. A secondary that dies is tried again,
once a second, and begins anew.

When the primary is lost, the secondaries first get the last whole checkpoint.
With -qmp, the first that has it is told to go on (x-colo-lost-heartbeat), and the
others are not: stop them. Without, that is the operator's to do, with one of them. Where none is left, the relay does what a standby does: see
qemu standby -h, also for what a lost primary is.
`

func relayCommand(ctx context.Context, args []string, t terminal) int {
	var o standbyOptions
	f := flag.NewFlagSet("relay", flag.ContinueOnError)
	o.flags(f)
	to := f.String("to", "", "pass checkpoints on to the secondaries at `ADDR[,ADDR...]`")
	monitors := f.String("qmp", "", "monitors of these secondaries, in the same order, at `ADDR[,ADDR...]`")
	delta := f.Uint64("xbzrle", 0, "keep so many `MB` of pages per secondary to send differences only; for slow links")
	if status, done := parse(f, aboutRelay, args, t, true); done {
		return status
	}
	if o.qemu = f.Args(); len(o.qemu) > 0 && !slices.Contains(args, "--") {
		return t.wrong("relay", fmt.Errorf("what is %q? (the QEMU comes after --)", o.qemu[0]))
	}
	if err := o.check(); err != nil {
		return t.wrong("relay", err)
	}
	if *to == "" {
		return t.wrong("relay", errors.New("-to is missing"))
	}
	r := &relayRun{}
	for _, addr := range strings.Split(*to, ",") {
		r.secondaries = append(r.secondaries, &follower{r: r, addr: addr, xbzrle: *delta << 20})
	}
	if *monitors != "" {
		list := strings.Split(*monitors, ",")
		if len(list) != len(r.secondaries) {
			return t.wrong("relay", fmt.Errorf("-qmp names %d monitors of %d secondaries", len(list), len(r.secondaries)))
		}
		for i, m := range list {
			r.secondaries[i].monitor = m
		}
	}
	r.standbyRun = newStandby(o, t)
	r.committed, r.handOver = r.passOn, r.promote
	return r.main(ctx)
}

// relayRun is a standby with secondaries of its own.
type relayRun struct {
	*standbyRun
	secondaries []*follower

	ctx     context.Context
	stop    context.CancelFunc
	running sync.WaitGroup
}

func (r *relayRun) main(ctx context.Context) int {
	r.ctx, r.stop = context.WithCancel(context.WithoutCancel(ctx))
	r.cleanup = r.end
	return r.standbyRun.main(ctx)
}

// end ends the sessions with the secondaries.
func (r *relayRun) end() {
	r.stop()
	r.running.Wait()
}

// passOn is called after each checkpoint, the initial one first.
func (r *relayRun) passOn(epoch uint64) {
	for _, s := range r.secondaries {
		if epoch == 0 {
			r.running.Go(func() { s.run(r.ctx) })
		}
		s.request()
	}
}

// promote lets one of the secondaries go on: the first that has the last
// checkpoint. It returns false if there is none.
func (r *relayRun) promote(ctx context.Context) (bool, error) {
	defer r.end()
	limit, cancel := context.WithTimeout(ctx, r.patience())
	var asked sync.WaitGroup
	defer asked.Wait()
	defer cancel()
	reached := make(chan *follower, len(r.secondaries))
	for _, s := range r.secondaries {
		asked.Go(func() {
			if s.reaches(limit, r.last.Epoch) {
				reached <- s
				return
			}
			reached <- nil
		})
	}
	var have []string // those that nobody can tell
	var errs []error
	for range r.secondaries {
		s := <-reached
		if s == nil {
			continue
		}
		if s.monitor == "" {
			have = append(have, s.addr)
			continue
		}
		ordered, err := s.goOn(ctx)
		if err == nil {
			took := 1e3 * time.Since(r.lost).Seconds()
			r.p.say("promoted    the secondary at %s goes on from checkpoint %d, after %.0f ms", s.addr, r.last.Epoch, took)
			r.p.object(map[string]any{"promoted": map[string]any{"secondary": s.addr, "epoch": r.last.Epoch, "ms": took}})
			return true, nil
		}
		err = fmt.Errorf("secondary %s: %w", s.addr, err)
		if ordered { // it may go on all the same, so nobody else must
			return true, errors.Join(err, r.leave())
		}
		errs = append(errs, err)
	}
	if len(have) == 0 {
		return false, errors.Join(errs...)
	}
	r.p.say("ready       checkpoint %d is at %s: give x-colo-lost-heartbeat to one of them", r.last.Epoch, strings.Join(have, ", "))
	r.p.object(map[string]any{"ready": map[string]any{"secondaries": have, "epoch": r.last.Epoch}})
	return true, r.leave()
}

func (r *relayRun) patience() time.Duration {
	if r.peer > 0 {
		return r.peer
	}
	return colo.DefaultPeerTimeout
}

// follower is a QEMU secondary of the relay.
type follower struct {
	r       *relayRun
	addr    string
	monitor string
	xbzrle  uint64

	mu      sync.Mutex
	session *colo.Primary // nil: not connected
	epoch   uint64        // of the guest, that it has loaded
	synced  bool          // it has loaded one
	changed chan struct{} // closed when any of these changes
}

// run keeps a session with the secondary, and begins another when it ends.
func (s *follower) run(ctx context.Context) {
	said := ""
	for ctx.Err() == nil {
		err := s.follow(ctx)
		if ctx.Err() != nil {
			return
		}
		if text := err.Error(); text != said {
			said = text
			s.r.p.warn("secondary %s: %v", s.addr, err)
		}
		s.r.p.object(map[string]any{"secondary": s.addr, "error": err.Error()})
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
		}
	}
}

// follow is one session. It returns why it ended.
func (s *follower) follow(ctx context.Context) error {
	network, address := qmp.Split(s.addr)
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, address)
	if err != nil {
		return err
	}
	reg := new(vmstate.Registry)
	rep, saver, err := s.r.guest.NewReplica(reg, ram.SaverConfig{XBZRLE: int64(s.xbzrle)})
	if err != nil {
		conn.Close()
		return err
	}
	defer rep.Close()
	in, err := s.r.guest.Info()
	if err != nil {
		conn.Close()
		return err
	}
	var why error
	events := new(event.Bus)
	event.Subscribe(events, func(c event.CheckpointCommit) {
		s.r.p.object(map[string]any{"secondary": s.addr, "epoch": rep.Epoch(), "pages": c.Pages, "ms": float64(c.TransferNS+c.CommitNS) / 1e6})
		if c.Epoch == 0 {
			s.r.p.say("following   %s has the guest", s.addr)
		}
		s.update(func() { s.epoch, s.synced = rep.Epoch(), true })
	})
	session, err := colo.NewPrimary(quickack.Conn(conn), colo.PrimaryConfig{
		VM: rep, State: reg, RAM: saver, Events: events, Machine: in.Machine, Step: rep.Step,
		CheckpointDelay: 24 * time.Hour, PeerTimeout: s.r.peer,
		Arbiter: colo.ArbiterFunc(func(_ context.Context, c colo.Claim) error {
			why = c.Cause
			return errors.New("a relay runs no guest")
		}),
	})
	if err != nil {
		conn.Close()
		return err
	}
	s.update(func() { s.session = session })
	defer s.update(func() { s.session, s.synced = nil, false })
	session.RequestCheckpoint(event.CauseRequest) // for what came during the initial migration
	err = session.Run(ctx)
	if why != nil {
		err = why
	}
	if err == nil {
		err = errors.New("the session has ended")
	}
	return err
}

// request asks for a checkpoint; requests coalesce.
func (s *follower) request() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.session != nil {
		s.session.RequestCheckpoint(event.CauseRequest)
	}
}

func (s *follower) update(fn func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fn()
	if s.changed != nil {
		close(s.changed)
		s.changed = nil
	}
}

// reaches waits until the secondary has the guest of epoch; it returns false if
// it is lost first or ctx ends.
func (s *follower) reaches(ctx context.Context, epoch uint64) bool {
	s.request()
	for {
		s.mu.Lock()
		there, gone := s.synced && s.epoch >= epoch, s.session == nil
		if s.changed == nil {
			s.changed = make(chan struct{})
		}
		changed := s.changed
		s.mu.Unlock()
		switch {
		case gone:
			return false
		case there:
			return true
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return false
		}
	}
}

// goOn orders the secondary to take over. ordered says that it was told, whatever
// came of it.
func (s *follower) goOn(ctx context.Context) (ordered bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, s.r.patience())
	defer cancel()
	m, err := qmp.Dial(ctx, s.monitor)
	if err != nil {
		return false, err
	}
	defer m.Close()
	if err := m.Do(ctx, "x-colo-lost-heartbeat", nil, nil); err != nil {
		return true, err
	}
	var st struct{ Status string }
	for {
		if err := m.Do(ctx, "query-status", nil, &st); err != nil {
			return true, err
		}
		if st.Status == "running" {
			return true, nil
		}
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			return true, fmt.Errorf("its guest is %s: %w", st.Status, ctx.Err())
		}
	}
}
