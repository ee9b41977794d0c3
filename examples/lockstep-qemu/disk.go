package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/examples/internal/strangers"
	"github.com/gocolo/lockstep/internal/cli"
	"github.com/gocolo/lockstep/replication"
	"github.com/gocolo/lockstep/replication/nbd"
)

// errDiskLost means that the writes of the primary's guest do not arrive here any more,
// so no checkpoint can have them.
var errDiskLost = errors.New("the primary does not write to the disk any more")

// diskFlag is a disk of the guest on this side: -disk NAME=FILE.
type diskFlag struct{ name, file string }

func parseDisk(s string) (d diskFlag, err error) {
	var ok bool
	if d.name, d.file, ok = strings.Cut(s, "="); !ok || d.name == "" || d.file == "" {
		return d, fmt.Errorf("%q is not NAME=FILE", s)
	}
	return d, nil
}

// disks are the disks of the guest: files that the primary writes over NBD, each with the
// data that was replaced since the last checkpoint, so that it can be put back into the
// state of that checkpoint.
type disks struct {
	list   []*disk
	listen net.Listener
	uri    string
	server *nbd.Server
	stop   context.CancelFunc
	served sync.WaitGroup

	started bool // one of them

	room strangers.Room // of connections that have come to no disk yet
}

// maxLost is how many connections may have come to no disk at a time. One more ends the oldest.
const maxLost = 16

// disk is a file that the primary writes, with the data that was replaced in it.
type disk struct {
	*replication.Secondary
	diskFlag
	image   *replication.File
	export  *nbd.Export
	all     *disks
	primary func() (dead bool) // whether the primary has closed its connection

	prepared uint64 // the last epoch that was prepared
}

// openDisks opens the disks and serves them at addr. nbd.ServerConfig says what log gets.
func openDisks(flags []diskFlag, addr string, creds *tls.Config, events *event.Bus, log *slog.Logger) (d *disks, err error) {
	d = &disks{room: strangers.Room{Max: maxLost}}
	if log != nil {
		d.room.Warn = func(err error) { log.Warn("no client of a disk can be accepted for now", "error", err) }
	}
	d.server = nbd.NewServer(nbd.ServerConfig{TLS: creds, RequireTLS: creds != nil, Logger: log, OnClient: d.uses})
	defer func() {
		if err != nil {
			err = errors.Join(err, d.close())
		}
	}()
	for _, f := range flags {
		x := &disk{diskFlag: f, all: d}
		if x.image, err = replication.OpenFile(f.file); err != nil {
			return d, cli.Opening("-disk "+f.name, "make it first, as large as the guest's disk, whose content is copied into it: truncate -s SIZE "+f.file, err)
		}
		d.list = append(d.list, x)
		if x.Secondary, err = replication.NewSecondary(x.image, replication.SecondaryConfig{Name: f.name, Events: events}); err != nil {
			return d, err
		}
		if x.export, err = d.server.Export(nbd.ExportConfig{Name: f.name, Disk: x.Export()}); err != nil {
			return d, err
		}
	}
	if d.listen, d.uri, err = listen(addr); err != nil {
		return d, cli.Listening("-nbd", err)
	}
	var ctx context.Context
	ctx, d.stop = context.WithCancel(context.Background())
	d.served.Go(func() {
		for {
			conn, err := d.room.Accept(ctx, d.listen)
			if err != nil {
				return // closed: there is one primary
			}
			d.served.Go(func() {
				defer d.room.Leave(conn)
				d.server.ServeConn(ctx, conn)
			})
		}
	})
	return d, nil
}

// uses is called when a connection has come to a disk. From then on it is ended for no other.
func (d *disks) uses(conn net.Conn, _ *nbd.Export) { d.room.Leave(conn) }

// shutOut lets nobody connect from now on, and ends the connections that have not
// come to a disk yet. A QEMU whose connection has broken makes another one by
// itself with its next write, and what it could not write meanwhile is never
// written: a copy has to come over one connection.
func (d *disks) shutOut() { d.room.Shut() }

// letIn undoes shutOut, when the migration has come to nothing: another one has its
// disks copied anew.
func (d *disks) letIn() {
	if d != nil {
		d.room.Open()
	}
}

// group returns the disks for the session with the primary on conn. That has begun to
// migrate, so its disks have been copied.
func (d *disks) group(conn *watched) (g replication.Group) {
	if d == nil {
		return nil
	}
	d.shutOut()
	for _, x := range d.list {
		x.primary = conn.gone
		g = append(g, x)
	}
	return g
}

// Start takes the disk as the primary has filled it. Nobody could connect since the
// migration began, and nobody can from now on, so a primary that has gone cannot have
// come back unseen.
func (x *disk) Start(ctx context.Context) error {
	if x.export.Clients() == 0 {
		return fmt.Errorf("disk %s: nobody writes to it; the primary must be connected to it before it migrates, and stay so", x.name)
	}
	x.all.listen.Close()
	x.all.started = true
	return x.Secondary.Start(ctx)
}

// Prepare checks once more, before a checkpoint counts, that the primary is connected: one
// whose process has died loses this connection a moment before the session's, or after.
func (x *disk) Prepare(ctx context.Context, epoch uint64) error {
	if epoch != x.prepared { // not in the commit: there is no way back from that
		if x.State() == replication.Running && x.export.Clients() == 0 {
			for end := time.Now().Add(200 * time.Millisecond); !x.primary() && time.Now().Before(end); {
				time.Sleep(5 * time.Millisecond)
			}
			return fmt.Errorf("disk %s: %w", x.name, errDiskLost)
		}
		x.prepared = epoch
	}
	return x.Secondary.Prepare(ctx, epoch)
}

// begun reports whether a guest uses the disks.
func (d *disks) begun() bool { return d != nil && d.started }

// rollBack puts the disks back into the state of the last checkpoint, for good: what the
// primary has written since is undone.
func (d *disks) rollBack() error {
	if d == nil {
		return nil
	}
	var errs []error
	for _, x := range d.list {
		if x.State() == replication.None {
			continue
		}
		if err := x.Stop(context.Background(), true); err != nil {
			errs = append(errs, fmt.Errorf("disk %s (%s) is not that of the last checkpoint: %w", x.name, x.file, err))
		}
	}
	return errors.Join(errs...)
}

// close ends serving and lets go of the files.
func (d *disks) close() (err error) {
	if d == nil {
		return nil
	}
	if d.listen != nil {
		d.listen.Close()
	}
	if d.stop != nil {
		d.stop()
	}
	d.served.Wait()
	for _, x := range d.list {
		err = errors.Join(err, x.image.Close())
	}
	d.list = nil
	return err
}
