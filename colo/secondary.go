package colo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/failover"
	"github.com/gocolo/lockstep/internal/wait"
)

// The secondary of a session in the order of the protocol: synchronise and checkpoint are
// lists of steps, and below each list stand its steps, in the order in which they are taken.

// Secondary is one session of the side whose guest follows.
type Secondary struct {
	session
	cfg    SecondaryConfig
	loader stager // State or Loader

	blob []byte // device state of the checkpoint under way

	tells CopylessStage // RAM, where it is one; nil otherwise

	channels bool // the channels of the primary are used

	takes      func() uint64 // how much memory may come early; nil: none
	early      bool          // the primary has been told so
	earlyBytes int64         // of the next checkpoint, that have come early

	idle    time.Duration // IdleTimeout; 0: no bound
	rate    uint64        // MinRate; 0: no bound
	working time.Duration // the primary's CheckpointTimeout as it has announced it; 0: none

	began  time.Time              // when the checkpoint under way began
	offset int64                  // received when the checkpoint began, in bytes
	cp     event.CheckpointCommit // the figures of the checkpoint under way
	whole  bool                   // the guest has been loaded once: there is something to go on with
}

// NewSecondary makes the secondary's side of a session. The Secondary owns conn from now
// on and closes it at the end of Run; if NewSecondary fails, conn and Channels.Conns stay
// open and belong to the caller.
func NewSecondary(conn io.ReadWriteCloser, cfg SecondaryConfig) (*Secondary, error) {
	if cfg.VM == nil || cfg.RAM == nil || (cfg.State == nil) == (cfg.Loader == nil) {
		return nil, errors.New("colo: SecondaryConfig needs VM, RAM, and one of State and Loader")
	}
	if err := cfg.times(); err != nil {
		return nil, err
	}
	s := &Secondary{cfg: cfg, loader: cfg.Loader}
	if cfg.Loader == nil {
		s.loader = cfg.State
	}
	s.session.init(conn, event.ModeSecondary, cfg.PeerTimeout)
	s.vm, s.state, s.disks = cfg.VM, cfg.State, cfg.Disks
	s.stopper, _ = cfg.VM.(Stopper)
	s.events, s.arbiter, s.session.step = told{cfg.Events, cfg.Logger, &s.session}, cfg.Arbiter, cfg.Step
	s.link.Trace = cfg.Trace
	s.heartbeat(cfg.Heartbeat)
	s.cfg.MaxDeviceState = orDefault(cfg.MaxDeviceState, 256<<20)
	s.idle = max(0, orDefault(cfg.IdleTimeout, DefaultIdleTimeout))
	s.rate = uint64(max(0, orDefault(cfg.MinRate, DefaultMinRate)))
	// The guest is paused, and that pause is the session's from now on.
	s.paused = true
	if err := s.openChannels(); err != nil {
		return nil, err
	}
	return s, nil
}

// Run takes the guest over from the primary and keeps it in step, until the
// session ends. It may be called once; a second call returns ErrEnded and
// touches nothing. It returns nil if this side took over: the guest runs here
// (unless somebody else has paused it). ErrDegraded means that it took over too, and
// says what went wrong. Any other error says why it did not: the guest is paused, in the
// state of the last checkpoint and what it has itself done since (ErrNotPaused where it
// could not be paused). But if the error is failover.ErrTorn, a commit has failed half
// way: that guest is in no consistent state and must never run.
//
// An error that matches ErrGoodbye says that the protection was ended on
// purpose, by End of either side: the primary runs the guest, and this side must
// not go on with it.
//
// A cancelled context ends the session as End does, and never in the middle of a
// commit; Run then returns the context's error.
func (s *Secondary) Run(ctx context.Context) error {
	if err := s.enter(); err != nil {
		return err
	}
	stop := wait.AtEnd(ctx, s.wished)
	defer stop()
	defer s.beside.end()

	s.setWhere(StateSynchronising)
	err := s.synchronise(ctx)
	torn := s.machine.Status() == failover.Torn
	if err != nil && !s.whole && !torn {
		return s.unborn(err)
	}
	for err == nil {
		s.setWhere(StateProtected)
		err = s.checkpoint(ctx)
	}
	p := parting{cause: err, drop: s.abandon}
	wished := errors.Is(err, errEnd) || ctx.Err() != nil && errors.Is(err, ctx.Err())
	told := errors.Is(err, ErrGoodbye) && !wished
	switch {
	case torn || s.machine.Status() == failover.Torn:
		s.farewell(failover.ErrTorn.Error())
	case (wished || told) && s.leave():
		reason, by := "", event.ModeSecondary
		var bye *GoodbyeError
		if errors.As(err, &bye) {
			reason, by = bye.Reason, event.ModePrimary
		}
		s.farewell("")
		p.stay = true
		s.events.Publish(event.ProtectionEnded{Mode: s.mode, By: by, Epoch: s.committed(), Reason: reason})
	}
	return s.end(ctx, p)
}

