package colotest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gocolo/lockstep/internal/guest"
	"github.com/gocolo/lockstep/internal/mapping"
	"github.com/gocolo/lockstep/vmstate"
	"github.com/gocolo/lockstep/vmstate/ram"
)

var (
	// ErrRunning: the guest runs, and what was asked needs it to stand still.
	ErrRunning = errors.New("colotest: guest runs")
	// ErrPaused: the guest is paused, and what was asked needs it to run.
	ErrPaused = errors.New("colotest: guest is paused")
)

// VMConfig says what a [VM] does. The zero value is a small guest that
// dirties nothing but what a round needs.
type VMConfig struct {
	VCPUs       int    // number of vCPUs, 1 to 8; 0: 1
	Pages       int    // working set of each vCPU, in pages of 4 KiB; 0: 256
	Touch       int    // pages of it that a round writes; at most Pages
	TSCPerMille int    // share of the rounds that take in TSC, 0 to 1000: in these two guests differ
	Seed        uint64 // what the guest starts from; the same on both sides
	Memory      uint64 // size of memory in bytes, a multiple of 4 KiB; 0: the least, [VMConfig.MinMemory]

	// Ring is how many rounds of each vCPU memory remembers, for [Ledger.Verify] and
	// [VM.History]: a power of two, 256 to 65536, at 16 bytes a round. 0: 65536,
	// which with the rest takes 2 MiB at least. It is the same on both sides.
	Ring int

	// Interval is the time from one round of a vCPU to its next, on average:
	// a vCPU that slept too long catches up. 0: 100 µs. Negative: none; the
	// guest then keeps a CPU of the host busy per vCPU.
	Interval time.Duration

	// Output is given each round's frame, on the vCPU's goroutine; the frame
	// is valid until it returns. An error refuses the frame (a full buffer):
	// the vCPU offers it again after a moment and does nothing else until it
	// is taken. Nil: frames vanish.
	Output func(frame []byte) error

	// Disk is the size of the guest's disk in bytes, a multiple of 512; 0:
	// none. Each vCPU writes to a part of its own, every DiskEvery rounds,
	// one to eight sectors whose place and content depend on its state.
	Disk      uint64
	DiskEvery int
	// Write is given each block before the frame of its round, on the vCPU's
	// goroutine; p is valid until it returns. With flush, it and all before
	// it must be stable then. An error ends Run: do not return one of a protect.Disk that
	// a guest is not told of. A Pause waits for it. Nil: blocks vanish.
	Write func(p []byte, off int64, flush bool) error

	// Tracked makes the kernel keep the dirty log (a [ram.Tracker]), in place of marks that
	// the vCPUs set: for the tests of hosts that rely on one. NewVM fails if the kernel
	// cannot, with the error of [ram.NewTracker]. Writes of the test itself are then logged
	// too.
	Tracked bool

	// TSC is the time-stamp counter. Nil: nanoseconds since the guest was
	// made. Called on the vCPUs' goroutines.
	TSC func() uint64
}

// Block is the name of the guest's only RAM block.
const Block = "guest.ram"

// vcpuVersion is the version of a vCPU's device state.
const vcpuVersion = 1

const (
	defaultInterval = 100 * time.Microsecond
	retryInterval   = 100 * time.Microsecond // after a refused frame, at least
	retriesInRound  = 16                     // of a frame that is refused, at most
	maxBehind       = 10 * time.Millisecond  // what a vCPU catches up at most
)

func (c VMConfig) pages() int {
	if c.Pages == 0 {
		return 256
	}
	return c.Pages
}

func (c VMConfig) params() guest.Params {
	return guest.Params{
		VCPUs: max(c.VCPUs, 1), Pages: c.pages(), Touch: c.Touch, TSCPerMille: c.TSCPerMille, Seed: c.Seed, Ring: c.Ring,
		Disk: c.Disk, DiskEvery: c.DiskEvery,
	}
}

// MinMemory returns the least Memory that the guest can do with.
func (c VMConfig) MinMemory() uint64 { return c.params().MemSize() }

// VM is a guest for tests, in pure Go and without KVM: memory, a dirty log, and vCPUs
// that run this project's test program, a round at a time. It is a colo.VM, a
// ram.DirtyLog and LogSwitch, and its vCPUs are devices of a vmstate.Registry.
//
// Pauses nest, as colo.VM demands. A new guest stands still though nothing has paused
// it: the first Resume that leaves no pause starts it. Its rounds happen in
// [VM.Run], on goroutines that end with it, or in [VM.Step]. Its methods
// may be called from any goroutine, but for those that say otherwise.
type VM struct {
	cfg    VMConfig
	params guest.Params
	mem    []byte
	dirty  []uint64     // bitmap; words are accessed atomically
	kernel *ram.Tracker // instead of dirty, if the guest is tracked
	vcpus  []*vcpu
	origin time.Time
	logs   atomic.Bool // the dirty log is on
	stop   atomic.Bool // there is a pause: the vCPUs look at this between rounds
	ensure atomic.Pointer[func(block string, offset, n uint64) error]

	mu      sync.Mutex
	pauses  int           // that Resume has not taken back
	fresh   bool          // it has not run yet, and stands still without a pause
	running bool          // Run or Step is under way
	awake   int           // vCPUs that may be inside a round
	still   chan struct{} // closed when awake gets to 0; nil if nobody waits
	gate    chan struct{} // closed by the last Resume; nil unless paused
}

