package protect

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"

	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/replication"
	"github.com/gocolo/lockstep/replication/nbd"
)

// DiskConfig is one disk of the guest on one host. Name and Image are required.
type DiskConfig struct {
	// Name tells the guest's disks apart, the same on both hosts.
	Name string
	// Image is this host's copy. It is the Disk's alone from NewDisk on, and
	// must be as long as the other host's.
	Image replication.Disk
	// OverlayBytes bounds each of the two overlays that a secondary keeps
	// between checkpoints; see replication.SecondaryConfig. 0: 256 MiB.
	OverlayBytes int64
}

// A Disk is one disk of a guest for its life, whichever side its host is: the
// guest's device reads and writes it, and what stands below changes with the side,
// while the guest stands still. Where the guest runs, that is a
// replication.Primary, whose answers to writes wait for the job's gate; on a
// secondary it is a replication.Secondary.
//
// A host whose image cannot make stable what the guest has written (an
// event.DiskFailed) leaves the guest to a secondary that is in step, whose copy is
// that of the last checkpoint. Alone, or where an operator orders it to go on, it
// does, and each flush of the guest fails.
//
// A host that begins to follow has its image overwritten where it differs. A host
// that is killed while it follows leaves an image of no checkpoint, which a
// synchronisation makes good.
type Disk struct {
	cfg DiskConfig

	gate   Gate // of the job; nil before it is made
	events *event.Bus

	mu        sync.RWMutex // held for reading during a request of the guest's
	primary   *replication.Primary
	secondary *replication.Secondary // not nil: this host follows
	export    *nbd.Export
	server    *nbd.Server
}

var _ replication.Disk = (*Disk)(nil)

// NewDisk makes a disk. It may be used when New has been given it.
func NewDisk(cfg DiskConfig) (*Disk, error) {
	if cfg.Name == "" || len(cfg.Name) > maxDiskName || cfg.Image == nil {
		return nil, fmt.Errorf("protect: DiskConfig needs an Image and a Name of at most %d bytes", maxDiskName)
	}
	return &Disk{cfg: cfg}, nil
}

const maxDiskName = 64

var errNoJob = errors.New("protect: the disk belongs to no job yet")

// adopt gives the disk to a job.
func (d *Disk) adopt(gate Gate, events *event.Bus) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.gate != nil {
		return fmt.Errorf("protect: disk %q belongs to a job already", d.cfg.Name)
	}
	d.gate, d.events = gate, events
	return d.lead()
}

// lead makes this host's copy the guest's. d.mu is held, and no request is under
// way.
func (d *Disk) lead() error {
	p, err := replication.NewPrimary(d.cfg.Image, replication.PrimaryConfig{
		Name: d.cfg.Name, Events: d.events, Overwrite: true, PermitOutdated: true, Gate: d.gate,
	})
	if err != nil {
		return fmt.Errorf("protect: disk %q: %w", d.cfg.Name, err)
	}
	d.primary, d.secondary, d.export, d.server = p, nil, nil, nil
	return nil
}

// view returns the guest's disk, and must be followed by d.mu.RUnlock.
func (d *Disk) view() (interface {
	replication.Disk
	WriteZeroes(off, n int64) error
	Trim(off, n int64) error
}, error) {
	d.mu.RLock()
	switch {
	case d.secondary != nil:
		return d.secondary, nil
	case d.primary != nil:
		return d.primary, nil
	}
	return nil, errNoJob
}

// ReadAt implements replication.Disk. It and the methods below are the guest's; they
// may be called from any goroutine, at any time.
func (d *Disk) ReadAt(p []byte, off int64) (int, error) {
	v, err := d.view()
	defer d.mu.RUnlock()
	if err != nil {
		return 0, err
	}
	return v.ReadAt(p, off)
}

// WriteAt implements replication.Disk.
func (d *Disk) WriteAt(p []byte, off int64) (int, error) {
	v, err := d.view()
	defer d.mu.RUnlock()
	if err != nil {
		return 0, err
	}
	return v.WriteAt(p, off)
}

// Sync implements replication.Disk.
func (d *Disk) Sync() error {
	v, err := d.view()
	defer d.mu.RUnlock()
	if err != nil {
		return err
	}
	return v.Sync()
}

// WriteZeroes zeroes a range.
func (d *Disk) WriteZeroes(off, n int64) error {
	v, err := d.view()
	defer d.mu.RUnlock()
	if err != nil {
		return err
	}
	return v.WriteZeroes(off, n)
}

