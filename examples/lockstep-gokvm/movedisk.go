package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/gocolo/lockstep/replication"
)

// A movingDisk is a guest's disk in storage that both hosts reach, which the host has open
// that has the guest: its lock keeps the other one out. The nil movingDisk is none.
type movingDisk struct {
	open  func() (image, error)
	look  func() error
	size  int64
	phase func(name, format string, args ...any)

	mu    sync.RWMutex
	image image // nil: the guest stands still here, or is not here
}

// errAway is the error of a disk whose guest is not here. No guest ever sees it.
var errAway = errors.New("the disk is the other host's")

// errNoDisk ends a guest that the other host has given up, and that could not run here before
// the user ordered the program to end, since its disk could not be opened.
var errNoDisk = errors.New("the guest has not run here, for want of its disk")

// moving returns the disk of -disk, nil for none, without opening it.
func moving(o options, p *printer) *movingDisk {
	if o.disk == "" {
		return nil
	}
	look := func() error {
		if o.hw.there == nil {
			return nil
		}
		if err := o.hw.there(o.disk); err != nil {
			return fmt.Errorf("-disk: %w", err)
		}
		return nil
	}
	return &movingDisk{phase: p.phase, look: look, open: func() (image, error) {
		i, _, err := o.hw.image(o.disk)
		if err != nil {
			return nil, fmt.Errorf("-disk: %w", err)
		}
		return i, nil
	}}
}

// bytes returns the size of the disk, 0 for none.
func (d *movingDisk) bytes() int64 {
	if d == nil {
		return 0
	}
	return d.size
}

// here opens the disk of a guest that starts on this host.
func (d *movingDisk) here() error {
	if d == nil {
		return nil
	}
	i, err := d.open()
	if err != nil {
		return err
	}
	d.image, d.size = i, i.Size()
	return nil
}

// there returns an error if no guest that comes could have the disk, whoever has it now.
func (d *movingDisk) there() error {
	if d == nil {
		return nil
	}
	return d.look()
}

// same returns an error if -disk here is not the disk of a guest on another host. It is
// that disk if it has size bytes and is locked, since the other host has it open. shared
// says that the user vouches for it where locks do not reach.
func (d *movingDisk) same(size int64, shared bool) error {
	if d == nil {
		if size != 0 {
			return fmt.Errorf("the guest has a disk of %d bytes, and there is no -disk here", size)
		}
		return nil
	}
	if size == 0 {
		return errors.New("the guest has no disk, and there is a -disk here")
	}
	d.size = size
	i, err := d.open()
	switch {
	case errors.Is(err, replication.ErrLocked):
		return nil
	case err != nil:
		return err
	}
	has := i.Size()
	switch err := i.Close(); {
	case err != nil:
		return err
	case has != size:
		return fmt.Errorf("the guest's disk has %d bytes, -disk here has %d: it must be the same storage", size, has)
	case !shared:
		return errors.New("nobody uses -disk here, so it is not what the guest's disk is in; with -shared-disk you say that it is, where the lock of one host is not met by the other")
	}
	return nil
}

// take opens the disk for a guest that is to run here: nobody else can have it, but the
// other host may need a moment to let go of it. It waits until ctx ends; when that moment
// is over it says why, and an order to end, which ends ordered, ends it too.
func (d *movingDisk) take(ctx, ordered context.Context) error {
	if d == nil {
		return nil
	}
	begun := time.Now()
	for said := ""; ; {
		i, err := d.open()
		if err == nil && i.Size() != d.size {
			err = errors.Join(fmt.Errorf("-disk has %d bytes, the guest's has %d", i.Size(), d.size), i.Close())
		}
		if err == nil {
			d.mu.Lock()
			d.image = i
			d.mu.Unlock()
			return nil
		}
		long := time.Since(begun) > diskPatience
		if err.Error() != said && (long || !errors.Is(err, replication.ErrLocked)) {
			said = err.Error()
			d.phase("waiting", "the guest waits for its disk: %s", oneLine(err))
		}
		if long && ordered.Err() != nil {
			return fmt.Errorf("%w: %w", errNoDisk, err)
		}
		select {
		case <-time.After(diskRetry):
		case <-ctx.Done():
			return errors.Join(err, context.Cause(ctx))
		}
	}
}

// diskRetry is how soon a disk is tried again that cannot be had yet.
const diskRetry = 5 * time.Millisecond

// diskPatience is how long the host may take that lets go of a disk.
const diskPatience = 2 * time.Second

// give makes what was written stable and closes the disk. The guest stands still.
func (d *movingDisk) give() error {
	if d == nil {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.image == nil {
		return nil
	}
	if err := d.image.Sync(); err != nil {
		return err // the disk stays open here
	}
	i := d.image
	d.image = nil
	return i.Close()
}

// with calls fn with the image.
func (d *movingDisk) with(fn func(image) (int, error)) (int, error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if d.image == nil {
		return 0, errAway
	}
	return fn(d.image)
}

// ReadAt implements pc.Storage, as WriteAt, Sync and Size do.
func (d *movingDisk) ReadAt(p []byte, off int64) (int, error) {
	return d.with(func(i image) (int, error) { return i.ReadAt(p, off) })
}

func (d *movingDisk) WriteAt(p []byte, off int64) (int, error) {
	return d.with(func(i image) (int, error) { return i.WriteAt(p, off) })
}

func (d *movingDisk) Sync() error {
	_, err := d.with(func(i image) (int, error) { return 0, i.Sync() })
	return err
}

func (d *movingDisk) Size() int64 { return d.size }
