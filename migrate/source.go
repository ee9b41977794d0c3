package migrate

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// SourceConfig has the guest that a [Source] sends, and how it does so.
type SourceConfig struct {
	// VM is the guest, which runs. It is paused when it is handed over.
	VM VM
	// State has the guest's devices and Memory, which the caller has registered. A device
	// that is a [vmstate.Unplugger] keeps the guest here until the guest has given it up.
	State *vmstate.Registry
	// Memory is the memory of the guest.
	Memory *ram.LazySaver
	// Blocks are the blocks that Memory was made with.
	Blocks []ram.Block

	// Machine is the machine's name for the configuration section; a QEMU takes only its
	// own ("pc-i440fx-7.2").
	Machine string

	// MaxDowntime is how long sending the rest may take at the rate of the connection, for
	// precopy to end. 0 means 300 ms.
	MaxDowntime time.Duration
	// MaxPasses is after how many passes over memory precopy ends, however much is left. 0
	// means 32. With Postcopy it does not matter.
	MaxPasses int

	// Postcopy lets the guest go before its memory. The destination must support that.
	Postcopy bool
	// PostcopyAfter is after how many passes that happens, if there is too much left for
	// MaxDowntime. 0 means 1. Below 0 it goes before any pass, as soon as the destination
	// can have it: for a guest that stands still already, and should not.
	PostcopyAfter int

	// Reconnect returns another connection when one breaks in postcopy. Nil: there is none.
	Reconnect Reconnect

	// Channels carry the pages of precopy, in step with each section: a QEMU from 8.1
	// on needs its multifd-flush-after-each-section ([Channels]). They are not for a
	// migration that may become postcopy.
	Channels Channels
}

const (
	// pingRun is the PING in the package, right before the guest runs.
	pingRun = 3
	// pingReady is the PING behind the block list of a guest that goes before any pass
	// over its memory: a destination that cannot take it so has said so before it answers.
	pingReady = 5
)

// lastWords is how long Run waits, after the connection has broken, for a SHUT that the
// other side sent before.
const lastWords = time.Second

// unplugLook is how often a device is asked whether the guest has given it up.
const unplugLook = 20 * time.Millisecond

const (
	defaultDowntime = 300 * time.Millisecond
	defaultPasses   = 32
)

// Source sends a guest. It is used once.
type Source struct {
	cfg      SourceConfig
	channels *sender     // nil: none
	taken    atomic.Bool // the destination has the whole package, with the devices
	course   course

	Stats SourceStats // of Run, after it has returned
}

// SourceStats has the figures of a migration at the source.
type SourceStats struct {
	Passes    int           // over memory, before the guest stood still
	Postcopy  bool          // the guest went before its memory
	Paused    time.Duration // from the pause to the last byte of the devices
	Recovered int           // connections after the first
	Memory    ram.Stats
}

// NewSource makes the side that gives one guest away, as cfg describes it, with the defaults
// where MaxDowntime or MaxPasses is not positive or PostcopyAfter is 0. The guest is not touched
// before Run.
func NewSource(cfg SourceConfig) *Source {
	if cfg.MaxDowntime <= 0 {
		cfg.MaxDowntime = defaultDowntime
	}
	if cfg.MaxPasses <= 0 {
		cfg.MaxPasses = defaultPasses
	}
	if cfg.PostcopyAfter == 0 {
		cfg.PostcopyAfter = 1
	}
	return &Source{cfg: cfg}
}

