package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/gocolo/lockstep/colo/protect"
)

// save ends the guest with its state in a new file. Until that is on stable storage
// nothing is given up: with an error before, there is no file, and the guest runs on.
// From then on the file is all there is of the guest, and stays: an error of its Close
// is returned, but undoes nothing.
func (h *host) save(ctx context.Context, name string) error {
	h.saving.Lock()
	defer h.saving.Unlock()
	h.p.saves(true)
	defer h.p.saves(false)
	return createFile(name, func(f *os.File) error {
		if err := h.job.Load().SaveMapped(ctx, f); err != nil { // it synchronises f
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

// restore makes the guest that of -resume; with -lazy but for its memory, which follows.
func (h *host) restore(cfg *protect.Config) error {
	f, err := os.Open(h.o.resume)
	if err == nil && h.o.lazy {
		h.file = f
		return h.restoreLazily(cfg)
	}
	if err == nil {
		cfg.Held, err = protect.Restore(f, h.guest, machineType)
		f.Close()
	}
	if granted := h.o.resumeAt; err == nil && granted > 0 {
		if granted < cfg.Held {
			err = fmt.Errorf("the guest is of generation %d, which is later than -resume-generation %d", cfg.Held, granted)
		}
		cfg.Held = granted
	}
	if err != nil {
		return fmt.Errorf("-resume: %w", err)
	}
	return nil
}

func (h *host) restoreLazily(cfg *protect.Config) (err error) {
	var from io.ReaderAt = h.file
	if h.o.hw.memory != nil {
		from = h.o.hw.memory(h.file)
	}
	if _, ok := h.guest.machine.(ensured); !ok {
		err = errors.ErrUnsupported
	} else {
		cfg.Saved, err = protect.OpenSaved(from, h.guest, machineType)
	}
	h.saved = cfg.Saved
	if errors.Is(err, protect.ErrNotMapped) {
		err = fmt.Errorf("an earlier gokvm has written the file, without -lazy the guest can go on with it: %w", err)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("-resume -lazy: %w", err), h.closeFile())
	}
	return nil
}

// closeFile is called when nobody reads the guest's memory any more, and it is still mapped.
func (h *host) closeFile() error {
	if h.file == nil {
		return nil
	}
	var err error
	if h.saved != nil {
		err = h.saved.Close()
	}
	err = errors.Join(err, h.file.Close())
	h.file = nil
	return err
}

// followMemory says when all of the guest's memory has been read.
func (h *host) followMemory() {
	begun := time.Now()
	select {
	case <-h.saved.Filled():
		if h.saved.Err() == nil {
			h.p.phase("loaded", "the guest has all its memory, %v after it began to be read", time.Since(begun).Round(time.Millisecond))
		}
	case <-h.life.Done():
	}
}
