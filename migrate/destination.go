package migrate

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// DestinationConfig has the guest that a [Destination] fills, and how it does so.
type DestinationConfig struct {
	// VM is the guest, which stands still. It runs when it may. In postcopy its Resume must
	// not wait for memory: Run waits for Resume, also when no more memory will come.
	VM VM
	// State has the guest's devices and Memory, which the caller has registered.
	State *vmstate.Registry
	// Memory is the guest's memory; the caller closes it, when the guest has ended if Run
	// has failed in postcopy. Where the connection is lost before the guest has run, Run
	// itself closes Memory, because its devices may wait for memory; closing it again
	// does nothing. Go code of the guest's devices calls its Ensure before it touches
	// memory.
	Memory *ram.Lazy
	// Blocks are the blocks from which Memory was made.
	Blocks []ram.Block

	// Machine is the name of the machine; the name that the source gives must be a prefix of
	// it. Empty: any.
	Machine string
	// Postcopy says that the source may begin postcopy: a QEMU's capability postcopy-ram,
	// which must be the same on both sides, without postcopy-preempt.
	Postcopy bool
	// NoDescription says that the source sends no description of the devices after them
	// (a QEMU with suppress-vmdesc); the stream does not tell.
	NoDescription bool

	// Reconnect returns another connection when one breaks in postcopy. Nil: there is none.
	Reconnect Reconnect

	// Channels bring the pages of precopy, in step with each section, as a QEMU up
	// to 8.0 sends them; a later one needs its multifd-flush-after-each-section.
	Channels Channels
}

// Destination takes a guest. It is used once.
type Destination struct {
	cfg DestinationConfig
	in  vmstate.Incoming

	mu        sync.Mutex // held while the return path is written, or another takes its place
	rp        *vmstate.ReturnWriter
	running   bool // in postcopy: Resume was called
	abandoned bool // the guest must not be resumed any more

	answers atomic.Bool // the source reads a return path
	course  course

	Stats DestinationStats // the figures of Run, after it has returned
}

// DestinationStats has the figures of a migration at the destination.
type DestinationStats struct {
	Postcopy        bool          // the guest ran before its memory was there
	Resumed         time.Time     // when the guest began to run
	Memory          time.Duration // from then until all of it was there
	Recovered       int           // connections after the first
	Placed, Touched uint64        // pages of the host that came in postcopy, and that somebody waited for
}

// NewDestination makes the side that takes one guest, as cfg describes it. Nothing is checked and no
// memory is taken before Run.
func NewDestination(cfg DestinationConfig) *Destination {
	d := &Destination{cfg: cfg}
	d.in = vmstate.Incoming{
		PostcopyRAM: cfg.Postcopy, PageSizes: ram.PageSizes(cfg.Blocks), TargetPageSize: ram.PageSize,
		Block: cfg.Memory.Block,
	}
	return d
}