// lingerTime is how long a secondary waits for the primary to have heard its
// last word.
const lingerTime = 2 * time.Second

// farewell tells a primary of this package that this side does not run the guest, and
// will not. If the message is lost the primary finds out later, by other means.
func (s *Secondary) farewell(reason string) {
	if s.ours {
		s.lastWords(reason)
	}
}

func (s *Secondary) lastWords(reason string) {
	s.heed()
	s.link.allow()
	d := min(s.patience(), lingerTime)
	s.link.patience(d)
	if s.link.sayGoodbye(reason) == nil {
		s.link.linger(d)
	}
}

// abandon drops what was staged and not committed.
func (s *Secondary) abandon() {
	s.beside.settle()
	s.loader.Rollback()
	s.cfg.RAM.Discard()
}

// unborn ends a session in which no guest has been loaded yet. It sends the reason even
// to a QEMU, which takes the unknown message for the end of the connection, which
// follows.
func (s *Secondary) unborn(cause error) error {
	s.leave()
	if !s.cfg.QEMUWire && s.reported() == nil {
		s.lastWords(reasonOf(cause))
	}
	s.cut()
	s.abandon()
	s.mu.Lock()
	s.info.Mode, s.info.Reason = event.ModeNone, event.ExitError
	s.mu.Unlock()
	s.events.Publish(event.Migration{Status: "failed"})
	return s.stay(context.Background(), cause)
}

// reasonOf returns the text of an error for the peer, without the place in the session,
// which the peer knows.
func reasonOf(err error) string {
	var e *Error
	if errors.As(err, &e) {
		return e.Op + ": " + e.Err.Error()
	}
	return err.Error()
}

// checkpoint is the secondary's side of one checkpoint.
func (s *Secondary) checkpoint(ctx context.Context) error {
	if err := s.do(ctx, step{"wait", s.awaitRequest}); err != nil {
		return err
	}
	s.epoch++
	s.began, s.offset = time.Now(), s.received()
	s.cp = event.CheckpointCommit{Mode: s.mode, Epoch: s.epoch}
	s.events.Publish(event.CheckpointStart{Mode: s.mode, Epoch: s.epoch})
	return s.do(ctx,
		step{"pause", s.pause},
		step{"send checkpoint-reply", s.reply},
		step{"expect vmstate-send", s.expectVMStateSend},
		step{"stage ram", s.stageRAM},
		step{"stage device state", s.stageDevices},
		step{"stage disks", s.stageDisks},
		// The commit sends vmstate-received. From then on the primary's output
		// may leave, so the session cannot go back to the state before.
		step{"commit", s.commit},
		step{"resume", s.resumed},
		step{"send vmstate-loaded", s.loaded},
	)
}

func (s *Secondary) awaitRequest(context.Context) error {
	if err := s.link.Flush(); err != nil {
		return err
	}
	if t, ok := s.cfg.RAM.(Settler); ok {
		if err := t.Settle(); err != nil {
			return err
		}
	}
	s.link.patience(s.idle)
	if !s.ours && s.cfg.IdleTimeout == 0 {
		s.link.patience(0) // a QEMU does not say how long it waits between checkpoints
	}
	for {
		got, at, err := s.link.next()
		if err != nil {
			return err
		}
		if s.ours && got == Alive {
			s.link.trace("<", Alive, 0)
			continue
		}
		if s.early && got == EarlyPages {
			if err := s.stageEarly(at); err != nil {
				return err
			}
			s.link.patience(s.idle)
			continue
		}
		s.link.patience(s.worked())
		return s.link.is(got, CheckpointRequest, at)
	}
}

// worked returns how long this side waits within a checkpoint for a primary that is
// silent while it pauses its guest and marks its disks. A primary of this package
// never takes longer than the CheckpointTimeout that it has announced. One that has
// announced none bounds each of these waits by its own PeerTimeout, which is not known
// here: it has as long as between two checkpoints.
func (s *Secondary) worked() time.Duration {
	switch {
	case s.patient == 0:
		return 0
	case s.ours && s.working == 0:
		return s.idle
	case s.ours:
		return s.working + s.patient
	}
	return s.patient
}

func (s *Secondary) reply(context.Context) error {
	if err := s.tellDirty(); err != nil {
		return err
	}
	if err := s.link.Send(CheckpointReply); err != nil {
		return err
	}
	return s.link.Flush()
}

