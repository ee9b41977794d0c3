//go:build linux && amd64

package kvm

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gocolo/lockstep/vmstate"
)

// VM is a KVM guest: adopted by Attach, or made by Create. It satisfies colo.VM,
// ram.DirtyLog, ram.LogSwitch and ram.DirtyKeeper. Its methods may be called from any goroutine
// unless they say otherwise; slots and vCPUs are added before the first Run.
type VM struct {
	fd     int
	sys    *System
	chips  *ChipState
	clock  ClockState
	ring   int // bytes of each vCPU's dirty ring; 0: bitmaps
	closer func() error
	ours   bool   // nobody else has its descriptors
	memory []byte // of a VM that Create made
	spares *spares
	log    *slog.Logger

	catchUp  bool
	tscError atomic.Pointer[TSCError]
	tscTold  atomic.Bool
	tscMoves atomic.Bool // KVM was seen to move a TSC by itself, and the log tells

	mu       sync.Mutex
	parked   signal    // for vCPUs: pauses, a rest or a context has ended
	still    signal    // for Pause: active has become 0, or pauses or a context ended
	pausing  lookout   // whether Pause watches still before it waits
	pauses   int       // Pause calls that no Resume has undone; the VM is paused while there are any
	since    time.Time // when pauses became 1
	resets   uint64    // how often pauses has become 0
	closed   bool
	watching time.Duration // how long to watch, 0 if there are too few CPUs; vCPUs are added before it is read
	gathers  time.Duration // how long a vCPU that leaves the guest watches for the others; the same
	active   int           // vCPUs in Run and not parked
	inside   atomic.Int32  // those of the active that are not about to park
	entries  uint64        // how often a vCPU went into the guest, after a pause or at the beginning of Run
	vcpus    []*VCPU

	shadows  shadows
	throttle atomic.Int32 // per cent of each slice that a vCPU stays out of the guest
	stops    stops

	slots atomic.Pointer[[]*slot]
	logMu sync.Mutex // dirty logs and rings; never held while waiting
	logOn bool

	manual  manual // the value with which the log of a slot begins
	unreset int    // entries taken from the rings and not yet reset; under logMu
}

// Attach adopts a VM by its descriptor, which stays the caller's. The interrupt
// controllers and the PIT, if the VM is to have them in the kernel, must have
// been created; vCPUs must not, if a dirty ring is asked for. With an error the VM is nil and
// nothing is to be closed.
func Attach(vmfd uintptr, cfg AttachConfig) (*VM, error) {
	kvm := cfg.KVM
	if kvm == 0 {
		fd, err := openKVM()
		if err != nil {
			return nil, err
		}
		defer unix.Close(fd)
		kvm = fd
	}
	vm := &VM{fd: int(vmfd), log: cfg.Log, catchUp: cfg.CatchUp}
	vm.slots.Store(new([]*slot))
	var err error
	if vm.sys, err = ReadSystem(kvm, vm.fd); err != nil {
		return nil, err
	}
	if vm.chips, err = NewChipState(vm.fd); err != nil {
		return nil, err
	}
	if cfg.DirtyRing != 0 {
		if err := vm.enableRing(cfg.DirtyRing); err != nil {
			return nil, err
		}
	}
	if cfg.OwnLog {
		if err := vm.enableManual(); err != nil {
			return nil, err
		}
	}
	if vm.spares, err = newSpares(kvm, vm.chips.hasChips); err != nil {
		return nil, err
	}
	return vm, nil
}

// System returns what this host's KVM can do for the VM.
func (vm *VM) System() *System { return vm.sys }

// VCPUs returns the vCPUs in the order in which they were added.
func (vm *VM) VCPUs() []*VCPU {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	return append([]*VCPU(nil), vm.vcpus...)
}

// IdleCPUs returns how many CPUs of the host the VM leaves idle while it is paused: one for each
// vCPU. It makes a VM a ram.Idler, whose dirty pages are copied by as many CPUs.
func (vm *VM) IdleCPUs() int {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	return len(vm.vcpus)
}

