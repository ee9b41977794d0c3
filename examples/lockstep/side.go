package main

import (
	"bufio"
	"context"
	"encoding/json"
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
	"github.com/gocolo/lockstep/vmstate"
)

// A silent peer is lost after beatTimeout. A killed one is noticed at once,
// because its connections end.
const (
	beatInterval = 200 * time.Millisecond
	beatTimeout  = 2 * time.Second
)

// bufferLimit is how much output a side may hold, in bytes. Half of it asks
// for a checkpoint.
const bufferLimit = 1 << 20

// errOrphan: the parent is gone.
var errOrphan = errors.New("the parent process has gone")

// A side is one process of the pair: a guest, its network, and its half of the
// session.
type side struct {
	cfg      sideConfig
	reports  *reporter
	commands chan command

	machine machine
	disk    *disk // nil: none
	state   vmstate.Registry
	buffer  *filter.Buffer
	client  *net.TCPConn // takes what leaves
	out     *filter.Conn // on client
	events  event.Bus
	point   *killPoint

	pausing time.Time // of the checkpoint under way, when its pause began
	started time.Time // when it began
	held    uint64    // frames at its mark

	session session
}

// session is the part of colo.Primary and colo.Secondary that they share.
type session interface {
	Run(context.Context) error
	Failover() error
	Lost(error)
	Info() colo.Info
}

// sideMain is the whole life of a side: configuration and commands come from
// in, reports go to out. It returns when the side has nothing more to do.
func sideMain(in io.Reader, out io.Writer) error {
	dec := json.NewDecoder(bufio.NewReader(in))
	s := &side{commands: make(chan command), reports: newReporter(out)}
	defer s.reports.close()
	if err := dec.Decode(&s.cfg); err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	go func() { // ends with the process, or with the parent
		for {
			var c command
			if err := dec.Decode(&c); err != nil {
				cancel(errOrphan)
				return
			}
			select {
			case s.commands <- c:
			case <-ctx.Done():
				return
			}
		}
	}()
	return s.run(ctx, cancel)
}

// run sets up the side and runs its session; afterwards it either goes on with
// the guest until it is told to stop, or not. Whatever it starts has ended when
// it returns.
func (s *side) run(ctx context.Context, fail context.CancelCauseFunc) error {
	var listeners []*net.TCPListener
	if s.cfg.Side == secondary {
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
	var group sync.WaitGroup
	defer group.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer s.client.Close()
	watch := func(what string, run func() error) {
		group.Go(func() {
			if err := run(); ctx.Err() == nil {
				fail(fmt.Errorf("%s: %w", what, err))
			}
		})
	}
	watch("output", func() error { return s.buffer.Run(ctx, s.out) })
	watch("guest", func() error { return s.machine.Run(ctx) })
	if s.cfg.Side == primary {
		// The guest runs from the start; it is protected later.
		if err := s.machine.Resume(ctx); err != nil {
			return err
		}
	}

	if s.disk != nil && s.cfg.Side == secondary {
		group.Go(func() { s.disk.serve(ctx, listeners[2]) })
	}
	link, beat, err := s.connect(ctx, listeners, &group)
	if err != nil {
		return err
	}
	if err := s.newSession(link); err != nil {
		return err
	}
	beating, leave := context.WithCancel(ctx)
	defer leave()
	group.Go(func() {
		if err := heartbeat.Run(beating, beat, beatInterval, beatTimeout); errors.Is(err, heartbeat.ErrLost) {
			s.session.Lost(err)
		}
	})
	stop := make(chan struct{})
	group.Go(func() { s.obey(ctx, stop) })

	err = s.session.Run(ctx)
	leave()
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	end := ended{TookOver: err == nil, Refused: errors.Is(err, colo.ErrRefused), Epoch: s.session.Info().Epoch}
	if err != nil {
		end.Error = err.Error()
	}
	s.reports.send(report{Ended: &end})
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
	for range 3 {
		l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			return nil, err
		}
		listeners = append(listeners, l)
	}
	s.reports.send(report{Listening: &addresses{
		COLO: listeners[0].Addr().String(), Heartbeat: listeners[1].Addr().String(), Disk: listeners[2].Addr().String(),
	}})
	return listeners, nil
}

// build makes the guest and what it sends its output through.
func (s *side) build(ctx context.Context) error {
	conn, err := net.Dial("tcp", s.cfg.Client)
	if err != nil {
		return err
	}
	s.client = conn.(*net.TCPConn)
	s.out = filter.NewConn(s.client, filter.ConnConfig{})
	if err := s.out.WritePacket([]byte(s.cfg.Side)); err != nil {
		return err
	}
	s.buffer = filter.NewBuffer(filter.BufferConfig{Limit: bufferLimit, Full: s.full})
	if s.disk, err = openDisk(s.cfg); err != nil {
		return err
	}
	if s.machine, err = newMachine(s.cfg, s.buffer, s.disk); err != nil {
		return err
	}
	if err := s.machine.Register(&s.state); err != nil {
		return err
	}
	if err := s.state.Register(s.buffer.Entry(0), s.buffer); err != nil {
		return err
	}
	if s.cfg.StopAt != "" {
		s.point = &killPoint{
			place: s.cfg.StopAt,
			epoch: s.cfg.StopEpoch,
			rng:   rand.New(rand.NewPCG(s.cfg.Seed, 1)),
			stop: func(detail string) {
				s.reports.sendNow(report{Stopped: &stopped{s.cfg.StopEpoch, detail}})
				<-ctx.Done() // SIGKILL comes sooner
			},
		}
	}
	return nil
}

