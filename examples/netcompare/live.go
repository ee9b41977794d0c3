package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/gocolo/lockstep/colo/compare"
	"github.com/gocolo/lockstep/colo/filter"
)

// splitStream takes the address of a stream, as QEMU writes it: tcp:HOST:PORT or
// unix:PATH. Anything else is a file.
func splitStream(name string) (network, address string, ok bool) {
	network, address, _ = strings.Cut(name, ":")
	return network, address, network == "tcp" || network == "unix"
}

// openStreams connects to the two addresses, or waits for a connection to each.
func openStreams(ctx context.Context, listen bool, names ...string) (conns []net.Conn, err error) {
	defer func() {
		if err != nil {
			for _, c := range conns {
				c.Close()
			}
		}
	}()
	var dialer net.Dialer
	var listeners []net.Listener
	for _, name := range names {
		network, address, ok := splitStream(name)
		switch {
		case !ok:
			return conns, fmt.Errorf("%s is no stream, as the other one is", name)
		case listen:
			l, err := net.Listen(network, address)
			if err != nil {
				return conns, err
			}
			defer l.Close()
			defer context.AfterFunc(ctx, func() { l.Close() })()
			listeners = append(listeners, l)
		default:
			c, err := dialer.DialContext(ctx, network, address)
			if err != nil {
				return conns, err
			}
			conns = append(conns, c)
		}
	}
	for _, l := range listeners {
		c, err := l.Accept()
		if err != nil {
			return conns, errors.Join(ctx.Err(), err)
		}
		conns = append(conns, c)
	}
	return conns, nil
}

// A said is a packet of a guest, or the reason why no more will come.
type said struct {
	frame compare.Frame
	at    time.Time
	err   error
}

// listen reads a stream in QEMU's framing to its end.
func listen(ctx context.Context, c net.Conn, vnet bool, to chan<- said) {
	conn := filter.NewConn(c, filter.ConnConfig{VNetHdr: vnet})
	for {
		p, err := conn.ReadPacket()
		m := said{compare.Frame{Data: bytes.Clone(p), VNetHdr: conn.VNetHdrLen()}, time.Now(), err}
		select {
		case to <- m:
		case <-ctx.Done():
			return
		}
		if err != nil {
			return
		}
	}
}

// live compares two streams as they come, until both have ended or ctx does.
func (r *replay) live(ctx context.Context, conns []net.Conn, vnet bool) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer func() {
		cancel()
		for _, c := range conns {
			c.Close()
		}
		wg.Wait()
	}()
	names := [2]string{"primary", "secondary"}
	streams := [2]chan said{make(chan said, 256), make(chan said, 256)}
	for i, c := range conns {
		wg.Go(func() { listen(ctx, c, vnet, streams[i]) })
	}
	timer := time.NewTicker(100 * time.Millisecond)
	defer timer.Stop()
	for open := 2; open > 0; {
		var m said
		side := 0
		select {
		case m = <-streams[0]:
		case m = <-streams[1]:
			side = 1
		case now := <-timer.C:
			r.tick(now)
			r.report(now)
			continue
		case <-ctx.Done():
			return r.end()
		}
		switch {
		case ctx.Err() != nil:
			return r.end()
		case errors.Is(m.err, io.EOF):
			open--
			streams[side] = nil
		case m.err != nil:
			return errors.Join(fmt.Errorf("%s: %w", names[side], m.err), r.summary())
		default:
			n := r.primary + 1
			if side == 1 {
				n = r.secondary + 1
			}
			r.take(side, n, m.frame, m.at)
		}
	}
	return r.end()
}

// end prints the summary.
func (r *replay) end() error {
	if err := r.summary(); err != nil {
		return err
	}
	if r.diverged > 0 {
		return errDiverged
	}
	return nil
}
