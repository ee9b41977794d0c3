//go:build linux && amd64

package kvm

import (
	"unsafe"

	gokvm "github.com/bobuhiro11/gokvm/kvm"
	"golang.org/x/sys/unix"
)

// The place of the registers in struct kvm_run, and the bits for what is there
// (KVM_SYNC_X86_REGS, _SREGS and _EVENTS).
const (
	syncAt  = 288
	syncAll = 1 | 2 | 4
)

// syncArea is the end of struct kvm_run, from its kvm_sync_regs on: which registers KVM is to
// leave here whenever KVM_RUN returns (valid), which it is to take from here when KVM_RUN begins
// (dirty), and the registers.
type syncArea struct {
	valid, dirty uint64
	regs         gokvm.Regs
	sregs        gokvm.Sregs
	events       gokvm.VCPUEvents
}

// synced reads the registers and the events with one call instead of three: a KVM_RUN that
// does not enter the guest and leaves them in struct kvm_run. (KVM api, "KVM_CAP_SYNC_REGS"
// and "immediate_exit".) The first time the result is compared with that of the three calls,
// and if they differ too often synced is not used any more.
type synced struct {
	area   *syncArea // nil: KVM does not do it
	proved bool      // it has been seen to give the right values
	wrong  int       // how often it has been seen to give others
}

// mostWrong is how often the values may differ before synced is not used any more. It is
// more than once because a device may have raised an NMI between the calls.
const mostWrong = 3

func newSynced(sys *System, run []byte) synced {
	if !sys.syncRegs || len(run) < syncAt+int(unsafe.Sizeof(syncArea{})) {
		return synced{}
	}
	return synced{area: (*syncArea)(unsafe.Pointer(&run[syncAt]))}
}

// saveMost saves into the shot what nothing changes while the vCPU stands still; see
// VCPUState.saveMost. It is called on the vCPU's own thread, on its way into a pause, with
// no exit pending.
func (v *VCPU) saveMost() error {
	s := v.shot.state
	if v.sync.area == nil {
		return s.saveMost(v.fd)
	}
	if err := s.readOnce(v.fd); err != nil {
		return err
	}
	// Before the registers, because it settles an INIT or a SIPI, which change them.
	if _, err := ioctl(v.fd, "KVM_GET_MP_STATE", kvmGetMPState, unsafe.Pointer(&s.mp)); err != nil {
		return err
	}
	v.data.ImmediateExit = 1
	ok := v.sync.area.with(func() bool { return v.sync.area.take(s, enterGuest(v.fd)) })
	// The PDPTRs are not among them.
	if ok && s.sys.sregs2 && s.paePaging() {
		if err := s.getSregs(v.fd); err != nil {
			return err
		}
	}
	if ok && v.sync.proved {
		return s.saveLarge(v.fd)
	}
	regs, sregs, events := s.regs, s.sregs, s.events
	err := s.saveMost(v.fd)
	if err == nil && ok {
		v.sync.compared(regs == s.regs && sregs == s.sregs && events == s.events)
	}
	return err
}

// compared records the result of a comparison with the three calls.
func (y *synced) compared(same bool) {
	if y.proved = same; same {
		return
	}
	if y.wrong++; y.wrong == mostWrong {
		y.area = nil
	}
}

// with makes the next KVM_RUN, which get calls, leave the registers and the events. A host
// may use the area itself: KVM goes on leaving there, at each exit, what the host has
// asked for; and while KVM is to take something from there for the host, this package
// does not touch the area.
func (a *syncArea) with(get func() bool) bool {
	if a.dirty != 0 {
		return false
	}
	was := a.valid
	a.ask()
	ok := get()
	a.valid = was
	return ok
}

// ask makes the next KVM_RUN leave the registers and the events. It fills their place with
// values that no KVM writes, to see whether this one has written: bit 1 of RFLAGS is always
// set, the base of the local APIC is 36 to 52 bits wide, and KVM always marks three kinds of
// events as valid.
func (a *syncArea) ask() {
	a.regs.RFLAGS, a.sregs.ApicBase, a.events.Flags = 0, ^uint64(0), 0
	a.valid = syncAll
}

// take takes what KVM_RUN has left when it returned errno. In three cases it reports false, and
// the caller has to read with a call for each: KVM_RUN ended for another reason than that it was
// not to enter the guest; it has left nothing; or there is an exception. The address of an
// exception is put where it belongs, in CR2 or DR6, when the events are read, and KVM reads those
// last, after the registers.
func (a *syncArea) take(s *VCPUState, errno unix.Errno) bool {
	const always = 1 << 1 // of RFLAGS
	e := &a.events
	if errno != unix.EINTR || a.regs.RFLAGS&always == 0 || a.sregs.ApicBase == ^uint64(0) || e.Flags == 0 ||
		e.E.Inject != 0 || e.E.Pending != 0 {
		return false
	}
	s.regs, s.events = a.regs, a.events
	s.takeSregs(&a.sregs)
	return true
}

// paePaging reports whether the vCPU walks its page tables by PDPTRs.
func (s *VCPUState) paePaging() bool {
	r := &s.sregs
	return r.CR0&cr0PG != 0 && r.CR4&cr4PAE != 0 && r.EFER&eferLMA == 0
}