// Pause stops all vCPUs and returns when none of them runs and none has an exit pending.
// A vCPU whose Run is called later waits there. Pauses nest: the vCPUs go on when each
// Pause that returned nil has been undone by a Resume. The host stops its own devices
// itself.
//
// It waits for handlers that are being called, so they must not call it. If ctx
// ends first, this Pause is void and the context's error is returned; ErrResumed
// if as many Resumes as Pauses were called meanwhile.
func (vm *VM) Pause(ctx context.Context) error {
	stop := context.AfterFunc(ctx, vm.still.Raise)
	defer stop()
	vm.mu.Lock()
	defer vm.mu.Unlock()
	if vm.closed {
		return ErrClosed
	}
	resets := vm.resets
	if vm.pauses++; vm.pauses == 1 {
		vm.since = time.Now()
		for _, v := range vm.vcpus {
			v.kick()
		}
	}
	for vm.active > 0 && vm.resets == resets {
		if err := ctx.Err(); err != nil {
			if vm.resume() {
				vm.parked.Raise()
				vm.still.Raise() // for other Pauses, which Resumes have undone
			}
			return fmt.Errorf("kvm: pause: %w", err)
		}
		seen := vm.still.Seen()
		while := vm.pausing.length(vm.watching)
		vm.mu.Unlock()
		raised := vm.still.watch(seen, while)
		vm.mu.Lock()
		vm.pausing.learn(while, raised)
	}
	if vm.resets != resets {
		return ErrResumed
	}
	return nil
}

// watching is how long one thread spins for another that is about to stop before it waits in the
// kernel: vCPUs take about as long to leave the guest. There must be a CPU for each.
const watching = 50 * time.Microsecond

// watchOn sets how long threads spin for each other on a host of so many CPUs. If there are as many
// vCPUs as CPUs, whoever pauses them waits in the kernel, and so there is a CPU for each vCPU until
// the last has left the guest.
func (vm *VM) watchOn(cpus int) {
	vm.watching, vm.gathers = 0, 0
	if len(vm.vcpus) < cpus {
		vm.watching = watching
	}
	if len(vm.vcpus) <= cpus {
		vm.gathers = watching
	}
}

// Resume undoes one Pause; the vCPUs run on if it was the last. Resuming a running VM
// is no error.
func (vm *VM) Resume(context.Context) error {
	vm.mu.Lock()
	closed, last := vm.closed, vm.resume()
	vm.mu.Unlock()
	if last { // whoever wakes finds the lock free
		vm.parked.Raise()
		vm.still.Raise()
	}
	if closed {
		return ErrClosed
	}
	return nil
}

// resume takes a pause back, and reports whether it was the last: parked is to be
// raised. mu is held.
func (vm *VM) resume() (last bool) {
	if vm.closed || vm.pauses == 0 {
		return false
	}
	if vm.pauses > 1 {
		vm.pauses--
		return false
	}
	if vm.active == 0 {
		vm.dropTicks()
	}
	vm.pauses = 0
	vm.resets++
	return true
}

// whileStopped calls fn with the VM's descriptor if no vCPU runs or is about to. Until fn returns
// none can begin to, and the descriptor is not closed. Otherwise it fails with ErrRunning, or
// ErrClosed. fn must not take vm.mu.
func (vm *VM) whileStopped(fn func(fd int) error) error {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	for _, v := range vm.vcpus {
		if err := v.stopped(); err != nil {
			return err
		}
	}
	if vm.closed {
		return ErrClosed
	}
	return fn(vm.fd)
}

// stopped fails with ErrRunning if a vCPU runs, or is about to.
func (vm *VM) stopped() error { return vm.whileStopped(func(int) error { return nil }) }

// resetsNow returns how often the VM was resumed.
func (vm *VM) resetsNow() uint64 {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	return vm.resets
}

func (vm *VM) isClosed() bool {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	return vm.closed
}

// Close lets go of everything that was made here: an adopted VM's dirty rings and the spare VM
// on which its states were tried, or all of a VM that Create made, including its memory. The dirty
// log of an adopted VM is turned off, so that its host does not pay for it; the host closes its
// descriptors after that. Run must have returned for every vCPU, or it fails with ErrRunning.
// Closing twice is no error.
func (vm *VM) Close() error {
	vm.mu.Lock()
	if vm.closed {
		vm.mu.Unlock()
		return nil
	}
	for _, v := range vm.vcpus {
		if v.inRun {
			vm.mu.Unlock()
			return ErrRunning
		}
	}
	vm.closed = true
	vcpus := vm.vcpus
	vm.mu.Unlock()

	vm.logMu.Lock()
	defer vm.logMu.Unlock()
	var errs []error
	if vm.ours { // its log goes with it
		vm.logOn = false
	}
	errs = append(errs, vm.stopLog())
	for _, v := range vcpus {
		v.own.Lock() // no call is inside any more, and none will get in
		defer v.own.Unlock()
		errs = append(errs, v.ring.unmap())
	}
	errs = append(errs, vm.spares.close())
	if vm.closer != nil {
		errs = append(errs, vm.closer())
	}
	return errors.Join(errs...)
}

