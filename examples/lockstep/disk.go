package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/gocolo/lockstep/colo/protect"
	"github.com/gocolo/lockstep/replication"
)

// diskExport is the name of the disk between the hosts.
const diskExport = "disk"

// openDisk opens the image of this host, if the guest has a disk. The image is to be closed
// after the job has ended.
func (h *host) openDisk() (io.Closer, error) {
	if h.cfg.Disk == "" {
		return noDisk{}, nil
	}
	image, err := replication.OpenFile(h.cfg.Disk)
	if err != nil {
		return nil, err
	}
	if size := image.Size(); uint64(size) < h.cfg.Guest.Disk { // it may be longer: see block_resize of the monitor
		image.Close()
		return nil, fmt.Errorf("%s has %d bytes, the guest's disk has %d", h.cfg.Disk, size, h.cfg.Guest.Disk)
	}
	if h.disk, err = protect.NewDisk(protect.DiskConfig{Name: diskExport, Image: image}); err != nil {
		image.Close()
		return nil, err
	}
	return image, nil
}

type noDisk struct{}

func (noDisk) Close() error { return nil }

// writeTo writes a disk, and makes what it has been told stable if that is asked for: it
// returns when the guest may go on. A guest that was given to the other host meanwhile, so that
// its disk refuses it, is not told: the vCPU that has written it runs that of the other host next.
func writeTo(d replication.Disk, p []byte, off int64, flush bool) error {
	_, err := d.WriteAt(p, off)
	if err == nil && flush {
		err = d.Sync()
	}
	if errors.Is(err, replication.ErrFenced) || errors.Is(err, replication.ErrNotRunning) {
		return nil
	}
	return err
}
