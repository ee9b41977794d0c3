package colo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/internal/wait"
	"github.com/gocolo/lockstep/qemufile"
)

// Primary is one session of the side whose guest talks to the world.
type Primary struct {
	session
	cfg PrimaryConfig

	delay   atomic.Int64                // CheckpointDelay, a time.Duration; negative: back to back
	changed chan struct{}               // the delay was changed
	request chan struct{}               // capacity one: requests coalesce
	why     atomic.Pointer[event.Cause] // the cause of the pending request

	converging atomic.Pointer[convergence] // asked for, and not met yet

	blob  blob             // device state of the checkpoint under way
	blobW *qemufile.Writer // writes blob

	description []byte // of epoch 0's device state, made with it: devices change when the guest runs on

	trigger   time.Time              // when the checkpoint under way was called for
	began     time.Time              // when the initial synchronisation began
	cp        event.CheckpointCommit // the figures of the checkpoint under way
	stopped   time.Time              // when the guest stood still
	received  time.Time              // when vmstate-received came
	earlier   time.Time              // when the checkpoint before began
	ends      time.Time              // the mark of the checkpoint under way
	marked    time.Time              // the mark of the last checkpoint that was received
	whole     bool                   // all state is captured: nothing more is read from the paused guest
	sending   bool                   // vmstate-send has left
	before    int64                  // bytes sent before this checkpoint
	last      uint64                 // bytes of the last checkpoint
	sentAhead uint64                 // how many of them were sent while the guest ran
	picky     AheadSender            // nil: RAM is none
	aheadRest int                    // timer checkpoints until memory is sent ahead again

	early   early
	sendsAt time.Time // when the memory of the checkpoint under way began to be sent
	sends   int64     // bytes that had been sent then

	syncRate float64 // bytes a second in the initial synchronisation, the scan of memory included; 0: not known

	peerIdle time.Duration // how often the waiting primary says that it lives

	throttle  throttle
	throttler Throttler // nil: none
	resender  Resender  // nil: none

	pass       int  // over memory; MIGRATION_PASS counts them through the session
	disksUp    bool // the disks were started
	handedOver bool // the secondary may have the whole guest
}

// NewPrimary makes the primary's side of a session. The Primary owns conn from now on
// and closes it at the end of Run; if NewPrimary fails, conn and Channels.Conns stay open
// and belong to the caller. One Primary is one session: after a failover
// the survivor makes a new one to be protected again.
func NewPrimary(conn io.ReadWriteCloser, cfg PrimaryConfig) (*Primary, error) {
	if cfg.VM == nil || cfg.State == nil {
		return nil, errors.New("colo: PrimaryConfig needs VM and State")
	}
	if err := cfg.times(); err != nil {
		return nil, err
	}
	p := &Primary{cfg: cfg, changed: make(chan struct{}, 1), request: make(chan struct{}, 1)}
	p.session.init(conn, event.ModePrimary, cfg.PeerTimeout)
	p.vm, p.state, p.disks = cfg.VM, cfg.State, cfg.Disks
	p.events, p.arbiter, p.session.step = told{cfg.Events, cfg.Logger, &p.session}, cfg.Arbiter, cfg.Step
	p.holder, _ = cfg.Net.(OutputHolder)
	p.resender, _ = cfg.RAM.(Resender)
	p.picky, _ = cfg.RAM.(AheadSender)
	p.link.Trace = cfg.Trace
	p.heartbeat(cfg.Heartbeat)
	if p.throttler = cfg.Throttler; p.throttler == nil {
		p.throttler, _ = cfg.VM.(Throttler)
	}
	if p.stopper = cfg.Stopper; p.stopper == nil {
		p.stopper, _ = cfg.VM.(Stopper)
	}
	p.throttle.most = min(max(0, orDefault(cfg.ThrottleMax, throttleMost)), throttleMost)
	p.delay.Store(int64(orDefault(cfg.CheckpointDelay, DefaultCheckpointDelay)))
	p.cfg.MinInterval = orDefault(cfg.MinInterval, DefaultMinInterval)
	if p.arbiter != nil {
		p.cfg.CheckpointTimeout = orDefault(cfg.CheckpointTimeout, DefaultCheckpointTimeout)
	}
	if p.goodbyeTime = p.patience(); p.cfg.CheckpointTimeout > 0 {
		p.goodbyeTime = p.cfg.CheckpointTimeout
	}
	p.cfg.MaxDowntime = orDefault(cfg.MaxDowntime, DefaultMaxDowntime)
	p.cfg.MaxPasses = orDefault(cfg.MaxPasses, 30)
	p.cfg.AheadThreshold = orDefault(cfg.AheadThreshold, 4<<20)
	p.blobW = qemufile.NewWriter(&p.blob)
	if err := p.openEarly(); err != nil {
		return nil, err
	}
	if err := p.openChannels(); err != nil {
		return nil, err
	}
	return p, nil
}

