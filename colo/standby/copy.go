package standby

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// Config bounds the memory that a primary can make a Copy take. The zero value is right
// for most.
type Config struct {
	// MaxRAM bounds the guest's memory, in bytes; zero: 1 TiB. Address space
	// is taken for all that the block list announces, memory as pages come.
	MaxRAM uint64

	// MaxStaged bounds the pages of one checkpoint, in bytes. Zero: as much as
	// the guest has memory.
	MaxStaged uint64

	// MaxState bounds the device state, in bytes. Zero: 256 MiB.
	MaxState uint64
}

// Copy is the state of a guest that does not run here: that of its last whole checkpoint,
// kept on a host that does not know the guest's devices. (The guest that runs and is
// protected is a protect.Guest.) It is the VM, the Loader and the Stage (with Settler
// and PageCounter) of a secondary of package colo, which calls those methods from one
// goroutine; it serves one session or one Read. Put, Info, NewView and the methods of
// its replicas may be called from any goroutine, during the session too: they see whole
// checkpoints only.
type Copy struct {
	cfg  Config
	scan vmstate.Scanner
	walk ram.Walker

	// Of the goroutine that loads.
	next     state // device state being received
	command  func(vmstate.Command) error
	recorded bool // by Read
	used     bool // LoadInitial was called: what a stream that has failed has left is not for another
	whole    bool // an initial migration was committed
	loaded   bool // next and the staged pages are a whole checkpoint
	flushed  bool // Flush was called for it
	pages    uint64

	mu       sync.Mutex // guards what follows, and the image's memory
	img      *image
	conf     vmstate.Configuration
	bare     bare
	ram      vmstate.Header // of the memory's START
	desc     description
	cur      state
	born     bool // the value of whole, for those who hold mu
	epoch    uint64
	replicas map[*Replica]bool
	views    map[*View]bool
	peak     uint64 // largest arena, bytes
}

// bare says which parts the streams of the primary's machine lack, as those of very old types do.
type bare struct{ configuration, footers bool }

// state is device state as it came: FULL sections and EOF, and where each is.
type state struct {
	blob     []byte
	sections []section
}

// section is a FULL section; its body is a part of the state's blob.
type section struct {
	vmstate.Header
	body []byte
	desc *vmstate.DeviceDesc // nil if the initial description does not fit it
}

// New returns a Copy that has received nothing. Close frees its memory.
func New(cfg Config) *Copy {
	g := &Copy{cfg: cfg, replicas: make(map[*Replica]bool)}
	if g.cfg.MaxRAM == 0 {
		g.cfg.MaxRAM = 1 << 40
	}
	return g
}

// Pause does nothing: this guest does not run.
func (g *Copy) Pause(context.Context) error { return nil }

// Resume does nothing: see Put.
func (g *Copy) Resume(context.Context) error { return nil }

// LoadInitial reads an initial migration, from its header to the description.
// Memory goes into the image at once, since there is no guest yet. The errors
// are those of vmstate.Scanner and ram.Walker and those of this package.
func (g *Copy) LoadInitial(r *qemufile.Reader, onCommand func(vmstate.Command) error) error {
	if g.used {
		return errors.New("standby: a Copy serves one session")
	}
	g.used = true
	g.command = onCommand
	described := false
	g.scan = vmstate.Scanner{MaxState: g.cfg.MaxState, Live: g.live}
	g.scan.Record = func(rec *vmstate.Record) error {
		switch rec.Type {
		case vmstate.Configured:
			g.conf = rec.Configuration
			for _, c := range g.conf.Capabilities {
				switch c {
				case "x-ignore-shared":
					return ErrShared
				case "mapped-ram":
					return ErrMapped
				}
			}
		case vmstate.Description:
			described = true
			return g.desc.parse(rec.Body, g.scan.Devices)
		}
		return g.record(rec)
	}
	if err := g.scan.Stream(r); err != nil {
		return fmt.Errorf("initial migration: %w", err)
	}
	switch {
	case !described:
		return ErrNoDescription
	case g.img == nil:
		return fmt.Errorf("%w: no memory in the stream", ram.ErrBlockList)
	}
	// The views of the scan end with it; keep the sections as a checkpoint
	// brings them, in one piece.
	var blob sliceWriter
	w := qemufile.NewWriter(&blob)
	for _, s := range g.next.sections {
		s.Header.Put(w)
		w.Write(s.body)
		if !g.scan.NoFooters {
			vmstate.PutFooter(w, s.ID)
		}
	}
	vmstate.PutEOF(w)
	if err := w.Flush(); err != nil {
		return err
	}
	g.bare = bare{configuration: g.scan.NoConfiguration, footers: g.scan.NoFooters}
	return g.LoadDevices(blob, onCommand)
}