func (s *Secondary) expectVMStateSend(context.Context) error { return s.link.Expect(VMStateSend) }

func (s *Secondary) stageRAM(context.Context) error {
	if err := s.loader.Load(s.link.R, s.command); err != nil || s.tells == nil {
		return err
	}
	return s.tells.CheckStaged()
}

// stageDevices takes the device state into memory, whole, and then decodes and
// validates it, so that only this host can make the commit fail.
func (s *Secondary) stageDevices(context.Context) error {
	n, err := s.link.ExpectValue(VMStateSize)
	if err != nil {
		return err
	}
	if n > s.cfg.MaxDeviceState {
		return fmt.Errorf("%w: %d bytes announced at offset %d, at most %d", ErrSize, n, s.link.R.Offset()-8, s.cfg.MaxDeviceState)
	}
	// Memory grows with what has come, not with what was announced.
	s.blob = s.blob[:0]
	for uint64(len(s.blob)) < n {
		have := len(s.blob)
		part := int(min(n-uint64(have), 1<<20))
		s.blob = append(s.blob, make([]byte, part)...)
		if err := s.link.R.ReadFull(s.blob[have:]); err != nil {
			return err
		}
	}
	return s.loader.LoadDevices(s.blob, s.command)
}

// stageDisks makes the disks do now whatever could fail later.
func (s *Secondary) stageDisks(ctx context.Context) error {
	if err := s.disks.Err(); err != nil {
		return err
	}
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	return s.late(ctx, "disks", s.disks.Prepare(ctx, s.epoch))
}

// commit puts the staged state into the guest, between StartLoad and EndLoad: a
// failover that is ordered now waits for the end of it. StartLoad comes before
// vmstate-received leaves: once the primary has it, its output may be out in the
// world, and going back to the state before would contradict it. For the same
// reason the commit goes on even if that message could not be sent.
func (s *Secondary) commit(ctx context.Context) error {
	if !s.machine.StartLoad() {
		return ErrFailover
	}
	hold := context.WithoutCancel(ctx)
	var sent error
	if s.epoch > 0 {
		if sent = s.link.Send(VMStateReceived); sent == nil {
			sent = s.link.Flush()
		}
	}
	staged := time.Now()
	s.cp.TransferNS = int64(staged.Sub(s.began))
	err := s.apply(hold)
	s.cp.CommitNS = int64(time.Since(staged))
	if err == nil {
		s.setEpoch(s.epoch)
	}
	s.tornBy = err
	if s.machine.EndLoad(err) {
		s.shut() // the failover that waited for the end of this
	}
	if err != nil {
		return err
	}
	return sent
}

func (s *Secondary) apply(ctx context.Context) error {
	if err := s.cfg.RAM.Flush(); err != nil {
		return fmt.Errorf("memory: %w", err)
	}
	if err := s.loader.Commit(); err != nil {
		return fmt.Errorf("devices: %w", err)
	}
	var err error
	if s.epoch == 0 {
		s.holdDisks()
		err = s.disks.Start(ctx)
	} else {
		err = s.disks.Checkpoint(ctx, s.epoch)
	}
	if err != nil {
		return fmt.Errorf("disks: %w", err)
	}
	if s.cfg.Net != nil {
		net := s.cfg.Net
		s.hold(undo{what: "network", goOn: func(context.Context) error { return net.Failover() }, stay: drop(net)})
		if err := net.Commit(s.epoch); err != nil {
			return fmt.Errorf("network: %w", err)
		}
	}
	return nil
}

func (s *Secondary) loaded(context.Context) error {
	err := s.link.Send(VMStateLoaded)
	if err == nil {
		err = s.link.Flush() // first: whoever hears of the checkpoint may end the session
	}
	s.done()
	return err
}

// received returns how many bytes have come so far, over the link and the channels.
func (s *Secondary) received() int64 { return s.link.R.Offset() + int64(s.beside.bytes()) }

// done counts a checkpoint that is committed here.
func (s *Secondary) done() {
	s.cp.PauseNS = int64(time.Since(s.began))
	s.cp.StoppedNS, s.cp.StoppedEpoch = int64(s.stoppedFor), s.stoppedOf
	s.cp.Bytes = uint64(s.received() - s.offset + s.earlyBytes)
	s.earlyBytes = 0
	if c, ok := s.cfg.RAM.(PageCounter); ok {
		s.cp.Pages = c.Pages()
	}
	s.keeps(s.cfg.RAM)
	s.record(s.cp)
	s.events.Publish(s.cp)
}