// Run synchronises the secondary and then keeps it in step, until the session
// ends. It may be called once; a second call returns ErrEnded and touches
// nothing. It returns nil if this side goes on alone: the guest runs here,
// unprotected, because a failover was ordered and granted, the arbiter gave it
// to this side, or the protection was ended on purpose, by End of either side
// or because the secondary cannot go on. It returns ErrDegraded if that is so
// and something else went wrong. Otherwise the error says why not, and the guest
//   - runs on, as before, if the initial synchronisation failed before the
//     secondary could have had all of it, or the secondary says that it has not
//     taken it (ErrGoodbye): what the attempt held has been released;
//   - is paused by this session in every other case, since the other side may
//     be running it (ErrNotPaused where it could not be paused, ErrNotResumed
//     where it could not be resumed).
//
// Run never takes back a pause that it did not make: see VM.
//
// A cancelled context ends the protection as End does, and Run returns the
// context's error. The guest runs on (Info.State is StateAlone) if the secondary has
// answered the goodbye, or else if the arbiter, which is asked once more, grants
// it; if nothing can be known it is paused.
func (p *Primary) Run(ctx context.Context) error {
	if err := p.enter(); err != nil {
		return err
	}
	p.link.watch()
	defer p.link.join()
	stop := wait.AtEnd(ctx, p.wished)
	defer stop()
	defer p.state.SaveCleanup()
	defer p.beside.end()

	p.setWhere(StateSynchronising)
	err := p.synchronise(ctx)
	var bye *GoodbyeError
	if err != nil && (!p.handedOver || errors.As(err, &bye)) && p.leave() {
		if e := ctx.Err(); e != nil && !errors.Is(err, e) {
			err = fmt.Errorf("%w: %w", e, err)
		}
		return p.unprotected(ctx, err)
	}
	for err == nil {
		var cause event.Cause
		p.setWhere(StateProtected)
		if cause, err = p.wait(ctx); err == nil {
			err = p.checkpoint(ctx, cause)
		}
	}
	// sure: nobody else can run the guest, because the secondary never had it
	// or has said goodbye.
	sure, by, reason := !p.handedOver, event.ModeSecondary, ""
	cancelled := ctx.Err() != nil && !errors.Is(err, ErrFailover)
	switch {
	case errors.As(err, &bye):
		// Where the host gives the guest away (Expect), the goodbye says that the
		// other side does not run it; it does not say that this side may.
		if p.goesOnUnasked() {
			sure, reason = true, bye.Reason
		}
	case sure:
	case errors.Is(err, errEnd), cancelled && errors.Is(err, ctx.Err()):
		sure, by = p.farewell(), event.ModePrimary
	case errors.Is(err, ErrStalled):
		p.events.Publish(event.OutputStalled{Mode: p.mode, Epoch: p.epoch, AgeNS: int64(time.Since(p.since)), Step: p.op})
	}
	if sure && p.handedOver {
		p.events.Publish(event.ProtectionEnded{Mode: p.mode, By: by, Epoch: p.committed(), Reason: reason})
	}
	end := p.end(ctx, parting{cause: err, sure: sure})
	switch {
	case end != nil || !cancelled:
		return end
	case errors.Is(err, ctx.Err()):
		return err
	}
	return p.at(ctx.Err())
}