// Read reads a guest from a migration stream, such as Put or a QEMU's "migrate file:"
// writes. It does what LoadInitial and Commit do, without a session.
func (g *Copy) Read(r *qemufile.Reader) error {
	refuse := func(c vmstate.Command) error {
		if c.Type == vmstate.CommandEnableCOLO || c.Type == vmstate.CommandSwitchoverStart {
			return nil
		}
		return fmt.Errorf("%w %v in a recorded stream", vmstate.ErrCommand, c)
	}
	g.recorded = true
	if err := g.LoadInitial(r, refuse); err != nil {
		return err
	}
	if err := g.Flush(); err != nil {
		return err
	}
	return g.Commit()
}

// record takes what the scanner finds beside memory.
func (g *Copy) record(rec *vmstate.Record) error {
	switch rec.Type {
	case vmstate.SectionFull:
		g.next.sections = append(g.next.sections, section{rec.Header, rec.Body, rec.Desc})
	case vmstate.CommandRecord:
		if g.command != nil {
			return g.command(rec.Command)
		}
	}
	return nil
}

// Load reads the live sections of a checkpoint and stages their pages.
func (g *Copy) Load(r *qemufile.Reader, onCommand func(vmstate.Command) error) error {
	if !g.whole {
		return ErrNothing
	}
	if err := g.Settle(); err != nil {
		return err
	}
	g.command, g.scan.Record = onCommand, g.record
	g.pages, g.loaded = 0, false
	err := g.scan.Sections(r)
	if err != nil {
		g.Discard()
	}
	return err
}

// live reads a live section's body.
func (g *Copy) live(h vmstate.Header, r *qemufile.Reader) error {
	if h.Name != ram.SectionName || h.Instance != 0 {
		return fmt.Errorf("%w: %s", ErrLive, h)
	}
	if h.Version != ram.Version {
		return &ram.Error{Op: "load", Stream: r.Offset(), Err: fmt.Errorf("%w: %d", ram.ErrVersion, h.Version)}
	}
	if !g.whole {
		g.ram = h
	}
	return g.walk.Walk(r, g.page)
}

func (g *Copy) page(rec *ram.Record) (err error) {
	switch {
	case rec.Kind == ram.KindBlockList && g.img != nil:
		err = g.img.same(rec.Blocks)
	case rec.Kind == ram.KindBlockList:
		staged := g.cfg.MaxStaged
		if staged == 0 {
			staged = rec.Total // every page once
		}
		g.img, err = newImage(rec.Blocks, rec.Total, g.cfg.MaxRAM, staged)
	case !rec.Page():
	case g.img == nil:
		err = ram.ErrUnknownBlock
	case g.whole:
		g.pages++
		err = g.img.stage(rec)
	default:
		g.pages++
		err = g.img.load(rec)
	}
	if err != nil {
		var e *ram.Error
		if errors.As(err, &e) {
			return err
		}
		return &ram.Error{Op: "load", Block: rec.Block, Offset: rec.Offset, Stream: rec.Stream, Err: err}
	}
	return nil
}

// LoadDevices cuts the device state into its sections, whose lengths the
// initial description and the footers give, and keeps a copy.
func (g *Copy) LoadDevices(blob []byte, onCommand func(vmstate.Command) error) error {
	g.command, g.scan.Record = onCommand, g.record
	g.next.sections = g.next.sections[:0]
	g.next.blob = append(g.next.blob[:0], blob...)
	if err := g.scan.State(g.next.blob, 0); err != nil {
		g.Discard()
		return fmt.Errorf("device state: %w", err)
	}
	for i := range g.next.sections {
		if s := &g.next.sections[i]; s.Name == "globalstate" && !g.recorded {
			setRunning(s.body)
		}
	}
	g.loaded = true
	return nil
}

// Flush says that what was loaded is about to be committed; it changes nothing. It returns
// ErrVoid if no checkpoint was loaded whole.
func (g *Copy) Flush() error {
	if !g.loaded {
		return ErrVoid
	}
	g.flushed = true
	return nil
}

// Commit replaces the state of the guest by the one that was loaded, memory and devices in
// one step. It returns ErrVoid unless a checkpoint was loaded whole and Flush was called.
func (g *Copy) Commit() error {
	if !g.loaded || !g.flushed {
		return ErrVoid
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.whole {
		g.epoch++
	}
	g.cur, g.next = g.next, g.cur
	g.img.committed = g.whole // the initial pages are in the image already
	g.peak = max(g.peak, g.img.pages.bytes())
	g.whole, g.born = true, true
	g.loaded, g.flushed = false, false
	return nil
}

// Settle moves the pages of the last checkpoint into the image. A session calls it when
// there is time; if it has not, Load, Put and a replica do the same.
func (g *Copy) Settle() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.settle()
	return nil
}

