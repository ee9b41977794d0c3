package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/internal/cli"
	"github.com/gocolo/lockstep/replication"
	"github.com/gocolo/lockstep/replication/nbd"
)

// primary is the process of the primary's side.
type primary struct {
	*printer
	events   event.Bus
	o        options
	disk     *replication.Primary
	control  *control
	conn     *nbd.Client // to the secondary's disk, which has it; nil: there was none yet
	identity string      // the export of whose copy that is
	epoch    uint64
	due      chan func(context.Context) error // checkpoints that are due since an overlay of the secondary fills up
	verdict  error                            // of the last verify or repair; nil: the copies are the same, or none was ordered
}

func runPrimary(ctx context.Context, o options, commands io.Reader, out *printer) (err error) {
	image, err := openImage(o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, image.Close()) }()
	p := &primary{printer: out, o: o, due: make(chan func(context.Context) error, 1)}
	p.events.SubscribeAll(out.event)
	event.Subscribe(&p.events, func(event.DiskOverlayHalfFull) { p.ask() })
	event.Subscribe(&p.events, func(event.DiskOverlayFull) { p.ask() })
	p.disk, err = replication.NewPrimary(image, replication.PrimaryConfig{
		Name: diskName, Events: &p.events, Overwrite: o.overwrite, PermitOutdated: o.overwrite,
	})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { p.disk.Run(ctx) })
	defer p.disconnect()
	if o.listen != "" {
		ln, err := listen(o.listen)
		if err != nil {
			return cli.Listening("-listen", err)
		}
		srv := nbd.NewServer(nbd.ServerConfig{})
		if _, err := srv.Export(nbd.ExportConfig{
			Name: diskName, Disk: p.disk, MaxClients: 8, Description: "the primary's disk",
			Contexts: []nbd.Context{{Name: nbd.ContextDirty, Extents: p.disk.DirtyExtents}}, // what the secondary lacks
		}); err != nil {
			return errors.Join(err, ln.Close())
		}
		wg.Go(func() { srv.Serve(ctx, ln) })
		p.printf("primary: %d bytes, serving at %s", image.Size(), o.listen)
	}
	if err := p.connect(ctx); err != nil {
		return err
	}
	err = p.obey(ctx, commands, p.due, p.command)
	return cmp.Or(p.verdict, err)
}

// connect attaches the secondary, copies to it what it does not have, and
// starts. A secondary that is attached already stays until there are connections to take the place of its own.
// If connect fails after that the guest goes on without: what it writes would be held otherwise, if the Mark was made.
func (p *primary) connect(ctx context.Context) error {
	var next *reached
	err := p.meanwhile(ctx, func() (err error) { next, err = p.reach(ctx); return err })
	if err != nil && p.linked() && p.disk.Err() == nil {
		return fmt.Errorf("%w; the secondary that is attached stays", err)
	}
	p.disconnect() // two sessions would write one image otherwise
	if err != nil {
		return err
	}
	if err = p.join(ctx, next); err != nil {
		p.disconnect()
	}
	return err
}

// unequal adds to the error of disks that are not equally long what makes them so.
func unequal(err error) error {
	if errors.Is(err, replication.ErrSize) {
		return fmt.Errorf("%w (end both sides, give the shorter image the length of the other with truncate -s, and start them again)", err)
	}
	return err
}

// join attaches the secondary that has been reached.
func (p *primary) join(ctx context.Context, to *reached) error {
	c, conn, sums, identity := to.control, to.disk, to.sums, to.identity
	p.control = c
	defer sums.Close()
	defer abortAfter(ctx, conn, sums, identity)()
	remote := replication.WithIdentity(conn, identity)
	if err := p.disk.Attach(remote); err != nil {
		err = unequal(p.lost(err, conn, identity))
		return cmp.Or(ctx.Err(), errors.Join(err, remote.Close()))
	}
	p.conn, p.identity = conn, identity.Info().Name
	if err := p.disk.Synchronise(ctx, replication.SyncConfig{Sums: sums}); err != nil {
		return cmp.Or(ctx.Err(), p.lost(err, conn, sums))
	}
	if err := p.disk.Mark(ctx, 0); err != nil {
		return p.lost(err, conn)
	}
	epoch, err := c.ask(ctx, "start", "started")
	if err != nil {
		return err
	}
	if p.epoch, err = parseCheckpoint(epoch); err != nil {
		return err
	}
	if err := errors.Join(p.disk.Loaded(ctx, 0), p.disk.Start(ctx)); err != nil {
		return p.lost(err, conn)
	}
	p.events.Publish(event.CheckpointCommit{Mode: event.ModePrimary, Epoch: p.epoch, Cause: event.CauseInitial})
	return nil
}

