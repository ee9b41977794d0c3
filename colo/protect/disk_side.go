package protect

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync/atomic"

	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/internal/wait"
	"github.com/gocolo/lockstep/replication"
	"github.com/gocolo/lockstep/replication/nbd"
)

// The channels of a disk. All begin with chDisk, and end with its name.
const (
	chDiskData     = chDisk + "data:"     // the primary's writes
	chDiskIdentity = chDisk + "identity:" // whose copy it is
	chDiskSums     = chDisk + "sums:"     // of the secondary's copy

	channelsOfDisk = 3
)

// channels returns the channels of a disk, in the order in which they are made.
func (d *Disk) channels() [channelsOfDisk]string {
	n := d.cfg.Name
	return [...]string{chDiskData + n, chDiskIdentity + n, chDiskSums + n}
}

// adopt gives the disk, whose journal has been recovered, to a job. full is called when an
// overlay fills, which a checkpoint empties, and must not wait.
func (d *Disk) adopt(gate Gate, events *event.Bus, full func()) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.gate != nil {
		return fmt.Errorf("protect: disk %q belongs to a job already", d.cfg.Name)
	}
	d.gate, d.events = gate, new(event.Bus)
	d.events.SubscribeAll(func(r event.Record) {
		events.Publish(r.Event)
		switch r.Event.(type) {
		case event.DiskOverlayHalfFull, event.DiskOverlayFull:
			full()
		}
	})
	return d.lead(d.image)
}

// isFree returns an error if a job has the disk.
func (d *Disk) isFree() error {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if d.gate != nil {
		return fmt.Errorf("protect: disk %q belongs to a job already", d.cfg.Name)
	}
	return nil
}

// recoverDisks brings disks whose host died while it followed to one checkpoint.
func recoverDisks(disks []*Disk) error {
	var all []replication.Recovery
	for _, d := range disks {
		if d.cfg.Journal != nil {
			all = append(all, replication.Recovery{Journal: d.cfg.Journal, Disk: d.image, HungAfter: d.cfg.HungAfter})
		}
	}
	if len(all) == 0 {
		return nil
	}
	if _, _, err := replication.RecoverGroup(context.Background(), all); err != nil {
		return fmt.Errorf("protect: recover the disks: %w", err)
	}
	return nil
}

// lead has the guest use over as its disk: the image of this host, or a secondary that went on.
// d.mu is held, and no request is under way.
func (d *Disk) lead(over replication.Disk) error {
	p, err := replication.NewPrimary(over, replication.PrimaryConfig{
		Name: d.cfg.Name, Events: d.events, Overwrite: true, PermitOutdated: true, Evacuate: true, Gate: d.gate,
		HungAfter: d.cfg.HungAfter,
	})
	if err != nil {
		return fmt.Errorf("protect: disk %q: %w", d.cfg.Name, err)
	}
	d.keepFailure()
	if d.promoted, _ = over.(*replication.Secondary); d.promoted != nil {
		d.below.led.Store(true)
	}
	d.primary, d.secondary, d.exports, d.server = p, nil, nil, nil
	d.size.Store(p.Size())
	d.idle.Store(false)
	return nil
}

// A below is the gate of a secondary's disk. When the secondary goes on, and a primary leads over
// it, the primary asks the job's gate, and this one is open for good. If the disk below asked as
// well, it would do so while parts of the primary's disk are locked, and a gate that is shut
// would then hold up the end of a session and the primary's Fence.
type below struct {
	Gate
	led atomic.Bool // set while no request is under way, for good
}

func (b *below) Open() bool { return b.led.Load() || b.Gate.Open() }

// A remoteDisk has the connections to the other host's copy of a disk, one for
// each of its channels.
type remoteDisk [channelsOfDisk]*nbd.Client

func (r remoteDisk) close() {
	for _, c := range r {
		if c != nil {
			c.Close()
		}
	}
}

// reachDisks negotiates about each disk with the other host, side by side, over connections
// that end with the pair.
func (j *Job) reachDisks(ctx context.Context, conns map[string]net.Conn) ([]remoteDisk, error) {
	all := make([]remoteDisk, len(j.cfg.Disks))
	err := abreast(ctx, len(all)*channelsOfDisk, make(chan struct{}, maxAbreast), func(ctx context.Context, i int) (err error) {
		n, of := i/channelsOfDisk, i%channelsOfDisk
		d := j.cfg.Disks[n]
		ch := d.channels()[of]
		if all[n][of], err = nbd.NewClient(ctx, conns[ch], nbd.ClientConfig{Export: ch, Logger: d.log}); err != nil {
			return fmt.Errorf("disk %q: %w", d.cfg.Name, err)
		}
		return nil
	})
	if err != nil {
		for _, r := range all {
			r.close()
		}
		return nil, err
	}
	return all, nil
}

