package standby

import (
	"context"
	"errors"
	"fmt"

	"github.com/gocolo/lockstep/vmstate"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// Replica is a Copy in the role of a primary's guest: it protects the state that the
// Copy keeps with a further secondary. It is the VM of a colo.PrimaryConfig, whose
// registry and saver NewReplica fills, and the saver's dirty log; so it is called from
// the goroutine of that session.
//
// Paused, it holds the Copy at one checkpoint: one that arrives meanwhile is
// acknowledged, and the one after it waits. The session of the Replica should therefore
// resume early (LateResume off) and call Step; then the Copy waits only until the pages are
// copied, or the end of the initial state has been sent. A Replica keeps every device that a
// checkpoint has ever had: when these are 1024 more than there were when it was made, Pause
// fails with [ErrTooLarge], and the secondary needs a new Replica.
//
// The guest that a secondary runs from it belongs to that secondary alone: a Replica has
// no output and no disks, and going on with it means [Copy.Put].
type Replica struct {
	g       *Copy
	reg     *vmstate.Registry
	dirty   []ram.Bitmap // by block; guarded by g.mu
	devices map[vmstate.Alias]*opaque
	most    int  // len(devices), at most
	held    bool // this replica has g.mu
	epoch   uint64
}

// moreDevices is how many devices a primary may add to its guest while a replica lives. None is
// ever forgotten, since a session's registry does not forget any: one that a checkpoint does not
// have may come again with the next.
const moreDevices = 1024

// opaque is a device of which only the bytes are known.
type opaque struct {
	entry vmstate.Entry
	body  []byte
	there bool // the section was in this checkpoint
}

func (d *opaque) VMState(f *vmstate.Fields) { f.Bytes("data", d.body) }

// Needed leaves a device out of a checkpoint that does not have it.
func (d *opaque) Needed() bool { return d.there }

// NewReplica registers the guest's memory and devices in reg, which should be
// empty. Close ends it, before the Copy's own.
func (g *Copy) NewReplica(reg *vmstate.Registry, cfg ram.SaverConfig) (*Replica, *ram.Saver, error) {
	var saver *ram.Saver
	p, err := g.replica(reg, func(blocks []ram.Block, log ram.DirtyLog) error {
		saver = ram.NewSaver(blocks, log, cfg)
		return saver.Register(reg)
	})
	if err != nil {
		return nil, nil, err
	}
	return p, saver, nil
}

// NewLazyReplica makes a Replica for a guest that goes on elsewhere before its memory is
// there. Its results are for a migrate.SourceConfig with Postcopy and a PostcopyAfter below
// 0: the Replica is the VM, the others are Memory and Blocks; Machine is Info().Machine. A
// QEMU of the same machine that waits for a migration, with the capability postcopy-ram,
// takes the guest. It runs there as soon as the QEMU has the devices, however large the
// memory is. The memory is sent from the Copy as the QEMU touches it, and all of it in the
// end.
//
// While it is paused the Replica holds the Copy, and it stays paused when the guest has been
// handed over. From then on the guest lives in both: if this process or the QEMU ends before all
// of the memory is there, it is gone.
//
// A guest of a machine so old that its streams have no configuration or no footers
// is [errors.ErrUnsupported].
func (g *Copy) NewLazyReplica(reg *vmstate.Registry, cfg ram.SaverConfig) (p *Replica, memory *ram.LazySaver, blocks []ram.Block, err error) {
	p, err = g.replica(reg, func(all []ram.Block, log ram.DirtyLog) error {
		if g.bare != (bare{}) {
			return fmt.Errorf("standby: postcopy of a stream without configuration or footers: %w", errors.ErrUnsupported)
		}
		blocks, memory = all, ram.NewLazySaver(all, log, cfg)
		return memory.Register(reg)
	})
	if err != nil {
		return nil, nil, nil, err
	}
	return p, memory, blocks, nil
}

// replica makes a Replica, whose memory register registers.
func (g *Copy) replica(reg *vmstate.Registry, register func([]ram.Block, ram.DirtyLog) error) (*Replica, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.born {
		return nil, ErrNothing
	}
	g.settle()
	p := &Replica{g: g, reg: reg, devices: make(map[vmstate.Alias]*opaque)}
	blocks := make([]ram.Block, len(g.img.blocks))
	for i := range blocks {
		b := &g.img.blocks[i]
		blocks[i] = ram.Block{Name: b.name, Host: b.mem}
		p.dirty = append(p.dirty, ram.NewBitmap(len(b.mem)/ram.PageSize))
	}
	if err := p.take(); err != nil {
		return nil, err
	}
	if err := register(blocks, p); err != nil {
		return nil, err
	}
	g.replicas[p] = true
	return p, nil
}

// take updates the devices to those of the present checkpoint. g.mu is held, and the bodies
// are valid as long as it is.
func (p *Replica) take() error {
	for _, d := range p.devices {
		d.there, d.body = false, nil
	}
	if p.most == 0 {
		p.most = len(p.g.cur.sections) + moreDevices
	}
	for i := range p.g.cur.sections {
		s := &p.g.cur.sections[i]
		key := vmstate.Alias{Name: s.Name, Instance: s.Instance}
		d := p.devices[key]
		if d == nil {
			if len(p.devices) == p.most {
				return fmt.Errorf("%w: %s is a device more than the %d that a replica keeps", ErrTooLarge, s.Header, p.most)
			}
			d = &opaque{entry: vmstate.Entry{Name: s.Name, Instance: s.Instance, Version: s.Version, MinVersion: s.Version}}
			if err := p.reg.Register(d.entry, d); err != nil {
				return err
			}
			p.devices[key] = d
		}
		if d.entry.Version != s.Version {
			return fmt.Errorf("standby: %s was version %d before: %w", s.Header, d.entry.Version, vmstate.ErrVersion)
		}
		d.body, d.there = s.body, true
	}
	return nil
}

// Pause holds the Copy at its last whole checkpoint.
func (p *Replica) Pause(context.Context) error {
	if p.held {
		return nil
	}
	p.g.mu.Lock()
	p.held = true
	err := ErrNothing
	if p.g.born {
		p.g.settle()
		err = p.take()
	}
	if err != nil {
		p.release() // a Pause that fails does not count
		return err
	}
	p.epoch = p.g.epoch
	return nil
}

// Step lets the Copy go on once all of the initial state has been sent, while the secondary
// loads it. Give it to colo.PrimaryConfig as Step.
func (p *Replica) Step(op string, epoch uint64) {
	if op == "expect checkpoint-ready" {
		p.release()
	}
}

// Epoch returns the number of the Copy's checkpoint that Pause has held last. When the
// secondary has loaded a checkpoint of this session, it has that checkpoint of the Copy.
func (p *Replica) Epoch() uint64 { return p.epoch }

// Resume lets the Copy go on.
func (p *Replica) Resume(context.Context) error {
	p.release()
	return nil
}

func (p *Replica) release() {
	if p.held {
		p.held = false
		p.g.mu.Unlock()
	}
}

// ReadDirty marks the pages that checkpoints have changed since the last call.
func (p *Replica) ReadDirty(name string, bitmap []uint64) error {
	if !p.held {
		p.g.mu.Lock()
		defer p.g.mu.Unlock()
	}
	if p.g.img == nil {
		return ErrNothing
	}
	i, ok := p.g.img.index[name]
	if !ok {
		return fmt.Errorf("%w: %q", ram.ErrUnknownBlock, name)
	}
	ram.Bitmap(bitmap).Or(p.dirty[i])
	clear(p.dirty[i])
	return nil
}

// Close frees the Copy from the replica. The session that used the replica must have ended.
func (p *Replica) Close() error {
	p.release()
	p.g.mu.Lock()
	defer p.g.mu.Unlock()
	delete(p.g.replicas, p)
	return nil
}