// Trim zeroes a range and may give its storage back.
func (d *Disk) Trim(off, n int64) error {
	v, err := d.view()
	defer d.mu.RUnlock()
	if err != nil {
		return err
	}
	return v.Trim(off, n)
}

// Size implements replication.Disk.
func (d *Disk) Size() int64 { return d.cfg.Image.Size() }

// attach makes the other host's copy, at the other end of conn, one of this
// host's, while the guest runs. It owns conn.
func (d *Disk) attach(ctx context.Context, conn net.Conn) error {
	c, err := nbd.NewClient(ctx, conn, nbd.ClientConfig{Export: d.cfg.Name})
	if err != nil {
		return errors.Join(err, conn.Close())
	}
	p := d.leading()
	if p == nil {
		return errors.Join(errNoJob, c.Close())
	}
	if err := p.Attach(c); err != nil {
		return errors.Join(err, c.Close())
	}
	return p.Synchronise(ctx, replication.SyncConfig{})
}

// leading returns what the session of a primary drives.
func (d *Disk) leading() *replication.Primary {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if d.secondary != nil {
		return nil
	}
	return d.primary
}

// failed returns why this host's copy is not to be trusted any more: it could not
// make stable what the guest has written, and part of that may be gone. It is asked
// before a session lets its disks go.
func (d *Disk) failed() error {
	p := d.leading()
	if p == nil {
		return nil
	}
	var lost *replication.SyncError
	if err := p.Err(); errors.As(err, &lost) {
		return fmt.Errorf("disk %q: %w", d.cfg.Name, err)
	}
	return nil
}

// diskFailed returns why this host must leave its guest to a secondary that is in
// step: the checkpoint there has a disk that is good.
func (j *Job) diskFailed() error {
	for _, d := range j.cfg.Disks {
		if err := d.failed(); err != nil {
			return err
		}
	}
	return nil
}

// release ends the way to the other host, if there is one that no session has.
func (d *Disk) release() {
	if p := d.leading(); p != nil {
		p.Cut()
		p.Detach()
	}
}

// fence answers what the guest waits for, when its host has lost it: with errors,
// which are no part of any history.
func (d *Disk) fence() {
	if p := d.leading(); p != nil {
		p.Cut()
		p.Fence()
	}
}

// follow makes this host's copy a secondary's. The guest is paused.
func (d *Disk) follow() error {
	d.fence()
	d.mu.Lock()
	defer d.mu.Unlock()
	s, err := replication.NewSecondary(d.cfg.Image, replication.SecondaryConfig{
		Name: d.cfg.Name, Events: d.events, ActiveBytes: d.cfg.OverlayBytes, HiddenBytes: d.cfg.OverlayBytes,
		Overwrite: true, GiveUpCheckpoint: true, Gate: d.gate,
	})
	if err != nil {
		return fmt.Errorf("protect: disk %q: %w", d.cfg.Name, err)
	}
	server := nbd.NewServer(nbd.ServerConfig{})
	export, err := server.Export(nbd.ExportConfig{Name: d.cfg.Name, Disk: s.Export()})
	if err != nil {
		return fmt.Errorf("protect: disk %q: %w", d.cfg.Name, err)
	}
	d.primary, d.secondary, d.export, d.server = nil, s, export, server
	return nil
}

// serve lets the primary write this host's copy, until ctx ends.
func (d *Disk) serve(ctx context.Context, conn net.Conn) {
	d.mu.RLock()
	server := d.server
	d.mu.RUnlock()
	if server == nil {
		conn.Close()
		return
	}
	server.ServeConn(ctx, conn) // the primary says what was wrong with it
}

// followed is the secondary of a Disk as a session drives it.
type followed struct {
	*replication.Secondary
	d *Disk
}

// Stop returns with nothing of the primary's under way, whether it is dead or only
// slow. When this host goes on, its copy is the guest's from then on.
func (f *followed) Stop(ctx context.Context, failover bool) error {
	err := f.d.export.Close(ctx)
	if e := f.Secondary.Stop(ctx, failover); e != nil {
		return errors.Join(err, e) // the guest goes on over the overlays
	}
	if !failover {
		return err
	}
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	return errors.Join(err, f.d.lead())
}

// group returns the disks as a session drives them.
func group(disks []*Disk) (g replication.Group) {
	for _, d := range disks {
		d.mu.RLock()
		if d.secondary != nil {
			g = append(g, &followed{d.secondary, d})
		} else {
			g = append(g, d.primary)
		}
		d.mu.RUnlock()
	}
	return g
}