// abortAfter aborts connections when ctx ends, so that nobody waits for answers to them any more,
// unless the function that it returns was called before.
func abortAfter(ctx context.Context, conns ...*nbd.Client) (stop func() bool) {
	return context.AfterFunc(ctx, func() {
		for _, c := range conns {
			c.Abort()
		}
	})
}

func (p *primary) disconnect() {
	if p.disk.State() == replication.Running {
		p.disk.Stop(context.Background(), false) // whether it goes on alone, its guest's next write decides
	} else {
		p.disk.Detach() // of a connect that failed
	}
	if p.control != nil {
		p.control.conn.Close()
		p.control = nil
	}
}

var errNoSecondary = errors.New("no secondary: try reconnect")

// linked reports whether there is a secondary, as far as is known.
func (p *primary) linked() bool { return p.control != nil && p.disk.State() == replication.Running }

// ask makes obey make a checkpoint before the next command, if the secondary is there then.
func (p *primary) ask() {
	select {
	case p.due <- func(ctx context.Context) error {
		if !p.linked() {
			return nil
		}
		return p.checkpoint(ctx)
	}:
	default: // one is due already
	}
}

// meanwhile calls do, and makes the checkpoints that are due until it returns: what do is about, or
// the guest, may wait for them.
func (p *primary) meanwhile(ctx context.Context, do func() error) error {
	done := make(chan error, 1)
	go func() { done <- do() }()
	for {
		select {
		case err := <-done:
			return err
		case now := <-p.due:
			if err := now(ctx); err != nil {
				p.failed(err)
			}
		}
	}
}

// checkpoint does what a protected VM's checkpoint does to its disks. The
// guest here is not paused, so the checkpoint is of whatever had been written
// when it began.
func (p *primary) checkpoint(ctx context.Context) error {
	if !p.linked() {
		return errNoSecondary
	}
	epoch := p.epoch + 1
	if err := p.disk.Mark(ctx, epoch); err != nil {
		err = p.lost(err, p.conn)
		if p.disk.LocalErr() != nil { // the secondary is there, and what the guest writes would be held for good
			err = errors.Join(err, p.disk.Stop(ctx, false))
		}
		return err
	}
	if _, err := p.control.ask(ctx, fmt.Sprintf("checkpoint %d", epoch), fmt.Sprintf("loaded %d", epoch)); err != nil {
		return errors.Join(err, p.disk.Stop(ctx, true))
	}
	p.epoch = epoch
	if err := p.disk.Loaded(ctx, p.epoch); err != nil {
		return p.lost(err, p.conn)
	}
	p.events.Publish(event.CheckpointCommit{Mode: event.ModePrimary, Epoch: p.epoch, Cause: event.CauseRequest})
	return nil
}

func (p *primary) status() {
	s := status{State: p.disk.State().String(), Epoch: p.epoch, Error: text(p.disk.Err())}
	missing := p.disk.Dirty()
	s.Missing = &missing
	p.returned(s, "state %s, epoch %d, the secondary lacks %d KiB%s", s.State, s.Epoch, kib(missing), trouble(p.disk.Err()))
}

const primaryHelp = `checkpoint  bring the secondary's disk to the state of the primary's
failover    go on alone
reconnect   attach the secondary again, and copy what it has missed
verify      compare both copies, while the guest goes on
repair      the same, and make the secondary's like the primary's
grow SIZE   make the image longer, while the guest goes on; with a secondary, after its own
status      state, epoch, and how much the secondary does not have
quit        leave`

func (p *primary) command(ctx context.Context, line string) (err error) {
	if size, is, err := longer(line); is {
		if err == nil {
			err = p.meanwhile(ctx, func() error { return p.grow(ctx, size) })
		}
		return err
	}
	switch line {
	case "checkpoint":
		err = p.checkpoint(ctx)
	case "failover":
		if err = p.disk.Stop(ctx, true); err == nil {
			p.events.Publish(event.FailoverDone{Mode: event.ModePrimary, Epoch: p.epoch, Status: "completed"})
		}
	case "reconnect":
		err = p.connect(ctx)
	case "verify", "repair":
		err = p.meanwhile(ctx, func() error { return p.verify(ctx, line == "repair") })
	case "status":
		p.status()
	case "help":
		p.returned(primaryHelp, "%s", primaryHelp)
	default:
		return unknown(line)
	}
	return err
}
