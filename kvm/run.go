//go:build linux && amd64

package kvm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"time"
	"unsafe"

	gokvm "github.com/bobuhiro11/gokvm/kvm"
	"golang.org/x/sys/unix"
)

// Run runs the vCPU until ctx ends, handle fails, or KVM reports an error that
// ends it (an ExitError or the error of KVM_RUN), and returns which of them. It
// locks its goroutine to its thread, parks while the VM is paused, and is called
// once at a time; a vCPU whose Run has returned is stopped and may be saved, or
// run again.
//
// A host that runs vCPUs raises GOMAXPROCS by their number. A thread that comes back from
// the guest can run Go code only when one of GOMAXPROCS places is free. If other goroutines
// have them all, the guest, and a caller of Pause, wait until the scheduler takes one away:
// milliseconds instead of microseconds. In the guest a vCPU takes no place.
//
// handle is called for each exit that needs the host, with the shared struct
// kvm_run; see Dispatch for a typed view. What it changes there (a
// port that is read) reaches the guest. An exit counts as handled even if handle
// returns an error: before Run returns or parks, KVM has completed the
// instruction, and for that handle may be called again (a repeated port access, an
// access across a page).
func (v *VCPU) Run(ctx context.Context, handle func(*RunData) error) (err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := v.begin(); err != nil {
		return err
	}
	defer v.end()
	canceled := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		v.vm.mu.Lock()
		v.kick()
		v.vm.mu.Unlock()
		v.vm.parked.Raise()
		close(canceled)
	})
	defer func() {
		if !stop() {
			<-canceled
		}
	}()

	for {
		if v.kicked.Load() {
			if v.stop.entered {
				v.stop.noticed = time.Now()
			}
			if err := v.complete(handle); err != nil {
				return err
			}
			if err := v.park(ctx); err != nil {
				return err
			}
			v.tellGuest()
			v.stopEnds()
			v.stop.entered = true
		}
		switch errno := v.enterGuest(); errno {
		case 0:
			if err := v.exit(handle); err != nil {
				if cerr := v.complete(handle); cerr != nil {
					err = errors.Join(err, cerr)
				}
				return err
			}
		case unix.EINTR:
			// The reason of the last exit is still there, and has been dealt
			// with. KVM completes a pending exit before it looks for signals.
			v.pending = false
		case unix.EAGAIN: // a vCPU that was just started by another
		default:
			return v.failed(errno)
		}
	}
}

// enterGuest calls KVM_RUN. Meanwhile inKVM is set, so that kick sends a signal.
func (v *VCPU) enterGuest() unix.Errno {
	v.inKVM.Store(true)
	errno := enterGuest(v.fd)
	v.inKVM.Store(false)
	return errno
}

// exit handles one exit. An exit that wants nothing of the host is not pending
// afterwards.
func (v *VCPU) exit(handle func(*RunData) error) error {
	switch v.data.ExitReason {
	case exitIntr:
		return nil
	case exitDirtyRingFull:
		return v.vm.drainRings()
	case exitInternalError, exitFailEntry:
		return v.exitError()
	}
	v.pending = true
	return handle(v.data)
}

// complete lets KVM finish the instruction whose exit has been handled, without
// entering the guest (KVM api, "immediate_exit"). It may take more exits; their
// first error is returned when all are done.
func (v *VCPU) complete(handle func(*RunData) error) (err error) {
	if !v.pending {
		return nil
	}
	v.data.ImmediateExit = 1
	for {
		switch errno := v.enterGuest(); errno {
		case 0:
			if e := v.exit(handle); err == nil {
				err = e
			}
		case unix.EINTR, unix.EAGAIN:
			v.pending = false
			return err
		default:
			return errors.Join(err, v.failed(errno))
		}
	}
}

func (v *VCPU) failed(errno unix.Errno) error {
	where := ""
	if inSMM(v.run) { // newer kernels give up the VM there
		where = withoutMemory
	}
	return fmt.Errorf("kvm: vCPU %d%s: %w", v.index, where, &os.SyscallError{Syscall: "ioctl KVM_RUN", Err: errno})
}

func (v *VCPU) exitError() *ExitError {
	d := v.data
	e := &ExitError{VCPU: v.index, Reason: d.ExitReason}
	switch d.ExitReason {
	case exitInternalError: // suberror, ndata, data[16]
		e.Code = d.Data[0] & 0xffffffff
		n := min(d.Data[0]>>32, 16)
		e.Data = append(e.Data, d.Data[1:1+n]...)
		e.SMM = inSMM(v.run)
		v.where(e)
	case exitFailEntry:
		e.Code = d.Data[0]
	}
	return e
}

// inSMM reports whether a vCPU was in system-management mode when it left the guest, by its
// struct kvm_run (KVM_RUN_X86_SMM in asm/kvm.h).
func inSMM(run []byte) bool {
	const flags, smm = 14, 1 << 0
	return run[flags]&smm != 0
}

