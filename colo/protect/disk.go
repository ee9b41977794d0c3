package protect

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/replication"
	"github.com/gocolo/lockstep/replication/nbd"
)

// DiskConfig is one disk of the guest on one host. Name and Image are required.
type DiskConfig struct {
	// Name tells the guest's disks apart, the same on both hosts.
	Name string
	// Image is this host's copy. It is the Disk's alone from New on, and
	// must be as long as the other host's. One that is a replication.Grower becomes longer by
	// Job.Grow, any other while no job of either host has it, on both. A replication.File knows whose copy it
	// is, also after the host was down (a replication.MetadataKeeper); what is
	// known of any other image ends with the Disk.
	Image replication.Disk
	// Journal keeps on stable storage what a secondary has to take back, so that
	// a host which dies while it follows has the disk of its last checkpoint
	// afterwards. New recovers it. It is the Disk's alone from New on; whoever
	// opened it closes it when Run has returned. Nil: the overlays are in memory,
	// and a host that dies while it follows leaves a copy of no checkpoint.
	Journal *replication.Journal
	// OverlayBytes bounds each of the two overlays that a secondary keeps in
	// memory between checkpoints; see replication.SecondaryConfig. 0: 256 MiB.
	// Unused with a Journal.
	OverlayBytes int64
	// HungAfter is how long an operation of the image, or of what is kept beside it, may take before a
	// session gives it up; a flush may take three times as long. The image has failed then (an
	// event.DiskFailed), see replication.HungError. Zero means replication.DefaultHungAfter; if it is negative, nothing is given up.
	HungAfter time.Duration
	// MaxSize bounds, in bytes, how long the other host can have this host's copy made: the memory that a
	// disk takes here grows with its length. Zero means DefaultMaxSize.
	MaxSize int64
	// Grown, if it is not nil, is called with Disk.Size where the guest runs, or is about to, and the disk is
	// longer than Grown was told last: after Job.Grow, and when this host goes on with the guest after
	// its disk has become longer. A device tells its guest then. It is called on any goroutine, with the guest
	// running or not, one call at a time, and must not wait for the guest, nor for the Job.
	Grown func(size int64)
}

// DefaultMaxSize is DiskConfig.MaxSize where it is zero: 16 TiB.
const DefaultMaxSize = 16 << 40

// A Disk is one disk of a guest for its life, whichever side its host is: the
// guest's device reads and writes it, and what stands below changes with the side,
// while the guest stands still. Where the guest runs, that is a
// replication.Primary, whose answers to writes wait for the job's gate; on a
// secondary it is a replication.Secondary.
//
// A request that has no answer yet when the guest is paused is part of the device's state:
// the device saves it, and makes it again after a load, since the disk of a checkpoint may or
// may not have what it writes. The answer waits until the guest runs. A Pause that waits for
// answers instead takes as long as the gate is shut, since until then none comes.
//
// A device whose requests a Pause does not wait for does two things in a load (a
// vmstate.PostLoader). It waits until all calls of before it have returned: what one of them
// writes later would be on the disk of the checkpoint, whose guest has not written it. That
// is soon, since on a host that follows no answer waits for the gate. And it makes the requests
// again in the Resume that ends the pause, not in the load, behind which the disk still
// becomes that of the checkpoint and forgets what the guest here has written. A request that
// comes when this host follows no more, or has not got the whole guest yet, changes nothing:
// its error matches replication.ErrNotRunning, and no guest is to be told of it. Nor is a guest told
// of replication.ErrFenced: that is the error of a request which changes the disk, and which waits
// for the gate or arrives when the arbiter has given the guest to the other host. Whatever made the
// request lives on, such as the thread of a device or of a vCPU: this host follows next, and may run
// the guest again.
//
// A host whose image cannot make stable what the guest has written, or cannot record in the
// metadata beside it in what state it is (an event.DiskFailed), leaves the guest to a
// secondary that is in step, whose copy is that of the last checkpoint. Alone, where an
// operator orders it to go on, or where that secondary does not go on with the guest, it
// goes on itself, and what fails of the guest's requests goes on failing. It waits until
// the secondary could have acquired what this host has released: for letting out the
// guest's output and for the release at most a Term each, then two Terms and Lost, and
// where the secondary has acquired the guest and says nothing, a PeerTimeout more. Without
// an arbiter nobody can say whether the secondary goes on: an operator does, there.
//
// A guest that runs alone over such an image is moved to the other host when that can be
// reached again: memory, and the disk as the guest reads it, go over as in any
// synchronisation, and at the first checkpoint the job switches over by itself. Where the
// image cannot be read nothing is sent, since the copy would answer with something else:
// the session ends then. Where the metadata beside the image cannot be written either, the
// image goes on saying what it was before. It starts no guest again, since the arbiter has
// a later generation, which the other host's disk has too before the guest runs there.
// After each session that leaves the guest over such an image the next one waits longer,
// up to a minute; LastError says for how long and why. The host itself follows nobody with
// a failed image, and says so: its operator gives a new job one that is good.
//
// A host that begins to follow has its image overwritten where it differs. The two
// hosts tell each other which copy they have: a secondary that was only away gets
// what it has missed, from its last checkpoint on. Of any other copy checksums are
// compared, and what differs is sent.
type Disk struct {
	cfg   DiskConfig
	image replication.Disk // cfg.Image, which knows whose copy it is

	gate   Gate // of the job; nil before it is made
	events *event.Bus
	log    *slog.Logger // of the job, for connections

	mu        sync.RWMutex // held for reading during a request of the guest
	primary   *replication.Primary
	secondary *replication.Secondary // not nil: this host follows
	// promoted is below primary if a secondary went on whose overlays could not
	// be copied down.
	promoted *replication.Secondary
	below    *below // the gate of the last secondary
	exports  []*nbd.Export
	server   *nbd.Server
	idle     atomic.Bool  // secondary has stopped, and the guest here does not go on: see rest
	waits    diskWaits    // what has been asked of it and not been answered
	size     atomic.Int64 // in bytes, as the guest's device sees it; Image may be longer for a moment
	telling  sync.Mutex   // held while Grown is called
	told     int64        // the size that Grown was told last, or that of NewDisk; guarded by telling
	lost     error        // why what stood below before is not to be trusted any more; it stays for the life of the Disk
}