// attach makes the other host's disk a copy of the one here, while the guest runs. It owns the
// connections there.
func (d *Disk) attach(ctx context.Context, there remoteDisk) error {
	data, identity, sums := there[0], there[1], there[2]
	defer sums.Close()
	remote := replication.WithIdentity(data, identity)
	p := d.leading()
	if p == nil {
		return errors.Join(errNoJob, remote.Close())
	}
	// All of this waits for answers of the other side, which may be lost meanwhile.
	stop := wait.AtEnd(ctx, func() { data.Close(); identity.Close() })
	err := sameDisk(p, remote)
	if err == nil {
		err = p.Attach(remote)
	}
	if stop(); err != nil && ctx.Err() != nil {
		err = context.Cause(ctx) // and not what was closed for it
	}
	if err != nil {
		return errors.Join(err, remote.Close())
	}
	stop = wait.AtEnd(ctx, func() { sums.Close(); p.Cut() })
	err = p.Synchronise(ctx, replication.SyncConfig{Sums: sums})
	if stop(); err != nil && ctx.Err() != nil {
		return context.Cause(ctx) // as above
	}
	return err
}

// sameDisk refuses a copy of another guest's disk: somebody has named the wrong
// image. A copy that is newer, or has diverged, is overwritten, since the arbiter has
// given the guest to this one.
func sameDisk(p *replication.Primary, remote replication.Remote) error {
	there, err := remote.(replication.Identified).Identity()
	if err != nil {
		return err
	}
	if here := p.Identity(); here.Disk != (replication.ID{}) && there.Disk != (replication.ID{}) && here.Disk != there.Disk {
		return refuse("the other side's image is that of another guest's disk: %v; here it is %v", there, here)
	}
	return nil
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

// release ends the connections to the other host's copy, if the session has not done so.
func (d *Disk) release() {
	if p := d.leading(); p != nil {
		p.Cut()
		p.Detach()
	}
}

// fence answers the requests for which the guest waits when its host has lost it. The answers are
// errors, which count for nothing, because the guest here never runs on.
func (d *Disk) fence() {
	if p := d.leading(); p != nil {
		p.Cut()
		p.Fence()
	}
}

// fenceDisks answers the requests for which the guest here waits, when it is certain that this
// host does not go on with it. A write that waits for the gate would keep its vCPU from being
// paused, and so the session from ending.
func (j *Job) fenceDisks() {
	for _, d := range j.cfg.Disks {
		d.fence()
	}
}

// follow makes this host's copy a secondary's. The guest is paused.
func (d *Disk) follow(ctx context.Context) error {
	d.fence()
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.step(ctx); err != nil {
		return fmt.Errorf("protect: disk %q: %w", d.cfg.Name, err)
	}
	server := nbd.NewServer(nbd.ServerConfig{Logger: d.log})
	d.exports, d.server = nil, server
	sides := [...]nbd.Disk{d.secondary.Export(), replication.NewIdentityDisk(d.secondary), replication.NewSums(d.secondary.Export())}
	for i, ch := range d.channels() {
		cfg := nbd.ExportConfig{Name: ch, Disk: sides[i], ReadOnly: i == 2}
		if i < 2 && d.canGrow() {
			cfg.MaxClients = maxLengths
		}
		export, err := server.Export(cfg)
		if err != nil {
			return fmt.Errorf("protect: disk %q: %w", d.cfg.Name, err)
		}
		d.exports = append(d.exports, export)
	}
	return nil
}

// step makes this host's copy one that a primary may join. d.mu is held.
func (d *Disk) step(ctx context.Context) error {
	if s := d.secondary; s != nil {
		// A session that ended before it began leaves what it has written of a
		// synchronisation.
		if err := s.Stop(ctx, false); err != nil && !errors.Is(err, replication.ErrNotRunning) {
			return err
		}
		return nil
	}
	if s := d.promoted; s != nil {
		if err := s.Commit(ctx); err != nil {
			return err // a part of this copy is still in the overlays, and stays there
		}
	}
	gate := &below{Gate: d.gate}
	s, err := replication.NewSecondary(d.image, replication.SecondaryConfig{
		Name: d.cfg.Name, Events: d.events, ActiveBytes: d.cfg.OverlayBytes, HiddenBytes: d.cfg.OverlayBytes,
		Journal: d.cfg.Journal, Overwrite: true, GiveUpCheckpoint: true, Gate: gate,
		HungAfter: d.cfg.HungAfter,
	})
	if err != nil {
		return err
	}
	d.keepFailure()
	d.primary, d.promoted, d.secondary, d.below = nil, nil, s, gate
	d.size.Store(s.Size())
	return nil
}

// serve lets the primary use what one of its connections is for, until ctx ends.
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
