package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/gocolo/lockstep/colo/quickack"
	"github.com/gocolo/lockstep/examples/internal/strangers"
	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate"
)

// maxStrangers is how many connections may be looked at at a time. One more ends the oldest.
const maxStrangers = 16

// patience bounds the time in which a stranger must begin a migration, even if a silent
// primary is given longer.
const patience = 30 * time.Second

// patience returns how long this standby waits for a stranger: no longer than for its
// primary, if -peer-timeout is positive. (There 0 means the default of the library, and a
// negative time no bound.)
func (s *standbyRun) patience() time.Duration {
	if s.peer <= 0 {
		return patience
	}
	return min(patience, s.peer)
}

// maxBeginning bounds what is kept of a stranger until it has begun one, in bytes.
const maxBeginning = 16 << 10

// acceptPrimary takes the first connection that begins a migration and closes the
// listener. A client that is silent, or sends something else, does not keep others out. It
// returns an order instead if an operator gives one that can be carried out now.
func (s *standbyRun) acceptPrimary(ctx context.Context, l net.Listener, creds *tls.Config, refused func(error)) (*watched, *order, error) {
	r := &reception{creds: creds, patience: s.patience(), refused: refused, first: make(chan *watched), over: make(chan struct{})}
	r.room = strangers.Room{Max: maxStrangers, Warn: refused}
	ctx, cancel := context.WithCancel(ctx)
	failed := make(chan error, 1)
	r.all.Go(func() { failed <- r.accept(ctx, l) })
	defer func() {
		cancel()
		l.Close()
		close(r.over)
		r.room.Shut() // all that have not begun a migration
		r.all.Wait()
	}()
	for {
		select {
		case conn := <-r.first:
			return conn, nil, nil
		case o := <-s.orders:
			if len(s.kept) > 0 && o.Do == "promote" {
				return nil, &o, nil
			}
			o.reply(errors.New("there is no guest here to go on with"))
		case err := <-failed:
			return nil, nil, err
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		}
	}
}

// reception has the connections of which one may be that of the primary.
type reception struct {
	creds    *tls.Config
	patience time.Duration
	refused  func(error)
	first    chan *watched
	over     chan struct{} // closed when nobody is taken any more
	all      sync.WaitGroup
	room     strangers.Room
}

func (r *reception) accept(ctx context.Context, l net.Listener) error {
	for {
		conn, err := r.room.Accept(ctx, l)
		if err != nil {
			return err
		}
		r.all.Go(func() { r.look(ctx, conn) })
	}
}

// look finds out whether a connection begins a migration.
func (r *reception) look(ctx context.Context, raw net.Conn) {
	w, err := r.begins(ctx, raw)
	if !r.room.Leave(raw) {
		err = fmt.Errorf("%s has begun no migration, and %d have come since", hostIn(raw), maxStrangers)
	}
	if err == nil {
		select {
		case r.first <- w:
			return
		case <-r.over:
			raw.Close()
			return
		}
	}
	raw.Close()
	select {
	case <-r.over: // it has not been looked at to the end
	default:
		r.refused(err)
	}
}

// magic begins a migration.
var magic = []byte("QEVM")

// begins waits for the beginning of a migration, up to the name of the first section: a
// QEMU sends that at once, so a client that does not is no QEMU.
func (r *reception) begins(ctx context.Context, raw net.Conn) (*watched, error) {
	conn := quickack.Conn(raw)
	if r.creds != nil {
		t := tls.Server(conn, r.creds)
		if err := handshake(ctx, t); err != nil {
			return nil, fmt.Errorf("%s: %w", hostIn(raw), err)
		}
		conn = t
	}
	w := watch(conn)
	if err := conn.SetReadDeadline(time.Now().Add(r.patience)); err != nil {
		return nil, err
	}
	first := make([]byte, len(magic))
	if n, err := io.ReadFull(w, first); err != nil {
		return nil, fmt.Errorf("%s has begun no migration: %d bytes, %w", hostIn(conn), n, err)
	}
	if !bytes.Equal(first, magic) {
		return nil, fmt.Errorf("%s has begun no migration: it says %q", hostIn(conn), first)
	}
	var seen bytes.Buffer
	all := io.TeeReader(io.LimitReader(io.MultiReader(bytes.NewReader(first), w), maxBeginning), &seen)
	if err := beginning(qemufile.NewReader(all)); err != nil {
		return nil, fmt.Errorf("%s has begun no migration: after %d bytes, %w", hostIn(conn), seen.Len(), err)
	}
	w.first = seen.Bytes()
	return w, conn.SetReadDeadline(time.Time{})
}

// beginning reads a stream up to the header of its first section.
func beginning(r *qemufile.Reader) error {
	if err := vmstate.ReadFileHeader(r); err != nil {
		return err
	}
	b, _ := r.PeekByte()
	if vmstate.SectionType(b) == vmstate.Configured { // old machines have none
		if _, err := vmstate.ReadConfiguration(r); err != nil {
			return err
		}
	}
	for {
		t := vmstate.SectionType(r.Byte())
		if err := r.Err(); err != nil {
			return qemufile.NoEOF(err)
		}
		switch t {
		case vmstate.CommandRecord:
			if _, err := vmstate.ReadCommand(r); err != nil {
				return err
			}
		case vmstate.SectionStart, vmstate.SectionFull:
			_, err := vmstate.ReadHeader(t, r)
			return err
		default:
			return fmt.Errorf("%v comes first", t)
		}
	}
}