// Run takes the guest from conn, which it closes, and returns nil when all of the guest is here.
// The guest runs then; in postcopy it has been running for some time.
//
// After an error the guest has not run here, and never may, with two exceptions. After
// [ErrPaused] it runs, and whatever touches missing memory waits. After an error of VM.Resume
// the guest belongs to this side: the source does not run it any more, and the host may call
// Resume again.
//
// When ctx ends, so does the connection. A guest that belongs to this side by then is resumed
// all the same.
//
// A source that is silent is waited for: a host that bounds that does so in the Read of conn. A second call returns
// [ErrEnded] and closes its connection: the guest may run here, and is not touched.
func (d *Destination) Run(ctx context.Context, conn Conn) (err error) {
	if !d.course.begin(StatusActive) {
		return errors.Join(ErrEnded, conn.Close())
	}
	defer func() { d.course.end(err) }()
	if ctx.Err() != nil { // or the guest might be here before its end is noticed
		conn.Close()
		d.cfg.Channels.close()
		return context.Cause(ctx)
	}
	x := open(ctx, conn)
	defer func() { x.close() }()
	d.answer(x)
	d.cfg.State.NewSession()
	err = d.loadWithChannels(ctx, x)
	if !errors.Is(err, vmstate.ErrPostcopyRun) {
		if err == nil {
			err = d.cfg.State.Commit()
		}
		if err != nil {
			d.cfg.State.Rollback()
			d.shut(err)
			return err
		}
		// From here on the guest belongs to this side, whether the source hears of it or not.
		d.shut(nil)
		d.Stats.Resumed = time.Now()
		return d.cfg.VM.Resume(context.WithoutCancel(ctx))
	}

	d.Stats.Postcopy = true
	d.course.at(StatusPostcopy)
	served := make(chan error, 1)
	go func() { served <- d.cfg.Memory.Serve(d.ask) }()
	// What the devices do, and the guest, may need memory that comes by the connection.
	started := make(chan error, 1)
	go func() { started <- d.start(ctx) }()
	id, _ := d.cfg.State.PeerID(ram.SectionName, 0)
	pause := func(err error) error {
		d.cfg.Memory.Interrupt()
		err = errors.Join(err, <-served)
		if d.abandon() {
			return fmt.Errorf("%w: %w", ErrPaused, errors.Join(err, <-started))
		}
		// The guest has not run. Its devices may wait for memory that will not come, which
		// nothing else ends.
		err = errors.Join(err, d.cfg.Memory.Close())
		return errors.Join(err, <-started)
	}
	for {
		err := d.follow(x, id)
		if err == nil {
			err = d.cfg.Memory.Finish()
		}
		if err == nil {
			// All of the memory is here, so nothing kept the guest from starting.
			err := <-started
			d.shut(err)
			if err != nil {
				return errors.Join(err, <-served)
			}
			d.Stats.Memory = time.Since(d.Stats.Resumed)
			d.Stats.Placed, d.Stats.Touched = d.cfg.Memory.Placed()
			return <-served
		}
		x.close() // ends the writes to it
		d.answer(nil)
		d.course.at(StatusPostcopyPaused)
		if ctx.Err() != nil || d.cfg.Reconnect == nil {
			return pause(err)
		}
		next, rerr := d.cfg.Reconnect(ctx, err)
		if rerr != nil {
			return pause(errors.Join(err, rerr))
		}
		d.Stats.Recovered++
		d.course.again()
		d.in.Pause()
		d.cfg.Memory.NewSession()
		x = open(ctx, next)
		d.answer(x)
	}
}

// start applies the devices and lets the guest run, unless abandon was called before.
func (d *Destination) start(ctx context.Context) error {
	if err := d.cfg.State.Commit(); err != nil {
		d.cfg.State.Rollback()
		return err
	}
	d.mu.Lock()
	if d.abandoned {
		d.mu.Unlock()
		return errors.New("migrate: abandoned before the guest ran")
	}
	d.running = true
	d.mu.Unlock()
	d.Stats.Resumed = time.Now()
	return d.cfg.VM.Resume(context.WithoutCancel(ctx))
}

// abandon keeps a guest that does not run yet from running, and reports whether it runs.
func (d *Destination) abandon() (running bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.abandoned = true
	return d.running
}

// answer makes x the connection whose return path is written; nil: none.
func (d *Destination) answer(x *wire) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.rp = nil
	if x != nil {
		d.rp = &vmstate.ReturnWriter{W: x.w}
	}
}

// reply writes to the return path, if there is one.
func (d *Destination) reply(fn func(*vmstate.ReturnWriter) error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.rp == nil {
		return nil
	}
	return fn(d.rp)
}

// ask asks the source for memory. Where the connection is broken it is asked for again on
// the next one.
func (d *Destination) ask(block string, start uint64, length uint32) {
	_ = d.reply(func(rp *vmstate.ReturnWriter) error { return rp.RequestPages(block, start, length) })
}

// shut tells a source that reads a return path how the migration has ended. If that does
// not arrive the source sees the connection end.
func (d *Destination) shut(err error) {
	if d.answers.Load() {
		_ = d.reply(func(rp *vmstate.ReturnWriter) error { return rp.Shut(err == nil) })
	}
}

// loadWithChannels is load, with the channels if there are any.
func (d *Destination) loadWithChannels(ctx context.Context, x *wire) error {
	c := &d.cfg.Channels
	if len(c.Conns) == 0 {
		return d.load(x)
	}
	err := c.check()
	if err == nil && d.cfg.Postcopy {
		err = errors.New("migrate: channels in a migration that may become postcopy")
	}
	if err != nil {
		c.close()
		return err
	}
	v := newReceiver(ctx, c, d.cfg.Memory, func(err error) {
		d.shut(err) // the source would take the mere end of the stream for a broken connection
		x.conn.Close()
	})
	d.cfg.Memory.SetBarrier(v.barrier)
	defer d.cfg.Memory.SetBarrier(nil)
	err = d.load(x)
	if broken := v.stop(); broken != nil {
		return broken // which is why the stream has ended, if it has
	}
	return err
}

