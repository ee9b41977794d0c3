package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// A QEMU that is given a guest may hang before it runs it. Its guest runs nowhere then, so that whoever
// operates it is told, and may name another QEMU for it.

// taking is how far a QEMU has come that is given a guest.
type taking struct {
	bytes    atomic.Uint64 // that it has taken
	all      atomic.Bool   // all of the guest: from then on it may have run it
	replaced atomic.Bool   // somebody has named another QEMU
}

// metered counts what a QEMU takes.
type metered struct {
	io.Writer
	t *taking
}

func (c metered) Write(p []byte) (int, error) {
	n, err := c.Writer.Write(p)
	c.t.bytes.Add(uint64(n))
	return n, err
}

// runningAttended does what running does, and attends to the QEMU meanwhile.
func (q *process) runningAttended(ctx context.Context, warn func(format string, args ...any), orders <-chan order, override func(order) error) (state string, err error) {
	attending, over := context.WithCancel(ctx)
	var wait sync.WaitGroup
	wait.Go(func() { q.attend(attending, warn, orders, override) })
	defer wait.Wait()
	defer over()
	return q.running(ctx)
}

// attend tells when a QEMU that is given a guest gets no further for as long as slow, and carries out
// the orders of an operator meanwhile, until ctx ends. A promotion ends a QEMU that has not taken all of the guest.
func (q *process) attend(ctx context.Context, warn func(format string, args ...any), orders <-chan order, override func(order) error) {
	t := time.NewTicker(max(q.slow/20, time.Millisecond))
	defer t.Stop()
	since, bytes, all, told := time.Now(), uint64(0), false, false
	for {
		select {
		case <-t.C:
			if n, whole := q.taking.bytes.Load(), q.taking.all.Load(); n != bytes || whole != all {
				since, bytes, all, told = time.Now(), n, whole, false
			}
			if told || time.Since(since) < q.slow {
				continue
			}
			told = true
			if all {
				warn("the QEMU in process %d was given all of the guest %v ago, and has not said that it runs it; if it hangs, kill it", q.cmd.Process.Pid, q.slow)
			} else {
				warn("the QEMU in process %d has taken nothing of the guest for %v (before that %s); if it hangs, kill it", q.cmd.Process.Pid, q.slow, size(bytes))
			}
		case o := <-orders:
			switch {
			case o.Do != "promote" || len(o.QEMU) == 0:
				o.reply(fmt.Errorf("the guest is being given to a QEMU, in process %d", q.cmd.Process.Pid))
			case q.taking.all.Load():
				o.reply(fmt.Errorf("the QEMU in process %d has all of the guest, and may run it; if it hangs, kill it", q.cmd.Process.Pid))
			default:
				err := override(o)
				if err == nil {
					q.taking.replaced.Store(true)
					q.cmd.Process.Kill()
				}
				o.reply(err)
			}
		case <-ctx.Done():
			return
		}
	}
}

// leaves returns when the process has ended, which was told to; after some time it is killed.
func (q *process) leaves(p *printer) {
	select {
	case <-q.done:
		return
	case <-time.After(2 * q.slow):
	}
	p.warn("the QEMU in process %d has not ended for %v, and is killed", q.cmd.Process.Pid, 2*q.slow)
	q.cmd.Process.Kill()
	<-q.done
}

// tidy removes the socket of the monitor, if nobody is there any more: a QEMU that was killed leaves it.
func (q *process) tidy() {
	path := strings.TrimPrefix(q.qmp, "unix:")
	conn, err := net.Dial("unix", path)
	if err == nil {
		conn.Close()
	} else if errors.Is(err, syscall.ECONNREFUSED) {
		os.Remove(path)
	}
}
