package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os/exec"
	"syscall"
	"time"

	"github.com/gocolo/lockstep/event/qmp"
	"github.com/gocolo/lockstep/internal/signals"
)

// ended is how a QEMU that this process has started has ended, in an operator's
// words: err is what its Wait has returned.
func ended(err error) error {
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return err
	}
	w, ok := exit.Sys().(syscall.WaitStatus)
	switch {
	case !ok || !w.Signaled():
		return fmt.Errorf("it has ended with %w; what it has printed says why", err)
	case crashes(w.Signal()):
		return fmt.Errorf("it has crashed, by a fault of QEMU's own or of a library (%w); what it has printed may say more", err)
	case w.Signal() == syscall.SIGKILL:
		return fmt.Errorf("it was killed by somebody, or by the kernel for want of memory (%w)", err)
	}
	return fmt.Errorf("it was ended by a signal of somebody's (%w)", err)
}

// crashes reports whether a process sends itself the signal, or is sent it for what
// it does.
func crashes(s syscall.Signal) bool {
	switch s {
	case syscall.SIGABRT, syscall.SIGSEGV, syscall.SIGBUS, syscall.SIGILL, syscall.SIGFPE, syscall.SIGTRAP, signals.BadCall:
		return true
	}
	return false
}

// hungUp reports whether err says that the other side's end has ended a connection: it has
// closed it, or its process is not there any more.
func hungUp(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// gone returns a better error than err, which a command of a monitor has returned,
// if the reason is that the QEMU's process has died.
func gone(monitor string, err error) error {
	if !hungUp(err) && !errors.Is(err, net.ErrClosed) {
		return err
	}
	network, address := qmp.Split(monitor)
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	var d net.Dialer
	conn, dial := d.DialContext(ctx, network, address)
	if dial == nil {
		conn.Close()
		return fmt.Errorf("the QEMU has closed its monitor, and may still be there: %w", err)
	}
	if errors.Is(dial, syscall.ECONNREFUSED) || errors.Is(dial, fs.ErrNotExist) {
		return fmt.Errorf("the QEMU has died: nobody listens at its monitor any more, and it has told of no shutdown; "+
			"what it has printed says why, where it was started (%w)", err)
	}
	return err
}
