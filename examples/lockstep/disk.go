package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"

	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/internal/trial"
	"github.com/gocolo/lockstep/replication"
	"github.com/gocolo/lockstep/replication/nbd"
)

// diskExport is the name of the secondary disk on its NBD port, which carries
// the generation too: the primary of another pair is refused.
const diskExport = "disk"

// A disk is a side's copy of the guest's disk: an image, and above it one half
// of the replication. Its write may be called from any goroutine. The nil disk
// is none.
type disk struct {
	image *replication.File
	view  replication.Disk // what the guest writes
	group replication.Group

	primary *replication.Primary
	link    atomic.Pointer[nbd.Client] // the primary's way to the secondary

	server *nbd.Server // the secondary's
}

// openDisk opens the side's image.
func openDisk(cfg trial.SideConfig, events *event.Bus) (_ *disk, err error) {
	if cfg.Disk == "" {
		return nil, nil
	}
	d := new(disk)
	if d.image, err = replication.OpenFile(cfg.Disk); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.image.Close())
		}
	}()
	if size := d.image.Size(); uint64(size) != cfg.Guest.Disk {
		return nil, fmt.Errorf("%s has %d bytes, the guest's disk has %d", cfg.Disk, size, cfg.Guest.Disk)
	}
	if cfg.Side == trial.Primary {
		if d.primary, err = replication.NewPrimary(d.image, replication.PrimaryConfig{Name: diskExport, Events: events, Overwrite: true}); err != nil {
			return nil, err
		}
		d.view, d.group = d.primary, replication.Group{d.primary}
		return d, nil
	}
	// Overlays that the whole disk fits into, with their maps, are never full.
	most := 2*d.image.Size() + 1<<20
	s, err := replication.NewSecondary(d.image, replication.SecondaryConfig{
		Name: diskExport, Events: events, ActiveBytes: most, HiddenBytes: most,
	})
	if err != nil {
		return nil, err
	}
	d.server = nbd.NewServer(nbd.ServerConfig{})
	export, err := d.server.Export(nbd.ExportConfig{Name: diskExport, Generation: cfg.Generation, Disk: s.Export()})
	if err != nil {
		return nil, err
	}
	d.view, d.group = s, replication.Group{&fenced{s, export}}
	return d, nil
}

// fenced is a secondary's disk whose primary is shut out before it is stopped.
type fenced struct {
	*replication.Secondary
	export *nbd.Export
}

// Stop returns with nothing of the primary under way, whether it is dead or
// only slow.
func (f *fenced) Stop(ctx context.Context, failover bool) error {
	return errors.Join(f.export.Close(ctx), f.Secondary.Stop(ctx, failover))
}

// write is what the guest's port does: it returns when the guest may go on. On
// the primary it may wait for the secondary, but not once the link is cut.
func (d *disk) write(p []byte, off int64, flush bool) error { return writeTo(d.view, p, off, flush) }

// writeTo writes a disk, and makes what it has been told stable if that is asked for.
func writeTo(d replication.Disk, p []byte, off int64, flush bool) error {
	if _, err := d.WriteAt(p, off); err != nil {
		return err
	}
	if flush {
		return d.Sync()
	}
	return nil
}

// serve lets the primary write the secondary disk, until ctx ends.
func (d *disk) serve(ctx context.Context, l net.Listener) error { return d.server.Serve(ctx, l) }

// attach connects the primary's disk to the secondary's and copies it there,
// while the guest runs and writes.
func (d *disk) attach(ctx context.Context, address string, generation uint64, group *sync.WaitGroup) error {
	c, err := nbd.Dial(ctx, "tcp", address, nbd.ClientConfig{Export: nbd.Name(diskExport, generation)})
	if err != nil {
		return err
	}
	if err := d.primary.Attach(c); err != nil {
		return errors.Join(err, c.Close())
	}
	d.link.Store(c)
	group.Go(func() { d.primary.Run(ctx) })
	return d.primary.Synchronise(ctx, replication.SyncConfig{})
}

// cut ends the way to the secondary, so that no vCPU waits for it.
func (d *disk) cut() {
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

// settle makes the image what the guest, which stands still, has written.
func (d *disk) settle() error {
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
	return d.image.Close()
}
