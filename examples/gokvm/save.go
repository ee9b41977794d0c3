package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/gocolo/lockstep/colo/protect"
)

// save ends the guest with its state in a new file. Until that is on stable storage
// nothing is given up: with an error before, there is no file, and the guest runs on.
// From then on the file is all there is of the guest, and stays: an error of its Close
// is returned, but undoes nothing.
func (h *host) save(ctx context.Context, name string) error {
	h.saving.Lock()
	defer h.saving.Unlock()
	return createFile(name, func(f *os.File) error {
		if err := h.job.Load().Save(ctx, f); err != nil { // it synchronises f
			return err
		}
		h.p.phase("saved", "the guest is in %s", name)
		h.end(errSaved)
		return nil
	})
}

// createFile makes a new file, whose name is on stable storage before fill is called.
// The file is removed if fill, or what comes before it, fails, but not for an error of
// Close: what fill has written is needed.
func createFile(name string, fill func(*os.File) error) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	err = syncDirectory(filepath.Dir(name))
	if err == nil {
		err = fill(f)
	}
	if err != nil {
		return errors.Join(err, f.Close(), os.Remove(name))
	}
	if err = f.Close(); err != nil {
		return fmt.Errorf("%s is complete, and stays: %w", name, err)
	}
	return nil
}

// errSaved ends a host whose guest is in a file.
var errSaved = fmt.Errorf("%w: it was saved", errEnded)

func syncDirectory(name string) error {
	d, err := os.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// restore makes the guest that of -resume, and returns of which generation it is.
func (h *host) restore() (generation uint64, err error) {
	f, err := os.Open(h.o.resume)
	if err != nil {
		return 0, fmt.Errorf("-resume: %w", err)
	}
	defer f.Close()
	if generation, err = protect.Restore(f, h.guest, machineType); err != nil {
		return 0, fmt.Errorf("-resume: %w", err)
	}
	return generation, nil
}
