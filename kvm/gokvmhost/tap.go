//go:build linux && amd64

package gokvmhost

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// tapUplink is the tap that was given to AddTapIf: it takes frames from the
// guest and brings frames for it.
type tapUplink struct {
	file *os.File
	old  int // flags that the tap had
	raw  syscall.RawConn
	room chan struct{} // never receives a value: a tap that is full drops frames, as a network does
	log  *slog.Logger
}

// newTapUplink takes a copy of gokvm's descriptor. gokvm has it raise SIGIO, which
// is switched off until giveBack.
func newTapUplink(fd int, log *slog.Logger) (_ *tapUplink, err error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_SETFL, flags&^unix.O_ASYNC|unix.O_NONBLOCK)
	}
	if err != nil {
		return nil, fmt.Errorf("gokvmhost: tap: %w", err)
	}
	defer func() {
		if err != nil {
			_, e := unix.FcntlInt(uintptr(fd), unix.F_SETFL, flags)
			err = errors.Join(err, e)
		}
	}()
	own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("gokvmhost: tap: %w", err)
	}
	file := os.NewFile(uintptr(own), "tap")
	raw, err := file.SyscallConn()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("gokvmhost: tap: %w", err), file.Close())
	}
	return &tapUplink{file: file, old: flags, raw: raw, room: make(chan struct{}), log: log}, nil
}

// giveBack restores the tap to the state in which gokvm had it, since Attach has failed.
func (t *tapUplink) giveBack() error {
	var err error
	e := t.raw.Control(func(fd uintptr) { _, err = unix.FcntlInt(fd, unix.F_SETFL, t.old) })
	if err = errors.Join(e, err); err != nil {
		return fmt.Errorf("gokvmhost: tap: %w", err)
	}
	return nil
}

// WritePacket implements Uplink. What the tap does not take is lost, as on any
// network.
func (t *tapUplink) WritePacket(frame []byte) error {
	var err error
	e := t.raw.Write(func(fd uintptr) bool {
		_, err = unix.Write(int(fd), frame)
		return true
	})
	if err := errors.Join(e, err); err != nil {
		t.log.Debug("the tap did not take a frame", "err", err)
	}
	return nil
}

// Room implements Uplink.
func (t *tapUplink) Room() <-chan struct{} { return t.room }

// Receive implements pc.Source: it passes on what arrives until ctx ends or the tap fails.
func (t *tapUplink) Receive(ctx context.Context, deliver func(frame []byte) error) error {
	t.file.SetReadDeadline(time.Time{})
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		t.file.SetReadDeadline(time.Unix(1, 0))
		close(ended)
	})
	defer func() {
		if !stop() {
			<-ended
		}
	}()
	frame := make([]byte, 65536)
	for {
		n, err := t.file.Read(frame)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			return fmt.Errorf("gokvmhost: tap: %w", err)
		}
		deliver(frame[:n]) // what does not fit is dropped, and counted
	}
}

// close may be called twice.
func (t *tapUplink) close() error {
	if err := t.file.Close(); !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}