// NewVM makes a guest, in its first state. Close frees its memory.
func NewVM(cfg VMConfig) (*VM, error) {
	p := cfg.params()
	if err := p.Validate(); err != nil {
		return nil, fmt.Errorf("colotest: %w", err)
	}
	size := max(cfg.Memory, p.MemSize())
	if size%ram.PageSize != 0 || size > guest.MaxMemory {
		return nil, fmt.Errorf("colotest: %d bytes of memory: want a multiple of %d, at most %d", size, ram.PageSize, guest.MaxMemory)
	}
	mem, err := mapping.New(int(size))
	if err != nil {
		return nil, err
	}
	g := &VM{
		cfg: cfg, params: p, mem: mem, origin: time.Now(),
		dirty: make([]uint64, (size/ram.PageSize+63)/64),
		gate:  make(chan struct{}), fresh: true,
	}
	g.stop.Store(true)
	for range p.VCPUs {
		v := &vcpu{g: g, pages: make([]uint32, 0, 2*p.Touch+16)}
		v.touched, v.tsc = v.touch, g.tsc
		g.vcpus = append(g.vcpus, v)
	}
	if cfg.Tracked {
		g.kernel, err = ram.NewTracker(g.Blocks())
	}
	if err == nil {
		err = guest.LoadZeroed(g.mem, g.params)
	}
	if err == nil {
		err = g.first()
	}
	if err != nil {
		return nil, errors.Join(err, g.Close())
	}
	return g, nil
}

// Reset puts the guest back into its first state, that of a new guest, with an
// empty dirty log that is on. The guest must be paused.
func (g *VM) Reset() error {
	if !g.Paused() {
		return ErrRunning
	}
	if err := guest.Load(g.mem, g.params); err != nil {
		return err
	}
	clear(g.mem[g.params.MemSize():])
	return g.first()
}

// first puts all of the guest but its memory into the first state.
func (g *VM) first() error {
	clear(g.dirty)
	g.ForgetDirty(Block)
	if err := g.StartDirtyLog(); err != nil {
		return err
	}
	for i, v := range g.vcpus {
		var err error
		if v.regs, err = guest.Boot(g.mem, i); err != nil {
			return err
		}
		v.frame = 0
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.pauses, g.fresh = 0, true
	return nil
}

// Close frees the guest's memory. It must not be called while Run or Step runs,
// and nothing of the guest may be used afterwards.
func (g *VM) Close() error {
	mem := g.mem
	g.mem = nil
	var err error
	if g.kernel != nil {
		err = g.kernel.Close()
	}
	return errors.Join(err, mapping.Free(mem))
}

// Memory returns the guest's memory, from guest-physical address 0. It is not a copy, and
// changes while the guest runs.
func (g *VM) Memory() []byte { return g.mem }

// Blocks returns the guest's memory as a saver or a cache wants it.
func (g *VM) Blocks() []ram.Block { return []ram.Block{{Name: Block, Host: g.mem}} }

// EnsureMemory is for a guest that runs before its memory is there (a protect.EnsuredGuest): a
// vCPU calls ensure for all of it before it goes on after a pause, and stands still
// meanwhile. It is called while the guest is paused.
func (g *VM) EnsureMemory(ensure func(block string, offset, n uint64) error) {
	g.ensure.Store(&ensure)
}

// there calls ensure for all of the memory, and so waits until it is there. It
// is called between rounds.
func (g *VM) there() error {
	if f := g.ensure.Load(); f != nil {
		return (*f)(Block, 0, uint64(len(g.mem)))
	}
	return nil
}

// Register registers the guest's devices: one "vcpu" for each vCPU.
func (g *VM) Register(reg *vmstate.Registry) error {
	for i, v := range g.vcpus {
		if err := reg.Register(vmstate.Entry{Name: "vcpu", Instance: uint32(i), Version: vcpuVersion, MinVersion: vcpuVersion}, v); err != nil {
			return err
		}
	}
	return nil
}

// RegisterPrimary registers the guest's devices and its memory on a primary. The returned
// saver sends the memory.
func (g *VM) RegisterPrimary(reg *vmstate.Registry, cfg ram.SaverConfig) (*ram.Saver, error) {
	s := ram.NewSaver(g.Blocks(), g, cfg)
	if err := s.Register(reg); err != nil {
		return nil, err
	}
	return s, g.Register(reg)
}

// RegisterSecondary registers the guest's devices and its memory on a secondary. The
// returned cache stages the memory; the caller closes it.
func (g *VM) RegisterSecondary(reg *vmstate.Registry, cfg ram.CacheConfig) (*ram.Cache, error) {
	c, err := ram.NewCache(g.Blocks(), g, cfg)
	if err != nil {
		return nil, err
	}
	err = c.Register(reg)
	if err == nil {
		err = g.Register(reg)
	}
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// Pause counts a pause and returns when every vCPU stands still, between two
// rounds. If ctx ends first, the pause does not count and the error is the
// context's.
func (g *VM) Pause(ctx context.Context) error {
	g.mu.Lock()
	if g.pauses++; g.pauses == 1 && !g.fresh {
		g.gate = make(chan struct{})
		g.stop.Store(true)
	}
	if g.awake == 0 {
		g.mu.Unlock()
		return nil
	}
	if g.still == nil {
		g.still = make(chan struct{})
	}
	still := g.still
	g.mu.Unlock()
	select {
	case <-still:
		return nil
	case <-ctx.Done():
	}
	select {
	case <-still: // both, and the guest stands
		return nil
	default:
		g.open()
		return fmt.Errorf("colotest: pause: %w", context.Cause(ctx))
	}
}

// Resume takes a pause back; after the last the vCPUs run. Resuming a running
// guest does nothing. It fails, and takes nothing back, if ctx has ended.
func (g *VM) Resume(ctx context.Context) error {
	if ctx.Err() != nil {
		return fmt.Errorf("colotest: resume: %w", context.Cause(ctx))
	}
	g.open()
	return nil
}

func (g *VM) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.pauses == 0 && !g.fresh {
		return
	}
	if g.pauses = max(0, g.pauses-1); g.pauses == 0 {
		g.fresh, g.still = false, nil
		g.stop.Store(false)
		close(g.gate)
	}
}

// Paused reports whether the guest is paused and stands still.
func (g *VM) Paused() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return (g.pauses > 0 || g.fresh) && g.awake == 0
}