// where finds out where the guest was when KVM gave up, as far as KVM still answers. It
// is called on the vCPU's own goroutine, or with the vCPU stopped.
func (v *VCPU) where(e *ExitError) {
	var regs gokvm.Regs
	var sregs gokvm.Sregs
	if _, err := ioctl(v.fd, "KVM_GET_REGS", kvmGetRegs, unsafe.Pointer(&regs)); err != nil {
		return
	}
	e.RIP = regs.RIP
	// Newer kernels say what they have read of the instruction: flags, then the length
	// and the bytes (struct kvm_run, emulation_failure).
	const bytesThere, longest = 1, 15
	if e.Code == emulationFailed && len(e.Data) >= 3 && e.Data[0]&bytesThere != 0 {
		b := raw(&v.data.Data[2], 2)
		if n := int(b[0]); n > 0 && n <= longest {
			e.Instruction = bytes.Clone(b[1 : 1+n])
			return
		}
	}
	if _, err := ioctl(v.fd, "KVM_GET_SREGS", kvmGetSregs, unsafe.Pointer(&sregs)); err != nil {
		return
	}
	if e.SMM { // its memory is not that of the slots
		return
	}
	linear := regs.RIP
	if sregs.CS.L == 0 {
		linear = (regs.RIP + sregs.CS.Base) & 0xffffffff
	}
	for len(e.Instruction) < longest {
		at := linear + uint64(len(e.Instruction))
		t := translation{linear: at}
		if _, err := ioctl(v.fd, "KVM_TRANSLATE", kvmTranslate, unsafe.Pointer(&t)); err != nil || t.valid == 0 {
			return
		}
		mem := v.vm.memoryAt(t.physical)
		n := min(longest-len(e.Instruction), len(mem), PageSize-int(at%PageSize))
		if n == 0 {
			return
		}
		e.Instruction = append(e.Instruction, mem[:n]...)
	}
}

// translation is struct kvm_translation.
type translation struct {
	linear, physical           uint64
	valid, writeable, usermode uint8
	_                          [5]uint8
}

// begin notes that Run was called. The vCPU is parked then: park has to take it before it enters
// the guest.
func (v *VCPU) begin() error {
	v.vm.mu.Lock()
	defer v.vm.mu.Unlock()
	switch {
	case v.vm.closed:
		return ErrClosed
	case v.inRun:
		return fmt.Errorf("vCPU %d: %w", v.index, ErrRunning)
	}
	v.inRun, v.stop.entered = true, false
	v.kicked.Store(true) // makes park look for work first
	return nil
}

// end notes that Run returns, and lets others have the vCPU.
func (v *VCPU) end() {
	v.vm.mu.Lock()
	defer v.vm.mu.Unlock()
	v.release()
	if v.stop.inside {
		v.stop.inside = false
		v.vm.inside.Add(-1)
	}
	v.slice.stop()
	v.stopEnds()
	v.inRun = false
}

// release lets others have the vCPU, if Run has it, and wakes Pause if no other vCPU runs. vm.mu
// is held.
func (v *VCPU) release() {
	if v.active {
		v.active, v.tid = false, 0
		v.vm.active--
		v.own.Unlock()
		if v.vm.active == 0 {
			v.vm.still.Raise()
		}
	}
}

// sleep releases the vCPU and waits until there may be something to do; it watches for that long
// before it waits in the kernel. vm.mu is held.
func (v *VCPU) sleep(watching time.Duration) {
	seen := v.vm.parked.Seen()
	v.release()
	v.vm.mu.Unlock()
	v.vm.parked.watch(seen, watching)
	v.vm.mu.Lock()
}

// park releases the vCPU while the VM is paused or the vCPU rests (see Throttle). When it returns
// nil, Run has the vCPU, which may enter the guest.
func (v *VCPU) park(ctx context.Context) error {
	vm := v.vm
	if v.stop.inside {
		v.stop.inside = false
		vm.inside.Add(-1)
	}
	vm.mu.Lock()
	defer vm.mu.Unlock()
	v.slice.left()
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		switch {
		case vm.pauses > 0:
			v.stopBegins()
			if v.active && v.shot.wanted {
				resets := vm.resets
				vm.mu.Unlock()
				v.shoot(resets)
				vm.mu.Lock()
				v.release() // if it is no longer paused, it is taken again
				continue
			}
			v.sleep(vm.watching) // a checkpoint's pause is not much longer
			continue
		case v.rests():
			v.stopEnds()
			v.sleep(0)
			continue
		case v.active:
		case v.own.TryLock():
			if err := vm.forget(); err != nil {
				v.own.Unlock()
				return err
			}
			v.active, v.tid = true, unix.Gettid()
			vm.active++
		default: // somebody is inside a call that needs the vCPU stopped
			vm.mu.Unlock()
			v.awaitCalls()
			vm.mu.Lock()
			continue
		}
		v.shot.ends()
		v.begins()
		vm.inside.Add(1)
		vm.entries++
		v.stop.inside = true
		if !v.given.ran.Load() {
			v.state.fixes(v.fd)
			_ = v.state.askSynIC(v.fd) // without an answer it is not known
			v.given.ran.Store(true)
		}
		v.kicked.Store(false)
		v.data.ImmediateExit = 0
		return nil
	}
}
