//go:build linux && amd64

package gokvmhost

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"sync"
	"syscall"
	"unsafe"

	"github.com/bobuhiro11/gokvm/machine"
	"golang.org/x/sys/unix"

	"github.com/gocolo/lockstep/kvm"
)

// Machine is gokvm's machine.
type Machine = machine.Machine

// Limits of a machine: gokvm maps memory from address 0 on in one piece, and the
// interrupt controllers are below 4 GiB.
const (
	maxMemory = 3 << 30
	maxVCPUs  = 64 // gokvm's MP table
)

// New makes a machine with machine.New, for a host that needs a machine of gokvm (pc.Create
// makes one without it). It works around three faults of machine.New: that passes addresses
// of its stack to the kernel as numbers, so the stack must not move meanwhile; it uses the
// descriptor of a file that the garbage collector may already have closed; and it gives up
// when a signal interrupts it. During the call the garbage collector is switched off. All
// memory is zero afterwards, where gokvm alone would leave a pattern.
//
// The machine's descriptors and memory last until CloseMachine. If machine.New fails, what it had
// taken by then stays taken until the process ends, since it does not say what that was.
func New(cfg MachineConfig) (*Machine, error) {
	n, err := cfg.check()
	if err != nil {
		return nil, err
	}
	var m *Machine
	err = undisturbed(func() (err error) {
		m, err = machine.New("/dev/kvm", n, int(cfg.Memory))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("gokvmhost: %w", err)
	}
	if err := verify(m, n, cfg.Memory); err != nil {
		return nil, errors.Join(err, CloseMachine(m))
	}
	return m, nil
}

// alone is held while the garbage collector is switched off. The setting is one for the
// whole process: of two callers at the same time, the second would find it switched off,
// and leave it so.
var alone sync.Mutex

// undisturbed calls fn on a stack that neither grows nor shrinks meanwhile, on a
// thread that takes no signals, with the garbage collector switched off. It does so
// for one caller at a time.
func undisturbed(fn func() error) error {
	alone.Lock()
	defer alone.Unlock()
	done := make(chan error)
	go func() { done <- quietly(fn) }()
	return <-done
}

// quietly does what undisturbed does, on a goroutine of its own. When it returns, all is as
// it was.
func quietly(fn func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var all, old unix.Sigset_t
	for i := range all.Val {
		all.Val[i] = ^uint64(0)
	}
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &all, &old); err != nil {
		return fmt.Errorf("gokvmhost: %w", err)
	}
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	err := onTallStack(fn)
	if e := unix.PthreadSigmask(unix.SIG_SETMASK, &old, nil); err == nil && e != nil {
		err = fmt.Errorf("gokvmhost: %w", e)
	}
	return err
}

// onTallStack calls fn with two tall frames below it, after the stack has been as
// tall as four: so it need not grow, and the runtime, which shrinks a stack of which
// less than a quarter is in use, keeps it. (Larger variables than these would not
// be on the stack.)
func onTallStack(fn func() error) error {
	return tall(1, func() error {
		tall(1, func() error { return nil })
		return fn()
	})
}

//go:noinline
func tall(more int, fn func() error) (err error) {
	var frame [100 << 10]byte
	frame[len(frame)-1-more] = 1
	if more > 0 {
		err = tall(more-1, fn)
	} else {
		err = fn()
	}
	runtime.KeepAlive(&frame)
	return err
}

// verify looks at what machine.New has made and clears its memory.
func verify(m *Machine, n int, memory uint64) error {
	p, err := partsOf(m)
	if err != nil {
		return err
	}
	if uint64(len(p.memory)) != memory || len(m.RunData()) != n {
		return fmt.Errorf("gokvmhost: gokvm made %d vCPUs and %d bytes of memory", len(m.RunData()), len(p.memory))
	}
	if err := isKVM(p.vm, "anon_inode:kvm-vm"); err != nil {
		return err
	}
	fds, err := vcpus(m)
	if err != nil {
		return err
	}
	for i, fd := range fds {
		if err := isKVM(fd, fmt.Sprintf("anon_inode:kvm-vcpu:%d", i)); err != nil {
			return err
		}
	}
	// The memory is shared with nobody but looks so to the kernel: its pages are
	// given back, and read as zeroes.
	if err := unix.Madvise(p.memory, unix.MADV_REMOVE); err != nil {
		clear(p.memory)
	}
	return nil
}

func isKVM(fd uintptr, want string) error {
	name, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return fmt.Errorf("gokvmhost: gokvm's descriptor: %w", err)
	}
	if name != want {
		return fmt.Errorf("gokvmhost: gokvm's descriptor is %s, not %s", name, want)
	}
	return nil
}

// CloseMachine gives back what a machine has: gokvm has nothing for it. The machine
// must not run, its Host, if any, must be closed, and neither is used any more.
func CloseMachine(m *Machine) error {
	p, err := partsOf(m)
	if err != nil {
		return err
	}
	own, err := adopt(p.pci)
	if err != nil {
		return err
	}
	own.quiet()
	fds, err := vcpus(m)
	if err != nil {
		return err
	}
	var errs []error
	if size, err := kvm.RunSize(); err != nil {
		errs = append(errs, err)
	} else {
		for _, r := range m.RunData() {
			errs = append(errs, syscall.Munmap(unsafe.Slice((*byte)(unsafe.Pointer(r)), size)))
		}
	}
	for _, fd := range append(fds, p.vm) {
		errs = append(errs, unix.Close(int(fd)))
	}
	return errors.Join(append(errs, syscall.Munmap(p.memory))...)
}