// full is called when half of the buffer is in use.
func (s *side) full() {
	if p, ok := s.session.(*colo.Primary); ok {
		p.RequestCheckpoint(event.CauseLimit)
	}
}

// connect returns the connection of the session and that of the heartbeat. When
// the primary makes them, its disk is the secondary's already, so that the
// session never waits for a whole disk.
func (s *side) connect(ctx context.Context, listeners []*net.TCPListener, group *sync.WaitGroup) (link, beat *net.TCPConn, err error) {
	if s.cfg.Side == secondary {
		if s.disk != nil {
			listeners = listeners[:2] // the third is served
		}
		stop := context.AfterFunc(ctx, func() {
			for _, l := range listeners {
				l.Close()
			}
		})
		defer stop()
		if link, err = listeners[0].AcceptTCP(); err == nil {
			beat, err = listeners[1].AcceptTCP()
		}
		for _, l := range listeners {
			l.Close()
		}
		return link, beat, err
	}
	var c command
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
	dial := func(address string) *net.TCPConn {
		if err != nil {
			return nil
		}
		var conn net.Conn
		if conn, err = new(net.Dialer).DialContext(ctx, "tcp", address); err != nil {
			return nil
		}
		return conn.(*net.TCPConn)
	}
	return dial(c.Connect.COLO), dial(c.Connect.Heartbeat), err
}

// newSession makes the side's half of the session. A comparison of packets would
// join it here, in the place of network.
func (s *side) newSession(link *net.TCPConn) (err error) {
	s.events.SubscribeAll(s.observe)
	arbiter := askWitness(s.cfg.Witness, s.cfg.Side, s.cfg.Generation)
	conn := s.disk.conn(s.point.conn(link, s.cfg.Side))
	step := s.step(s.point.step(s.cfg.Side))
	if s.cfg.Side == primary {
		s.session, err = colo.NewPrimary(conn, colo.PrimaryConfig{
			VM: s.machine, State: &s.state, RAM: s.machine.Sent(), Disks: s.disk.replicas(),
			Net: &network{s.buffer, s}, Events: &s.events, Arbiter: arbiter, Machine: machineType,
			CheckpointDelay: s.cfg.Interval, LateResume: !s.cfg.EarlyResume,
			Step: step, Trace: s.point.trace,
		})
		return err
	}
	s.session, err = colo.NewSecondary(conn, colo.SecondaryConfig{
		VM: s.machine, State: &s.state, RAM: s.point.stage(s.machine.Stage(), func() uint64 { return s.session.Info().Epoch }),
		Disks: s.disk.replicas(),
		Net:   &network{s.buffer, s}, Events: &s.events, Arbiter: arbiter, Machine: machineType,
		Step: step, Trace: s.point.trace,
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
	s.reports.send(report{Event: &r})
	switch e := r.Event.(type) {
	case event.CheckpointStart:
		s.started = r.Time
	case event.CheckpointCommit:
		s.point.committed(e.Bytes)
		if s.cfg.Side != primary {
			return
		}
		s.reports.send(report{Checkpoint: &checkpoint{
			Epoch:       e.Epoch,
			Cause:       e.Cause,
			Start:       s.started,
			PauseAtUS:   s.pausing.Sub(s.started).Microseconds(),
			PauseUS:     e.PauseNS / 1000,
			TransferUS:  e.TransferNS / 1000,
			CommitUS:    e.CommitNS / 1000,
			DirtyPages:  e.Pages,
			Bytes:       e.Bytes,
			EarlyResume: e.EarlyResume,
			Held:        s.held,
			Released:    s.buffer.Stats().Written,
		}})
	}
}

// network is the buffer as the session sees it, with two things noted on the
// way.
type network struct {
	*filter.Buffer
	side *side
}

func (n *network) Mark(epoch uint64) error {
	n.side.held = n.Stats().Held
	return n.Buffer.Mark(epoch)
}

func (n *network) Failover() error {
	return errors.Join(n.side.out.WritePacket([]byte(tookOver)), n.Buffer.Failover())
}

// finish stops the guest, lets everything leave that it sent, leaves its disk in
// the image, and tells what its memory says that it did.
func (s *side) finish(ctx context.Context) error {
	if err := s.machine.Pause(ctx); err != nil {
		return err
	}
	for st := s.buffer.Stats(); st.Held+st.Queued+st.Inherited > 0; st = s.buffer.Stats() {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(time.Millisecond):
		}
	}
	if err := errors.Join(s.client.CloseWrite(), s.disk.settle()); err != nil {
		return err
	}
	histories, err := remembered(s.machine.Memory(), s.cfg.Guest.VCPUs)
	if err != nil {
		return err
	}
	s.reports.send(report{Histories: histories})
	return nil
}