func (g *Copy) settle() {
	if g.img == nil {
		return
	}
	var before func(block, page int)
	if len(g.views) > 0 {
		before = func(block, page int) {
			for v := range g.views {
				v.keep(&g.img.blocks[block], block, page)
			}
		}
	}
	g.img.settle(before, func(block, page int) {
		for r := range g.replicas {
			r.dirty[block].Set(page)
		}
	})
}

// Rollback drops the device state that was loaded and not committed.
func (g *Copy) Rollback() { g.Discard() }

// Discard drops what was loaded and not committed: the guest stays in the state of the last
// whole checkpoint.
func (g *Copy) Discard() {
	g.loaded, g.flushed = false, false
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.img != nil && !g.img.committed {
		g.img.drop()
	}
}

// Pages returns how many page records the last checkpoint had.
func (g *Copy) Pages() uint64 { return g.pages }

// Close frees the memory, and ends its views. No other method may be called
// afterwards. It refuses while there are replicas: their sessions read the memory.
func (g *Copy) Close() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if n := len(g.replicas); n > 0 {
		return fmt.Errorf("standby: %d replicas are in use", n)
	}
	g.born = false
	for v := range g.views {
		v.end(ErrNothing)
	}
	err := g.img.close()
	g.img = nil
	return err
}

// Info has what a Copy keeps of the last whole checkpoint: how much memory, which devices,
// and what it costs.
type Info struct {
	Machine  string // machine type, as the stream names it; empty before it was received
	Epoch    uint64 // of the last whole checkpoint; 0 is the initial migration
	RAM      uint64 // bytes of guest memory
	Used     uint64 // bytes of it in pages that may hold something else than zeros
	Blocks   []ram.BlockInfo
	Devices  []vmstate.Header // the device sections, in stream order
	State    uint64           // bytes of device state
	Staging  uint64           // bytes of memory that staging has taken at most
	RunState string           // in which the guest will be, in QEMU's word: running, unless Read has found another
}

// Info describes the last whole checkpoint, or returns [ErrNothing].
func (g *Copy) Info() (Info, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.born {
		return Info{}, ErrNothing
	}
	in := Info{
		Machine: g.conf.Machine, Epoch: g.epoch, RAM: g.img.total, Blocks: g.blockList(),
		State: uint64(len(g.cur.blob)), Staging: g.peak,
	}
	for i := range g.img.blocks {
		in.Used += uint64(g.img.blocks[i].data.Count()) * ram.PageSize
	}
	for _, s := range g.cur.sections {
		in.Devices = append(in.Devices, s.Header)
		if s.Name == "globalstate" {
			in.RunState = runState(s.body)
		}
	}
	return in, nil
}

// ReadRAM copies memory of the last whole checkpoint, from an offset in a
// block, into p.
func (g *Copy) ReadRAM(name string, offset uint64, p []byte) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.born {
		return ErrNothing
	}
	g.settle()
	i, ok := g.img.index[name]
	if !ok {
		return fmt.Errorf("%w: %q", ram.ErrUnknownBlock, name)
	}
	mem := g.img.blocks[i].mem
	if offset > uint64(len(mem)) || uint64(len(p)) > uint64(len(mem))-offset {
		return fmt.Errorf("%w: %d bytes at %#x of %q", ram.ErrOffset, len(p), offset, name)
	}
	copy(p, mem[offset:])
	return nil
}

func (g *Copy) blockList() []ram.BlockInfo {
	list := make([]ram.BlockInfo, len(g.img.blocks))
	for i := range g.img.blocks {
		list[i] = ram.BlockInfo{Name: g.img.blocks[i].name, Length: uint64(len(g.img.blocks[i].mem))}
	}
	return list
}

// runState decodes the section "globalstate" (migration/global_state.c): be32
// length with the NUL, and a buffer of 100 bytes.
func runState(body []byte) string {
	if len(body) < 4 {
		return ""
	}
	n := binary.BigEndian.Uint32(body)
	if n == 0 || uint64(n) > uint64(len(body)-4) {
		return ""
	}
	return string(body[4 : 4+n-1])
}

// setRunning makes the run state "running". A guest in COLO runs, but the section keeps the state
// that it had when the migration began: a guest that was paused for it would be brought back
// paused. (A QEMU secondary ignores the section.)
func setRunning(body []byte) {
	const state = "running\x00"
	if len(body) == 4+100 {
		binary.BigEndian.PutUint32(body, uint32(len(state)))
		clear(body[4:])
		copy(body[4:], state)
	}
}

// sliceWriter collects bytes.
type sliceWriter []byte

func (s *sliceWriter) Write(p []byte) (int, error) {
	*s = append(*s, p...)
	return len(p), nil
}

var _ io.Writer = (*sliceWriter)(nil)
