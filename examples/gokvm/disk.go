package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync/atomic"

	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/replication"
	"github.com/gocolo/lockstep/replication/nbd"
)

// diskExport is the name of the secondary disk on its NBD connection.
const diskExport = "disk"

// A disk is a side's copy of the guest's disk: an image, and above it one half
// of the replication. The nil disk is none.
type disk struct {
	image *replication.File
	view  replication.Disk // what the guest has
	group replication.Group

	primary *replication.Primary
	link    atomic.Pointer[nbd.Client] // the primary's way to the secondary

	journal *replication.Journal
	server  *nbd.Server // the secondary's
}

// openDisk opens this side's image.
func openDisk(ctx context.Context, o options, p *printer, events *event.Bus) (_ *disk, err error) {
	if o.disk == "" {
		return nil, nil
	}
	d := new(disk)
	if d.image, err = replication.OpenFile(o.disk); err != nil {
		return nil, fmt.Errorf("-disk: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.close())
		}
	}()
	if o.mode != modeSecondary {
		d.primary, err = replication.NewPrimary(d.image, replication.PrimaryConfig{Events: events, Overwrite: true})
		d.view, d.group = d.primary, replication.Group{d.primary}
		return d, err
	}
	cfg := replication.SecondaryConfig{
		ActiveBytes: int64(o.overlay), HiddenBytes: int64(o.overlay), Events: events,
	}
	if o.journal != "" {
		if d.journal, err = openJournal(ctx, o, d.image, p); err != nil {
			return nil, fmt.Errorf("-journal: %w", err)
		}
		cfg.Journal = d.journal
	}
	s, err := replication.NewSecondary(d.image, cfg)
	if err != nil {
		return nil, err
	}
	d.server = nbd.NewServer(nbd.ServerConfig{})
	export, err := d.server.Export(nbd.ExportConfig{Name: diskExport, Disk: s.Export()})
	if err != nil {
		return nil, err
	}
	d.view, d.group = s, replication.Group{&fenced{s, export}}
	return d, nil
}

// openJournal opens the overlays' files. What a crash of this host has left
// unfinished is finished first.
func openJournal(ctx context.Context, o options, image replication.Disk, p *printer) (*replication.Journal, error) {
	j, err := replication.OpenJournalFiles(o.journal, int64(o.overlay))
	if err != nil {
		return nil, err
	}
	epoch, failedOver, err := j.Recover(ctx, image)
	switch {
	case err != nil:
		return nil, errors.Join(err, j.Close())
	case failedOver:
		p.say("the disk's last failover has been finished")
	case epoch > 0:
		p.say("the disk was brought back to checkpoint %d of the last pair", epoch)
	}
	return j, nil
}

// fenced is a secondary's disk whose primary is shut out before it is stopped.
type fenced struct {
	*replication.Secondary
	export *nbd.Export
}

// Stop returns with nothing of the primary's under way, whether it is dead or
// only slow.
func (f *fenced) Stop(ctx context.Context, failover bool) error {
	return errors.Join(f.export.Close(ctx), f.Secondary.Stop(ctx, failover))
}

// size returns the disk's length in bytes, 0 for none.
func (d *disk) size() int64 {
	if d == nil {
		return 0
	}
	return d.image.Size()
}

// serve lets the primary write the secondary disk, until ctx ends.
func (d *disk) serve(ctx context.Context, board *switchboard) {
	for {
		conn, err := board.take(ctx, chDisk)
		if err != nil {
			return
		}
		d.server.ServeConn(ctx, conn) // the primary says what was wrong with it
	}
}

// attach connects the primary's disk to the secondary's and copies it there,
// while the guest runs and writes.
func (d *disk) attach(ctx context.Context, conn net.Conn) error {
	c, err := nbd.NewClient(ctx, conn, nbd.ClientConfig{Export: diskExport})
	if err != nil {
		return err
	}
	if err := d.primary.Attach(c); err != nil {
		return errors.Join(err, c.Close())
	}
	d.link.Store(c)
	return d.primary.Synchronise(ctx, replication.SyncConfig{})
}

// cut ends the way to the secondary, so that no request of the guest's waits
// for it.
func (d *disk) cut() {
	if d == nil {
		return
	}
	if c := d.link.Load(); c != nil {
		c.Close()
	}
}

// replicas are the disks as the session sees them.
func (d *disk) replicas() replication.Group {
	if d == nil {
		return nil
	}
	return d.group
}

// sync makes the image what the guest, which stands still, has written.
func (d *disk) sync() error {
	if d == nil {
		return nil
	}
	return d.view.Sync()
}

// close closes the image, after the guest and the session.
func (d *disk) close() error {
	if d == nil {
		return nil
	}
	d.cut()
	var err error
	if d.journal != nil {
		err = d.journal.Close()
	}
	return errors.Join(err, d.image.Close())
}
