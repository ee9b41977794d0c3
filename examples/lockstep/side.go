package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/colo/filter"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/failover/heartbeat"
	"github.com/gocolo/lockstep/internal/killpoint"
	"github.com/gocolo/lockstep/internal/oracle"
	"github.com/gocolo/lockstep/internal/trial"
	"github.com/gocolo/lockstep/vmstate"
)

// A silent peer is lost after beatTimeout. A killed one is noticed at once,
// because its connections end; so this can be longer than a process may have to
// wait for a CPU of a busy machine.
const (
	beatInterval = 200 * time.Millisecond
	beatTimeout  = 10 * time.Second
)

// A side is one process of the pair: a guest, its network, and its half of the
// session.
type side struct {
	cfg      trial.SideConfig
	reports  *trial.Reporter
	commands <-chan trial.Command

	machine machine
	memory  memory // the machine's
	disk    *disk  // nil: none
	state   vmstate.Registry
	net     network
	client  *net.TCPConn // takes what leaves
	input   *net.TCPConn // brings what the client sends
	out     *filter.Conn // on client
	events  event.Bus
	point   *killpoint.Point
	proceed chan struct{} // closed when it is to go on from there

	pausing time.Time // of the checkpoint under way, when its pause began
	started time.Time // when it began
	held    uint64    // frames at its mark

	session session
	pulse   heartbeat.Pulse
	guest   fate
}

// session is the part of colo.Primary and colo.Secondary that they share.
type session interface {
	Run(context.Context) error
	Failover() error
	Lost(error)
	Yield(error)
	Info() colo.Info
}

// sideMain is the whole life of a side: configuration and commands come from
// in, reports go to out. It returns when the side has nothing more to do.
func sideMain(in io.Reader, out io.Writer) error {
	return trial.Serve(in, out, func(ctx context.Context, fail context.CancelCauseFunc, p *trial.Parent) error {
		if p.Config.Host != nil {
			h := &host{cfg: p.Config, reports: p.Reports}
			return h.run(ctx, fail, p.Commands)
		}
		s := &side{cfg: p.Config, commands: p.Commands, reports: p.Reports, proceed: make(chan struct{})}
		return s.run(ctx, fail)
	})
}

// run sets up the side and runs its session; afterwards it either goes on with
// the guest until it is told to stop, or not. Whatever it starts has ended when
// it returns.
func (s *side) run(ctx context.Context, fail context.CancelCauseFunc) error {
	var listeners []*net.TCPListener
	if s.cfg.Side == trial.Secondary {
		var err error
		if listeners, err = s.listen(); err != nil {
			return err
		}
	}
	defer func() { s.disk.close() }()
	if err := s.build(ctx); err != nil {
		return err
	}
	defer s.machine.Close()
	defer s.memory.Close()
	var group sync.WaitGroup
	defer group.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer s.client.Close()
	defer s.input.Close()
	watch := func(what string, run func() error) {
		group.Go(func() {
			if err := run(); ctx.Err() == nil {
				fail(fmt.Errorf("%s: %w", what, err))
			}
		})
	}
	watch("network", func() error {
		in := filter.NewConn(s.input, filter.ConnConfig{})
		return s.net.Run(ctx, &cable{s.out, in, [2]net.Conn{s.client, s.input}})
	})
	group.Go(func() { s.runGuest(ctx, fail) })
	if s.cfg.Side == trial.Primary {
		// The guest runs from the start; it is protected later.
		if err := s.machine.Resume(ctx); err != nil {
			return err
		}
	}

	if s.disk != nil && s.cfg.Side == trial.Secondary {
		group.Go(func() { s.disk.serve(ctx, listeners[2]) })
	}
	link, beat, err := s.connect(ctx, listeners, &group)
	if err != nil {
		return err
	}
	// From the first epoch on the other guest hears what this one hears.
	if err := s.net.Connected(ctx); err != nil {
		return err
	}
	if err := s.newSession(link); err != nil {
		return err
	}
	return s.handles(ctx, func(ctx context.Context) error { return s.live(ctx, beat, &group) })
}