// farewell says goodbye, and reports whether the secondary has answered, so that
// it will not run the guest.
func (p *Primary) farewell() bool {
	p.heed()
	if !p.ours || p.purpose() != nil {
		return false
	}
	p.op = "say goodbye"
	p.link.allow()
	p.link.patience(p.goodbyeTime)
	err := p.link.sayGoodbye("")
	if err == nil || errors.Is(err, ErrOutOfTurn) {
		p.link.until(time.Now().Add(p.goodbyeTime)) // however many reads bring it
		err = p.link.Expect(Goodbye)
	}
	return err == nil || errors.Is(err, ErrGoodbye)
}

// RequestCheckpoint asks for a checkpoint soon, because the guests have
// diverged or a buffer is filling. It never blocks. Requests that wait count as
// one, and the first cause is the one that is reported. Safe from any
// goroutine.
func (p *Primary) RequestCheckpoint(cause event.Cause) {
	p.why.CompareAndSwap(nil, &cause)
	select {
	case p.request <- struct{}{}:
	default:
	}
}

// SetCheckpointDelay changes CheckpointDelay; the new one counts from the last
// trigger. Safe from any goroutine.
func (p *Primary) SetCheckpointDelay(d time.Duration) {
	p.delay.Store(int64(d))
	select {
	case p.changed <- struct{}{}:
	default:
	}
}

// wait returns when there is a reason for a checkpoint. The delay counts from
// trigger to trigger, as in QEMU. It also returns, with an error, when the secondary says
// something, which it may not now, or the link ends.
func (p *Primary) wait(ctx context.Context) (event.Cause, error) {
	p.op = "wait"
	timer := time.NewTimer(time.Until(p.trigger.Add(time.Duration(p.delay.Load()))))
	defer timer.Stop()
	var alive <-chan time.Time
	if p.ours && p.peerIdle > 0 {
		t := time.NewTicker(p.peerIdle)
		defer t.Stop()
		alive = t.C
	}
	var piece <-chan time.Time // when something may be sent early
	pieces := p.early.begin(p.interval(), p.ends)
	if pieces != nil {
		defer pieces.Stop()
		piece = pieces.C
	}
	var early <-chan time.Time // when a request may be met
	for {
		err := p.interrupted(ctx)
		if err == nil {
			err = p.wishedFor(ctx) // here the two sides can say goodbye
		}
		if err != nil {
			return "", p.fail(ctx, err)
		}
		if p.link.unread() {
			return "", p.fail(ctx, ErrOutOfTurn)
		}
		requests := p.request
		if early != nil {
			requests = nil
		}
		select {
		case <-p.quit:
		case <-p.lost:
		case <-p.wish:
		case <-ctx.Done():
		case <-p.link.conn.inlet.arrived:
		case <-alive:
			if err := errors.Join(p.link.Send(Alive), p.link.Flush()); err != nil {
				return "", p.fail(ctx, err)
			}
		case <-piece:
			if p.urgent() {
				continue // the checkpoint sends what is left
			}
			wait, err := p.sendEarly(ctx)
			if err != nil {
				return "", p.fail(ctx, err)
			}
			if p.op = "wait"; wait > 0 {
				pieces.Reset(wait)
			}
		case <-p.changed:
			timer.Reset(time.Until(p.trigger.Add(time.Duration(p.delay.Load()))))
		case <-requests:
			if left := time.Until(p.trigger.Add(p.cfg.MinInterval)); left > 0 && p.epoch > 0 && p.converging.Load() == nil {
				t := time.NewTimer(left)
				defer t.Stop()
				early = t.C
				continue
			}
			if c := p.why.Swap(nil); c != nil {
				p.trigger = time.Now()
				return *c, nil
			}
		case <-early:
			early = nil
			if c := p.why.Swap(nil); c != nil {
				p.trigger = time.Now()
				return *c, nil
			}
		case <-timer.C:
			p.trigger = time.Now()
			if early != nil {
				if c := p.why.Swap(nil); c != nil {
					return *c, nil
				}
			}
			return event.CauseTimer, nil
		}
	}
}