// Run runs the vCPUs until ctx ends, and returns the context's cause. They make
// no step while the guest is paused. The goroutines that it starts, one for each
// vCPU, have ended when it returns.
func (g *VM) Run(ctx context.Context) error {
	if err := g.begin(); err != nil {
		return err
	}
	defer g.finish()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	for _, v := range g.vcpus {
		wg.Go(func() {
			if err := v.loop(ctx); err != nil {
				cancel(err)
			}
		})
	}
	wg.Wait()
	return context.Cause(ctx)
}

// Step performs n rounds on each vCPU, one vCPU after the other, on the caller's
// goroutine. The guest must not be paused ([ErrPaused]) nor be in Run
// ([ErrRunning]); a Pause from another goroutine waits for the end of it. A
// frame that is refused ends it with Output's error; the next Step offers that
// frame again.
func (g *VM) Step(n int) error {
	if err := g.begin(); err != nil {
		return err
	}
	defer g.finish()
	if err := g.there(); err != nil {
		return err
	}
	if !g.wake() {
		return ErrPaused
	}
	defer g.rest()
	for _, v := range g.vcpus {
		for range n {
			if err := v.emit(); err != nil {
				return err
			}
			if err := v.round(); err != nil {
				return err
			}
			if err := v.emit(); err != nil {
				return err
			}
		}
	}
	return nil
}

// begin takes the guest for Run or Step.
func (g *VM) begin() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.running {
		return ErrRunning
	}
	g.running = true
	return nil
}

func (g *VM) finish() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.running = false
}

// wake counts a vCPU as one that may be inside a round, unless the guest is
// paused.
func (g *VM) wake() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.pauses > 0 || g.fresh {
		return false
	}
	g.awake++
	return true
}

// rest says that a vCPU stands between two rounds and stays there until wake.
func (g *VM) rest() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.awake--
	if g.awake == 0 && g.still != nil {
		close(g.still)
		g.still = nil
	}
}

// admit does what wake does, but waits for Resume.
func (g *VM) admit(ctx context.Context) error {
	for !g.wake() {
		g.mu.Lock()
		gate := g.gate
		g.mu.Unlock()
		select {
		case <-gate:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// Rounds returns how many rounds each vCPU has done. The guest must stand still.
func (g *VM) Rounds() []uint64 {
	n := make([]uint64, len(g.vcpus))
	for i, v := range g.vcpus {
		n[i] = v.regs.N
	}
	return n
}

func (g *VM) tsc() uint64 {
	if g.cfg.TSC != nil {
		return g.cfg.TSC()
	}
	return uint64(time.Since(g.origin))
}

// History returns the hashes of the rounds that the guest's memory knows of (the
// last 65536 of each vCPU, or as many as Ring says), vCPU after vCPU. The guest must stand still.
func (g *VM) History() ([]uint64, error) {
	var hashes []uint64
	for i := range g.vcpus {
		ring, err := guest.ReadRing(g.mem, i)
		if err != nil {
			return nil, err
		}
		for _, e := range ring {
			hashes = append(hashes, e.H)
		}
	}
	return hashes, nil
}
