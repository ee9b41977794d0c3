package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/gocolo/lockstep/colo/protect"
	"github.com/gocolo/lockstep/replication"
)

// A disk is this host's copy of the guest's disk. The nil disk is none.
type disk struct {
	image   image
	journal *replication.Journal // nil: a secondary's overlays are in memory
	handle  *protect.Disk        // of a guest that is protected: what it reads and writes
	fresh   bool                 // no guest has ever used the image, as far as it is sure to know
}

// An image holds the contents of a disk: a file or a block device.
type image interface {
	replication.Disk
	io.Closer
}

// openDisk opens this host's image, and its journal. grown is called when the disk of a guest that is
// protected has become longer, with its length in bytes.
func openDisk(o options, grown func(size int64)) (_ *disk, err error) {
	if o.disk == "" {
		return nil, nil
	}
	d := new(disk)
	var keeps bool
	if d.image, keeps, err = o.hw.image(o.disk); err != nil {
		return nil, fmt.Errorf("-disk: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.close())
		}
	}()
	if err := replication.CheckDisk(d.image); err != nil {
		return nil, fmt.Errorf("-disk: %w", err)
	}
	if o.mode == modeBoot {
		return d, nil
	}
	if o.journal != "" {
		if d.journal, err = replication.OpenJournalFiles(o.journal, int64(o.overlay)); err != nil {
			return nil, fmt.Errorf("-journal: %w", err)
		}
	}
	if k, ok := d.image.(replication.MetadataKeeper); ok && keeps {
		m, err := k.Metadata()
		if err != nil {
			return nil, fmt.Errorf("-disk: %w", err)
		}
		d.fresh = m.Held() == 0 && m.Identity().Disk == (replication.ID{})
	}
	d.handle, err = protect.NewDisk(protect.DiskConfig{
		Name: "disk", Image: d.image, Journal: d.journal, OverlayBytes: int64(o.overlay), Grown: grown,
	})
	return d, err
}

// view returns the disk that the guest reads and writes.
func (d *disk) view() replication.Disk {
	if d.handle == nil {
		return d.image
	}
	return d.handle
}

// close makes the image stable and closes it, after the guest.
func (d *disk) close() error {
	if d == nil {
		return nil
	}
	var err error
	if d.image != nil {
		err = d.image.Sync()
	}
	if d.journal != nil {
		err = errors.Join(err, d.journal.Close())
	}
	if d.image != nil {
		err = errors.Join(err, d.image.Close())
	}
	return err
}
