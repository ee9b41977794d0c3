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
// nothing is given up; with an error there is no file, and the guest runs on.
func (h *host) save(ctx context.Context, name string) (err error) {
	h.saving.Lock()
	defer h.saving.Unlock()
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, f.Close())
		if err != nil {
			err = errors.Join(err, os.Remove(name))
		}
	}()
	if err := syncDirectory(filepath.Dir(name)); err != nil {
		return err
	}
	if err := h.job.Load().Save(ctx, f); err != nil { // it synchronises f
		return err
	}
	h.p.phase("saved", "the guest is in %s", name)
	h.end(errSaved)
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