// Register adds the VM's devices to a registry, in the order in which they must
// be restored: interrupt controllers, timer, vCPUs, clock. All vCPUs must have
// been added. The devices save and restore only while the vCPUs are stopped, and
// otherwise fail with ErrRunning.
func (vm *VM) Register(reg *vmstate.Registry) error {
	entry := vmstate.Entry{Version: 1, MinVersion: 1}
	entry.Name = "kvm/irqchip"
	if err := reg.Register(entry, chipDevice{vm}); err != nil {
		return err
	}
	entry.Name = "kvm/pit"
	if err := reg.Register(entry, pitDevice{vm}); err != nil {
		return err
	}
	entry.Name = "kvm/vcpu"
	for i, v := range vm.VCPUs() {
		entry.Instance = uint32(i)
		if err := reg.Register(entry, vcpuDevice{v}); err != nil {
			return err
		}
	}
	entry.Name, entry.Instance = "kvm/clock", 0
	return reg.Register(entry, clockDevice{vm})
}

// The devices of a VM, for a registry.
type (
	chipDevice  struct{ vm *VM }
	pitDevice   struct{ vm *VM }
	clockDevice struct{ vm *VM }
	vcpuDevice  struct{ v *VCPU }
)

func (d chipDevice) VMState(f *vmstate.Fields) { d.vm.chips.chipFields(f) }

func (chipDevice) Snapshots() bool { return true }

func (d chipDevice) PreSave() error {
	return d.vm.whileStopped(func(fd int) error {
		if err := d.vm.noXen(); err != nil || !d.vm.chips.hasChips {
			return err
		}
		return d.vm.chips.saveChips(fd)
	})
}

func (d chipDevice) PostLoad(uint32) error {
	return d.vm.whileStopped(func(fd int) error {
		if !d.vm.chips.hasChips {
			return nil
		}
		return d.vm.chips.restoreChips(fd)
	})
}

func (d pitDevice) VMState(f *vmstate.Fields) { d.vm.chips.pitFields(f) }

func (pitDevice) Snapshots() bool { return true }

func (d pitDevice) PreSave() error {
	return d.vm.whileStopped(func(fd int) error {
		if !d.vm.chips.hasPIT {
			return nil
		}
		return d.vm.chips.savePIT(fd)
	})
}

func (d pitDevice) PostLoad(uint32) error {
	return d.vm.whileStopped(func(fd int) error {
		if !d.vm.chips.hasPIT {
			return nil
		}
		return d.vm.chips.restorePIT(fd)
	})
}

func (d clockDevice) VMState(f *vmstate.Fields) { d.vm.clock.VMState(f) }

func (clockDevice) Snapshots() bool { return true }

func (d clockDevice) PreSave() error {
	return d.vm.whileStopped(func(fd int) error {
		if !d.vm.sys.clock {
			return nil
		}
		return d.vm.clock.Save(fd)
	})
}

func (d clockDevice) PostLoad(uint32) error {
	return d.vm.whileStopped(func(fd int) error {
		switch {
		case !d.vm.sys.clock:
			return nil
		case d.vm.catchUp:
			return d.vm.clock.restore(fd, d.vm.sys.clockReal)
		}
		return d.vm.clock.Restore(fd)
	})
}

// VMState implements vmstate.Device. What is loaded goes to staged, which the vCPU's thread
// leaves alone when it saves on its way into a pause.
func (d vcpuDevice) VMState(f *vmstate.Fields) {
	if f.Loading() {
		d.v.staged.VMState(f)
		if f.Err() == nil {
			f.Fail(d.v.trySynIC())
		}
		return
	}
	d.v.state.VMState(f)
}

// Snapshots says that a save may be encoded when the vCPU runs again. If its thread saves the
// next one meanwhile, that goes elsewhere (see shot).
func (vcpuDevice) Snapshots() bool { return true }

func (d vcpuDevice) PreSave() error { return d.v.save() }

func (d vcpuDevice) PostLoad(uint32) error {
	s, vm := d.v.staged, d.v.vm
	s.Advance(0)
	if vm.catchUp {
		s.Advance(vm.clock.Behind())
	}
	if err := d.v.restore(); err != nil {
		return err
	}
	vm.noteTSC(d.v)
	return nil
}