// live is the session, and what follows it.
func (s *side) live(ctx context.Context, beat *net.TCPConn, group *sync.WaitGroup) error {
	beating, leave := context.WithCancel(ctx)
	defer leave()
	group.Go(func() {
		if err := s.pulse.Run(beating, beat, beatInterval, s.cfg.Lost); beating.Err() == nil {
			s.session.Lost(err)
		}
	})
	stop := make(chan struct{})
	group.Go(func() { s.obey(ctx, stop) })

	s.guest.protect(s.session)
	err := s.session.Run(ctx)
	leave()
	if err == nil {
		err = s.guest.alone() // it may have failed when this side was taking over already
	}
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	end := trial.Ended{TookOver: err == nil, Refused: errors.Is(err, colo.ErrRefused), Epoch: s.session.Info().Epoch}
	if err != nil {
		end.Error = err.Error()
	}
	s.reports.Send(trial.Report{Ended: &end})
	switch {
	case end.Refused: // the other side has the guest; this one's stays paused
		return nil
	case err != nil:
		return err
	}
	select {
	case <-stop:
		return s.finish(ctx)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// obey carries out the parent's commands until it says stop.
func (s *side) obey(ctx context.Context, stop chan<- struct{}) {
	for {
		select {
		case c := <-s.commands:
			if c.Failover {
				s.session.Failover() // in progress already: as good
			}
			if c.Proceed {
				close(s.proceed)
			}
			if c.Stop {
				close(stop)
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

// listen opens the secondary's ports and says where.
func (s *side) listen() ([]*net.TCPListener, error) {
	var listeners []*net.TCPListener
	for range 4 {
		l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			return nil, err
		}
		listeners = append(listeners, l)
	}
	s.reports.Send(trial.Report{Listening: &trial.Addresses{
		COLO: listeners[0].Addr().String(), Heartbeat: listeners[1].Addr().String(), Disk: listeners[2].Addr().String(),
		Packets: listeners[3].Addr().String(),
	}})
	return listeners, nil
}

// build makes the guest and what it sends its output through.
func (s *side) build(ctx context.Context) error {
	var err error
	if s.client, err = dialClient(s.cfg, s.cfg.Side); err != nil {
		return err
	}
	if s.input, err = dialClient(s.cfg, s.cfg.Side+trial.InputSuffix); err != nil {
		return err
	}
	s.out = filter.NewConn(s.client, filter.ConnConfig{})
	s.net = s.newNetwork()
	s.events.SubscribeAll(s.observe)
	if s.disk, err = openDisk(s.cfg, &s.events); err != nil {
		return err
	}
	if s.cfg.VerifyDirty {
		s.cfg.Missed = func(block string, offset uint64) {
			s.reports.Send(trial.Report{Missed: &trial.MissedPage{Block: block, Offset: offset}})
		}
	}
	var write writer
	if s.disk != nil {
		write = s.disk.write
	}
	if s.machine, err = newMachine(s.cfg, s.cfg.Side == trial.Primary, s.send, write); err != nil {
		return err
	}
	if s.memory, err = newMemory(s.cfg, s.machine); err != nil {
		return err
	}
	// Memory comes before any device.
	if err := errors.Join(s.memory.Register(&s.state), s.machine.Register(&s.state)); err != nil {
		return err
	}
	if err := s.state.Register(s.net.Entry(0), s.net); err != nil {
		return err
	}
	if s.cfg.StopAt != "" {
		s.point = &killpoint.Point{
			Place: s.cfg.StopAt,
			Epoch: s.cfg.StopEpoch,
			Rand:  rand.New(rand.NewPCG(s.cfg.Seed, 1)),
			Stop: func(detail string) {
				s.reports.SendNow(trial.Report{Stopped: &trial.Stopped{Epoch: s.cfg.StopEpoch, Detail: detail}})
				select { // or SIGKILL comes
				case <-s.proceed:
				case <-ctx.Done():
				}
			},
		}
	}
	return nil
}

// dialClient connects to the client and says who does.
func dialClient(cfg trial.SideConfig, name string) (*net.TCPConn, error) {
	conn, err := net.Dial("tcp", cfg.Client)
	if err != nil {
		return nil, err
	}
	if err := filter.NewConn(conn, filter.ConnConfig{}).WritePacket([]byte(name)); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return conn.(*net.TCPConn), nil
}

// connect returns the connection of the session and that of the heartbeat, and
// serves that of the packets. When the primary makes them, its disk is the
// secondary's already, so that the session never waits for a whole disk.
func (s *side) connect(ctx context.Context, listeners []*net.TCPListener, group *sync.WaitGroup) (link, beat *net.TCPConn, err error) {
	serve := func(packets *net.TCPConn) {
		// Without it the primary goes on from checkpoint to checkpoint.
		group.Go(func() { s.net.Serve(ctx, packets) })
	}
	if s.cfg.Side == trial.Secondary {
		wanted := []*net.TCPListener{listeners[0], listeners[1], listeners[3]}
		shut := func() {
			for _, l := range wanted {
				l.Close()
			}
			if s.disk == nil {
				listeners[2].Close() // otherwise it is served
			}
		}
		defer shut()
		stop := context.AfterFunc(ctx, shut)
		defer stop()
		var conns [3]*net.TCPConn
		for i, l := range wanted {
			if conns[i], err = l.AcceptTCP(); err != nil {
				return nil, nil, err
			}
		}
		serve(conns[2])
		return conns[0], conns[1], nil
	}
	var c trial.Command
	select {
	case c = <-s.commands:
	case <-ctx.Done():
		return nil, nil, context.Cause(ctx)
	}
	if c.Connect == nil {
		return nil, nil, errors.New("no address of the secondary")
	}
	if s.disk != nil {
		if err := s.disk.attach(ctx, c.Connect.Disk, s.cfg.Generation, group); err != nil {
			return nil, nil, fmt.Errorf("disk: %w", err)
		}
	}
	var conns [3]*net.TCPConn
	for i, address := range []string{c.Connect.COLO, c.Connect.Heartbeat, c.Connect.Packets} {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
		if err != nil {
			return nil, nil, err
		}
		conns[i] = conn.(*net.TCPConn)
	}
	serve(conns[2])
	return conns[0], conns[1], nil
}

// newSession makes the side's half of the session.
func (s *side) newSession(link *net.TCPConn) (err error) {
	arbiter := trial.AskWitness(s.cfg.Witness, s.cfg.Side, s.cfg.Generation)
	conn := s.point.Conn(link, s.cfg.Side)
	step := s.step(s.point.Step(s.cfg.Side))
	if s.cfg.Side == trial.Primary {
		s.session, err = colo.NewPrimary(conn, colo.PrimaryConfig{
			VM: s.net, Net: s.net.(*primaryNetwork), State: &s.state, RAM: s.memory.Sent(), Disks: s.disk.replicas(),
			Events: &s.events, Arbiter: arbiter, Heartbeat: &s.pulse, Machine: machineType,
			CheckpointDelay: s.cfg.Interval, LateResume: !s.cfg.EarlyResume, ThrottleShare: s.cfg.Throttle,
			Step: step, Trace: s.point.Trace,
		})
		return err
	}
	s.session, err = colo.NewSecondary(conn, colo.SecondaryConfig{
		VM: s.net, Net: s.net.(*secondaryNetwork), State: &s.state, RAM: s.point.Stage(s.memory.Stage(), func() uint64 { return s.session.Info().Epoch }),
		Disks: s.disk.replicas(), Events: &s.events, Arbiter: arbiter, Heartbeat: &s.pulse, Machine: machineType,
		Step: step, Trace: s.point.Trace,
	})
	return err
}

// machineType is in the stream's configuration section: what both sides agree
// the guest to be.
const machineType = "lockstep-flat"

// step notes when the pause begins, on the way to the kill point.
func (s *side) step(then func(string, uint64)) func(string, uint64) {
	return func(op string, epoch uint64) {
		if op == "pause" {
			s.pausing = time.Now()
		}
		if then != nil {
			then(op, epoch)
		}
	}
}

// observe passes events on to the parent, and adds up each checkpoint.
func (s *side) observe(r event.Record) {
	s.reports.Send(trial.Report{Event: &r})
	switch e := r.Event.(type) {
	case event.CheckpointStart:
		s.started = r.Time
	case event.CheckpointCommit:
		s.point.Committed(e.Bytes)
		if s.cfg.Side != trial.Primary {
			return
		}
		s.reports.Send(trial.Report{Checkpoint: &trial.Checkpoint{
			Epoch:       e.Epoch,
			Cause:       e.Cause,
			Start:       s.started,
			PauseAtUS:   s.pausing.Sub(s.started).Microseconds(),
			PauseUS:     e.PauseNS / 1000,
			StoppedUS:   s.stoppedUS(),
			TransferUS:  e.TransferNS / 1000,
			CommitUS:    e.CommitNS / 1000,
			DirtyPages:  e.Pages,
			Bytes:       e.Bytes,
			EarlyResume: e.EarlyResume,
			Held:        s.held,
			Traffic:     s.net.(*primaryNetwork).traffic(),
		}})
	}
}

// stoppedUS returns how long the guest stood still in its last pause, in µs, where its
// machine can tell.
func (s *side) stoppedUS() int64 {
	return lateVM{s}.Stopped().Microseconds()
}

// finish stops the guest, lets everything leave that it sent, leaves its disk in
// the image, and tells what its memory says that it did.
func (s *side) finish(ctx context.Context) error {
	if err := s.net.Pause(ctx); err != nil {
		return err
	}
	for s.net.waiting() > 0 {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(time.Millisecond):
		}
	}
	if err := errors.Join(s.client.CloseWrite(), s.disk.settle()); err != nil {
		return err
	}
	histories, err := oracle.Remembered(s.machine.Memory(), s.cfg.Guest.VCPUs)
	if err != nil {
		return err
	}
	end := trial.Report{Histories: histories}
	if p, ok := s.net.(*primaryNetwork); ok {
		end.Traffic = p.traffic()
	}
	s.reports.Send(end)
	return nil
}