var _ replication.Disk = (*Disk)(nil)

// NewDisk makes a disk. It may be used when New has been given it. An Image that cannot be the
// disk of a guest is refused with the error of replication.CheckDisk.
func NewDisk(cfg DiskConfig) (*Disk, error) {
	if cfg.Name == "" || len(cfg.Name) > maxDiskName || cfg.Image == nil || cfg.MaxSize < 0 {
		return nil, fmt.Errorf("protect: DiskConfig needs an Image, a Name of at most %d bytes, and a MaxSize that is not negative", maxDiskName)
	}
	if err := replication.CheckDisk(cfg.Image); err != nil {
		return nil, fmt.Errorf("protect: disk %q: %w", cfg.Name, err)
	}
	d := &Disk{cfg: cfg, image: cfg.Image}
	if _, ok := cfg.Image.(replication.MetadataKeeper); !ok && cfg.Journal == nil {
		d.image = &remembered{Disk: cfg.Image}
	}
	d.size.Store(cfg.Image.Size())
	d.told = cfg.Image.Size()
	return d, nil
}

const maxDiskName = 64

var (
	errNoJob = errors.New("protect: the disk belongs to no job yet")
	errIdle  = fmt.Errorf("protect: the guest does not run here, and its disk takes nothing of it: %w", replication.ErrNotRunning)
)

// A view is what stands below a Disk, as the guest's device uses it.
type view interface {
	replication.Disk
	WriteZeroes(off, n int64) error
	Trim(off, n int64) error
}

// view returns the guest's disk, and must be followed by d.mu.RUnlock.
func (d *Disk) view() (view, error) {
	d.mu.RLock()
	switch {
	case d.secondary != nil:
		return d.secondary, nil
	case d.primary != nil:
		return d.primary, nil
	}
	return nil, errNoJob
}

// changing does what view does, for a request that changes the disk or waits for it.
func (d *Disk) changing() (view, error) {
	v, err := d.view()
	if err == nil && d.idle.Load() {
		err = errIdle
	}
	return v, err
}

// ReadAt implements replication.Disk. The guest calls it and the methods below, from any
// goroutine, at any time.
func (d *Disk) ReadAt(p []byte, off int64) (int, error) {
	defer d.waits.end(d.waits.begin(opRead))
	v, err := d.view()
	defer d.mu.RUnlock()
	if err != nil {
		return 0, err
	}
	return v.ReadAt(p, off)
}

// WriteAt implements replication.Disk.
func (d *Disk) WriteAt(p []byte, off int64) (int, error) {
	defer d.waits.end(d.waits.begin(opWrite))
	v, err := d.changing()
	defer d.mu.RUnlock()
	if err != nil {
		return 0, err
	}
	return v.WriteAt(p, off)
}

// Sync implements replication.Disk.
func (d *Disk) Sync() error {
	defer d.waits.end(d.waits.begin(opFlush))
	v, err := d.changing()
	defer d.mu.RUnlock()
	if err != nil {
		return err
	}
	return v.Sync()
}

// WriteZeroes zeroes a range.
func (d *Disk) WriteZeroes(off, n int64) error {
	defer d.waits.end(d.waits.begin(opZero))
	v, err := d.changing()
	defer d.mu.RUnlock()
	if err != nil {
		return err
	}
	return v.WriteZeroes(off, n)
}

// Trim zeroes a range and may give its storage back.
func (d *Disk) Trim(off, n int64) error {
	defer d.waits.end(d.waits.begin(opTrim))
	v, err := d.changing()
	defer d.mu.RUnlock()
	if err != nil {
		return err
	}
	return v.Trim(off, n)
}

// Size implements replication.Disk. It changes when Job.Grow has made the disk of both hosts
// longer, and on a host that follows a moment earlier. It does not wait.
func (d *Disk) Size() int64 { return d.size.Load() }