// Run sends the guest over conn, which it closes, and returns nil when the destination has
// all of it; the guest stands still here then.
//
// An error before the guest was handed over leaves it running here. Afterwards errors.Is
// tells: [ErrRefused] (in precopy it runs on here), [ErrUnknown] or [ErrPaused] (it stands
// still). When ctx ends, so does the connection.
//
// A second call returns [ErrEnded] and closes its connection: the guest may run elsewhere, and is not touched.
func (s *Source) Run(ctx context.Context, conn Conn) (err error) {
	if !s.course.begin(StatusSetup) {
		return errors.Join(ErrEnded, conn.Close())
	}
	defer func() {
		s.course.end(err)
		s.Stats.Memory = s.cfg.Memory.Stats()
		s.cfg.Memory.SendPagesTo(nil)
		s.cfg.State.SaveCleanup()
	}()
	if ctx.Err() != nil { // or the guest might be gone before its end is noticed
		conn.Close()
		s.cfg.Channels.close()
		return context.Cause(ctx)
	}
	x := s.begin(ctx, conn, false)
	owns, err := s.beginChannels(ctx, x)
	if err == nil {
		owns, err = s.send(ctx, x)
	}
	x.end()
	if s.channels != nil {
		s.channels.close()
		if err != nil && !errors.Is(err, ErrRefused) && !errors.Is(err, ErrUnknown) {
			err = s.channels.broken(err)
		}
	}
	if err != nil && owns {
		// The context's end does not keep the guest from running.
		err = errors.Join(err, s.cfg.VM.Resume(context.WithoutCancel(ctx)))
	}
	for err != nil && s.Stats.Postcopy && !owns && !errors.Is(err, ErrRefused) {
		s.course.at(StatusPostcopyPaused)
		if ctx.Err() != nil || s.cfg.Reconnect == nil {
			return s.paused(err)
		}
		next, rerr := s.cfg.Reconnect(ctx, err)
		if rerr != nil {
			return s.paused(errors.Join(err, rerr))
		}
		s.Stats.Recovered++
		s.course.again()
		x := s.begin(ctx, next, true)
		err = s.recover(x)
		x.end()
	}
	return err
}

// beginChannels starts the channels, if there are any.
func (s *Source) beginChannels(ctx context.Context, x *exchange) (owns bool, err error) {
	c := &s.cfg.Channels
	if len(c.Conns) == 0 {
		return false, nil
	}
	if err = c.check(); err == nil && s.cfg.Postcopy {
		err = errors.New("migrate: channels in a migration that may become postcopy")
	}
	if err == nil {
		s.channels, err = newSender(ctx, c, func() { x.conn.Close() })
		if err == nil {
			s.cfg.Memory.SendPagesTo(s.channels)
		}
		return false, err
	}
	for _, conn := range c.Conns {
		conn.Close()
	}
	return false, err
}

// rate returns how fast memory goes, in bytes a second, channelBytes of it over channels.
func (s *Source) rate(x *exchange, since time.Time, channelBytes uint64) float64 {
	// A clock may say that no time went by.
	took := max(time.Since(since), time.Microsecond)
	return x.w.Rate() + float64(channelBytes)/took.Seconds()
}

// channelBytes returns how many bytes went over channels so far.
func (s *Source) channelBytes() uint64 {
	if s.channels == nil {
		return 0
	}
	return s.channels.Bytes()
}

// moved notes how far memory has come, on this connection.
func (s *Source) moved(w *qemufile.Writer) {
	must, can := s.cfg.Memory.Pending(false)
	s.course.moved(s.Stats.Passes, must+can, w.Transferred()+int64(s.channelBytes()))
}

// paused returns the error for a guest that was handed over on a connection that broke:
// it says what is known of where the guest is.
func (s *Source) paused(err error) error {
	if !s.taken.Load() {
		return fmt.Errorf("%w: %w", ErrUnknown, err)
	}
	return fmt.Errorf("%w: %w", ErrPaused, err)
}

// send does the whole migration on one connection. owns says that the guest still belongs to
// this side, and is to run.
func (s *Source) send(ctx context.Context, x *exchange) (owns bool, err error) {
	reg, w := s.cfg.State, x.w
	paused := false
	fail := func(err error) (bool, error) { return paused, x.cause(err) }
	reg.NewSession()
	if err := reg.Blocked(); err != nil {
		return fail(err)
	}
	vmstate.PutFileHeader(w)
	vmstate.PutConfiguration(w, vmstate.Configuration{Machine: s.cfg.Machine})
	vmstate.PutCommand(w, vmstate.OpenReturnPath())
	vmstate.PutCommand(w, vmstate.Ping(1))
	if s.cfg.Postcopy {
		vmstate.PutCommand(w, vmstate.PostcopyAdvise{RAM: true, PageSizes: ram.PageSizes(s.cfg.Blocks), TargetPageSize: ram.PageSize}.Command())
	}
	if err := reg.SaveSetup(w); err != nil {
		return fail(err)
	}
	if err := s.unplugged(x); err != nil {
		return fail(err)
	}
	s.course.at(StatusActive)
	postcopy, err := s.passes(x)
	if err != nil {
		return fail(err)
	}
	s.course.at(StatusDevice)
	start := time.Now()
	if err := s.cfg.VM.Pause(ctx); err != nil {
		return fail(err)
	}
	paused = true
	if postcopy {
		return s.handOver(x, start)
	}
	if err := reg.SaveComplete(w); err != nil {
		return fail(err)
	}
	var devices bytes.Buffer
	d := qemufile.NewWriter(&devices)
	if err := reg.SaveDevices(d); err != nil {
		return fail(err)
	}
	vmstate.PutEOF(d)
	text, err := reg.VMDesc()
	if err != nil {
		return fail(err)
	}
	vmstate.PutDescription(d, text)
	if err := errors.Join(d.Flush(), w.Flush(), x.broken()); err != nil {
		return fail(err)
	}
	w.Write(devices.Bytes())
	err = w.Flush()
	s.Stats.Paused = time.Since(start)
	s.moved(w)
	if err == nil {
		<-x.done
		err = x.err
	} else {
		err = x.cause(err)
	}
	switch {
	case err == nil:
		return false, nil
	case errors.Is(err, ErrRefused):
		return true, err
	}
	return false, fmt.Errorf("%w: %w", ErrUnknown, err)
}