// load takes everything up to the guest's start.
func (d *Destination) load(x *wire) error {
	if err := vmstate.ReadFileHeader(x.r); err != nil {
		return err
	}
	c, err := vmstate.ReadConfiguration(x.r)
	if err != nil {
		return err
	}
	if d.cfg.Machine != "" {
		if err := c.Check(vmstate.Configuration{Machine: d.cfg.Machine}); err != nil {
			return fmt.Errorf("migrate: %w", err)
		}
	}
	err = d.cfg.State.Load(x.r, d.command)
	if st := d.in.Postcopy(); err == nil && st > vmstate.PostcopyAdvised {
		// Memory was dropped, or made missing, that nobody would bring.
		return fmt.Errorf("migrate: the stream ends in postcopy state %v, and the guest was not to run: %w", st, io.ErrUnexpectedEOF)
	}
	if err == nil && !d.cfg.NoDescription {
		if _, err = vmstate.ReadVMDesc(x.r, 0); errors.Is(err, io.EOF) {
			err = nil // the source has said everything that matters
		}
	}
	return err
}

// command carries out one command of the source.
func (d *Destination) command(c vmstate.Command) error {
	act, err := d.in.Accept(c)
	d.answers.Store(d.in.ReturnPath())
	if err != nil || !act {
		return err
	}
	switch c.Type {
	case vmstate.CommandPing:
		v, err := c.AsPing()
		if err != nil {
			return err
		}
		// If it cannot be sent the connection has broken; what has come of it counts all the same.
		_ = d.reply(func(rp *vmstate.ReturnWriter) error { return rp.Pong(v) })
		return nil
	case vmstate.CommandPostcopyAdvise:
		if !d.cfg.Postcopy {
			return nil // of dirty bitmaps alone: the memory comes before the guest runs
		}
		if err := d.cfg.Memory.Probe(); err != nil {
			return err
		}
		return d.cfg.Memory.PostcopyAdvised()
	case vmstate.CommandRAMDiscard:
		r, err := c.AsRAMDiscard()
		if err != nil {
			return err
		}
		return d.cfg.Memory.Discard(r)
	case vmstate.CommandPostcopyListen:
		if !d.cfg.Postcopy {
			// Memory would be missing under those who bring it: channels, for one.
			return fmt.Errorf("%w %v, but the guest is not to run before its memory is here", vmstate.ErrCommand, c)
		}
		return d.cfg.Memory.Listen()
	case vmstate.CommandRecvBitmap:
		block, err := c.AsRecvBitmap()
		if err != nil {
			return err
		}
		words, err := d.cfg.Memory.Received(block)
		if err != nil {
			return err
		}
		return d.reply(func(rp *vmstate.ReturnWriter) error { return rp.RecvBitmap(block, words) })
	case vmstate.CommandPostcopyResume:
		d.course.at(StatusPostcopy)
		if err := d.reply((*vmstate.ReturnWriter).ResumeAck); err != nil {
			return err
		}
		d.cfg.Memory.Outstanding(d.ask)
	}
	return nil
}

// follow takes memory while the guest runs, up to the end of the stream. The registry is in
// use elsewhere, and only memory may come.
func (d *Destination) follow(x *wire, id uint32) error {
	for {
		t := vmstate.SectionType(x.r.Byte())
		if err := x.r.Err(); err != nil {
			return qemufile.NoEOF(err)
		}
		switch t {
		case vmstate.EOF:
			return nil
		case vmstate.SectionPart, vmstate.SectionEnd:
			if got := x.r.BE32(); x.r.Err() == nil && got != id {
				return fmt.Errorf("migrate: section %d in postcopy: %w", got, vmstate.ErrUnknownSection)
			}
			err := d.cfg.Memory.LoadState(x.r, ram.Version)
			if err == nil && !d.cfg.State.NoFooters {
				err = vmstate.ReadFooter(x.r, id)
			}
			if err != nil {
				return fmt.Errorf("migrate: memory in postcopy: %w", err)
			}
		case vmstate.CommandRecord:
			c, err := vmstate.ReadCommand(x.r)
			switch {
			case err != nil:
			case c.Type == vmstate.CommandPackaged:
				err = fmt.Errorf("%w %v: the devices have come", vmstate.ErrCommand, c)
			default:
				err = d.command(c)
			}
			if err != nil {
				return fmt.Errorf("migrate: command in postcopy: %w", err)
			}
		default:
			return fmt.Errorf("migrate: %w %d in postcopy", vmstate.ErrSectionType, byte(t))
		}
	}
}