// checkpoint is the primary's side of one checkpoint. It reads like the
// protocol; see the package comment for why each step stands where it does.
func (p *Primary) checkpoint(ctx context.Context, cause event.Cause) error {
	p.epoch++
	p.cp = event.CheckpointCommit{Mode: p.mode, Epoch: p.epoch, Cause: cause}
	p.earlier, p.since = p.since, time.Now()
	p.sending, p.sentAhead = false, 0
	p.mustEnd(0)
	p.events.Publish(event.CheckpointStart{Mode: p.mode, Epoch: p.epoch, Cause: cause})
	p.before = p.sent()

	steps := []step{
		{"send checkpoint-request", p.send(CheckpointRequest)},
		{"expect checkpoint-reply", p.expectReply},
		{"send ram ahead", p.approach(cause)},
		{"pause", p.stop},
		{"mark", p.mark},
		{"capture", p.capture},
		{"early resume", p.resumeEarly},
		{"send vmstate-send", p.sendVMStateSend},
		{"send ram", p.sendRAM},
		{"send device state", p.sendDeviceState},
		{"expect vmstate-received", p.expectReceived},
		{"expect vmstate-loaded", p.expectLoaded},
		{"late resume", p.resume},
	}
	if err := p.do(ctx, steps...); err != nil {
		return err
	}
	p.due = time.Time{}
	p.link.until(p.due)
	if p.cp.EarlyResume {
		p.measure(p.epoch) // by now the last vCPU is back in the guest
	} else {
		p.cp.PauseNS = int64(time.Since(p.stopped))
	}
	p.cp.StoppedNS, p.cp.StoppedEpoch = int64(p.stoppedFor), p.stoppedOf
	p.cp.Bytes = uint64(p.sent() - p.before)
	p.cp.Pages = p.pages()
	p.last = p.cp.Bytes
	p.backOff()
	p.cp.Bytes += uint64(p.early.bytes)
	p.early.committed(p.cp.Pages)
	if p.cfg.ThrottleShare > 0 && p.delay.Load() >= 0 {
		p.throttle.checkpoint(time.Since(p.since), p.since.Sub(p.earlier), p.cfg.ThrottleShare)
		p.slow()
	}
	p.keeps(p.cfg.RAM)
	p.record(p.cp)
	p.events.Publish(p.nextPass())
	p.events.Publish(p.cp)
	return nil
}

func (p *Primary) send(m Message) func(context.Context) error {
	return func(context.Context) error { return p.link.Send(m) }
}

// expectWork waits for the message with which the secondary answers when it has done
// its work. The secondary may take as long as the checkpoint may. Where that has no bound,
// PeerTimeout is the bound, plus 4 ns for each of bytes (256 MB/s) for a commit, which
// copies them into the guest and shows no progress meanwhile.
func (p *Primary) expectWork(m Message, bytes int64) error {
	return p.working(bytes, func() error { return p.link.Expect(m) })
}

// working calls expect, whose waits are bounded as expectWork says.
func (p *Primary) working(bytes int64, expect func() error) error {
	d := p.patient
	switch {
	case !p.due.IsZero():
		d = 0
	case d > 0:
		d += 4 * time.Duration(bytes)
	}
	p.link.patience(d)
	defer p.link.patience(p.patient)
	return expect()
}

// mustEnd sets when the checkpoint that began at since is too old: after
// CheckpointTimeout, and more on top.
func (p *Primary) mustEnd(more time.Duration) {
	p.due = time.Time{}
	if p.cfg.CheckpointTimeout > 0 {
		p.due = p.since.Add(p.cfg.CheckpointTimeout + more)
	}
	p.link.until(p.due)
}

func orDefault[T int | int64 | uint64 | time.Duration](v, def T) T {
	if v == 0 {
		return def
	}
	return v
}