// unplugged waits until the guest has given up what it must give up before it moves (a
// [vmstate.Unplugger]), which takes as long as the guest takes.
func (s *Source) unplugged(x *exchange) error {
	for s.cfg.State.GuestUnplugPending() {
		if err := x.w.Flush(); err != nil {
			return err
		}
		select {
		case <-time.After(unplugLook):
		case <-x.done:
			return x.broken()
		}
	}
	return nil
}

// passes sends memory while the guest runs, until the guest is to be stopped.
func (s *Source) passes(x *exchange) (postcopy bool, err error) {
	reg, w := s.cfg.State, x.w
	if s.cfg.Postcopy && s.cfg.PostcopyAfter < 0 {
		vmstate.PutCommand(w, vmstate.Ping(pingReady))
		if err := w.Flush(); err != nil {
			return false, err
		}
		select {
		case <-x.ready:
			return true, nil
		case <-x.done:
			return false, x.broken()
		}
	}
	for {
		begun, before := time.Now(), s.channelBytes()
		for done := false; !done; {
			if done, err = reg.SaveIterate(w); err != nil {
				return false, err
			}
			s.moved(w)
			if err := x.broken(); err != nil {
				return false, err
			}
		}
		if err := w.Flush(); err != nil {
			return false, err
		}
		s.Stats.Passes++
		most := s.rate(x, begun, s.channelBytes()-before) * s.cfg.MaxDowntime.Seconds()
		must, can := reg.Pending(false)
		if float64(must+can) <= most {
			must, can = reg.Pending(true) // asking for it reads the dirty log
			s.moved(w)
		}
		switch {
		case float64(must+can) <= most:
			return false, nil
		case s.cfg.Postcopy && s.Stats.Passes >= s.cfg.PostcopyAfter:
			return true, nil
		case !s.cfg.Postcopy && s.Stats.Passes >= s.cfg.MaxPasses:
			return false, nil
		}
	}
}

// handOver lets the guest go before its memory, which it then sends.
func (s *Source) handOver(x *exchange, start time.Time) (owns bool, err error) {
	reg, w := s.cfg.State, x.w
	fail := func(err error) (bool, error) { return true, x.cause(err) }
	if err := reg.SaveCompleteInPostcopy(w); err != nil {
		return fail(err)
	}
	if err := s.cfg.Memory.BeginPostcopy(w); err != nil {
		return fail(err)
	}
	vmstate.PutCommand(w, vmstate.Ping(2))
	var nested bytes.Buffer
	d := qemufile.NewWriter(&nested)
	vmstate.PutCommand(d, vmstate.PostcopyListen())
	if err := reg.SaveDevices(d); err != nil {
		return fail(err)
	}
	vmstate.PutCommand(d, vmstate.Ping(pingRun))
	vmstate.PutCommand(d, vmstate.PostcopyRun())
	if err := errors.Join(d.Flush(), w.Flush(), x.broken()); err != nil {
		return fail(err)
	}
	s.Stats.Postcopy = true
	vmstate.PutPackaged(w, nested.Bytes())
	vmstate.PutCommand(w, vmstate.Ping(4))
	err = w.Flush()
	s.Stats.Paused = time.Since(start)
	if err != nil {
		return false, x.cause(err)
	}
	return false, s.follow(x)
}
