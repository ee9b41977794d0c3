package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/gocolo/lockstep/event/qmp"
)

// A QEMU that hangs answers nothing, and closes nothing: an operator is told which one that is,
// what it was told last, and for how long it has owed the answer; and whoever is ended does
// not wait for it for long.

// defaultSlow is how long a QEMU may owe an answer before that is told, and for which it is
// waited for when this program is told to end.
const defaultSlow = 5 * time.Second

// dialMonitor connects to the monitor of a QEMU that runs.
func dialMonitor(ctx context.Context, addr string, limit time.Duration, oob bool) (*qmp.Client, net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	network, address := qmp.Split(addr)
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, address)
	if err != nil {
		return nil, nil, noMonitor(addr, err)
	}
	dial := qmp.NewClient
	if oob {
		dial = qmp.NewClientOOB
	}
	m, err := dial(ctx, conn)
	if err != nil {
		return nil, nil, fmt.Errorf("the QEMU at %s: %w", addr, err)
	}
	return m, conn, nil
}

// unanswering returns which command a monitor has owed an answer to for longer than slow, since when, and
// that in words; "": none.
func unanswering(m *qmp.Client, slow time.Duration) (command, words string, since time.Time) {
	if m == nil {
		return "", "", since
	}
	command, since = m.Unanswered()
	if took := time.Since(since); command != "" && took >= slow {
		return command, fmt.Sprintf("has not answered %s for %v", command, took.Truncate(min(slow, time.Second))), since
	}
	return "", "", since
}

// tellSilence tells when a QEMU has not answered a command for as long as slow, now and then for as
// long as that lasts, and when it has answered, until the function that it returns is called. who
// is how operators know the QEMU, and m returns its monitor, which may be another one each time.
func (p *printer) tellSilence(who string, m func() *qmp.Client, slow time.Duration) (stop func()) {
	done := make(chan struct{})
	var wait sync.WaitGroup
	wait.Go(func() {
		t := time.NewTicker(max(slow/20, time.Millisecond))
		defer t.Stop()
		var of *qmp.Client // of what was told
		var silent string
		var since, next time.Time
		for {
			select {
			case <-t.C:
			case <-done:
				return
			}
			now := m()
			command, words, at := unanswering(now, slow)
			switch {
			case silent != "" && (now != of || command != silent || !at.Equal(since)):
				if now == of {
					p.warn("%s has answered %s, after %v", who, silent, time.Since(since).Round(min(slow, time.Second)))
					p.object(map[string]any{"qemu": map[string]any{"at": who, "answered": silent}})
				}
				silent = ""
			case silent == "" && command != "":
				of, silent, since, next = now, command, at, time.Now()
			}
			if silent != "" && !time.Now().Before(next) {
				next = time.Now().Add(12 * slow)
				p.warn("%s %s: it hangs, or waits for something", who, words)
				p.object(map[string]any{"qemu": map[string]any{"at": who, "unanswered": silent, "seconds": time.Since(since).Seconds()}})
			}
		}
	})
	return func() { close(done); wait.Wait() }
}

// slowness returns how long a QEMU may owe an answer.
func (o *protectOptions) slowness() time.Duration {
	if o.slow > 0 {
		return o.slow
	}
	return defaultSlow
}

// graced returns a context that ends after limit, or when ctx has been over for grace: for what has to be
// done although ctx may have ended, and may take longer than whoever has ended it waits.
func graced(ctx context.Context, limit, grace time.Duration) (context.Context, context.CancelFunc) {
	longer, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), limit, fmt.Errorf("it was given %v", limit))
	stop := context.AfterFunc(ctx, func() {
		select {
		case <-time.After(grace):
			cancel()
		case <-longer.Done():
		}
	})
	return longer, func() { stop(); cancel() }
}

// mute adds to the error of a command which QEMU it is that has not answered.
func mute(addr string, err error) error {
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("the QEMU at %s: %w", addr, err)
	}
	return err
}
