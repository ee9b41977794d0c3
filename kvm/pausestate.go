//go:build linux && amd64

package kvm

import (
	"fmt"
	"slices"
	"time"
	"unsafe"

	gokvm "github.com/bobuhiro11/gokvm/kvm"
)

// shot is a state of a vCPU that its own thread saves on its way into a pause. Saving is cheap
// there: KVM has the vCPU loaded, and the threads of several vCPUs save at the same time. What
// may still change while the vCPU stands still (its local APIC takes interrupts, of devices that
// are stopped after it) is read when its state is asked for.
type shot struct {
	// wanted says that the state of the last pause was asked for, so that the state of this
	// pause probably will be. It belongs to the goroutine of Run while the vCPU is active,
	// and otherwise to the holder of own; so do the fields below.
	wanted bool
	state  *VCPUState // not the vCPU's own, which may still be being encoded
	fresh  bool       // state is the present one of the vCPU, but for what saveRest reads
	resets uint64     // VM.resets when it was made: in a later pause the other vCPUs have run
	used   bool       // since the vCPU stopped, its state was asked for
	at     time.Time

	gathering lookout // whether to watch for vCPUs that are still in the guest
}

// stale is how old a shot may be. In an older one the guest's TSC would be behind its other
// clock, which is read when the VM is saved.
const stale = 10 * time.Millisecond

// another returns a state for the same vCPU.
func (s *VCPUState) another() *VCPUState {
	return &VCPUState{
		sys: s.sys, msrs: append([]uint32(nil), s.msrs...), apic: s.apic, xsave: make([]byte, len(s.xsave)),
		flags: s.flags, kept: s.kept, given: s.given, tsc: tsc{attr: s.tsc.attr}, mcg: s.mcg,
	}
}

// knows copies to s what does not change while the guest runs.
func (s *VCPUState) knows(from *VCPUState) {
	s.hasTSCKHz = from.hasTSCKHz
	if !slices.Equal(s.hasCPUID, from.hasCPUID) {
		s.hasCPUID = append(s.hasCPUID[:0], from.hasCPUID...)
		s.regain()
	}
}

// shoot saves the vCPU, unless others may still act on it: a vCPU that is in the guest can start
// another one over (INIT, SIPI). It is called by Run's goroutine, which has the vCPU.
func (v *VCPU) shoot(resets uint64) {
	v.shot.wanted, v.shot.fresh, v.shot.resets = false, false, resets
	if !v.gather() {
		v.shot.wanted = true // for the next pause
		v.shot.used = true
		return
	}
	v.shot.at = time.Now()
	_ = v.state.readCPUID(v.fd) // save meets the same error and returns it
	v.shot.state.knows(v.state)
	v.shot.state.tsc.shared = v.staged.tsc.shared
	v.shot.fresh = v.saveMost() == nil // save then reads the state itself, and returns the error
}

// gather waits for a while until no vCPU is in the guest, and reports whether none is.
func (v *VCPU) gather() bool {
	inside := &v.vm.inside
	if inside.Load() == 0 {
		return true
	}
	while := v.shot.gathering.length(v.vm.gathers)
	if while == 0 {
		return false
	}
	for begun := time.Now(); inside.Load() > 0; {
		if time.Since(begun) > while {
			v.shot.gathering.learn(while, false)
			return false
		}
	}
	v.shot.gathering.learn(while, true)
	return true
}

// ends forgets the shot: the vCPU enters the guest.
func (s *shot) ends() {
	s.wanted = s.used
	s.fresh, s.used = false, false
}

// save makes v.state the present state of the stopped vCPU: it completes the shot if that is
// still good, and otherwise reads all.
func (v *VCPU) save() error {
	err := v.hold()
	if err != nil {
		return err
	}
	defer v.own.Unlock()
	v.held.ok = false // reading the events may change CR2 or DR6
	if v.shot.fresh && v.shot.resets == v.vm.resetsNow() && time.Since(v.shot.at) < stale {
		var same bool
		if same, err = v.shot.state.update(v.fd); err == nil && same {
			v.state, v.shot.state = v.shot.state, v.state
			v.shot.fresh, v.shot.used = false, true
			return nil
		}
	}
	v.shot.fresh, v.shot.used = false, true
	v.state.tsc.shared = v.staged.tsc.shared
	if err = v.state.Save(v.fd); err != nil {
		return fmt.Errorf("kvm: vCPU %d: %w", v.index, err)
	}
	return nil
}

// restore writes the staged state to the stopped vCPU.
func (v *VCPU) restore() error {
	if err := v.hold(); err != nil {
		return err
	}
	defer v.own.Unlock()
	v.shot.fresh = false
	v.vm.loaded()
	v.staged.knows(v.state)
	entries, known := v.vm.stands()
	v.held.ok = v.held.ok && v.held.entries == entries && known
	v.staged.held = &v.held
	err := v.staged.Restore(v.fd)
	v.state.knows(v.staged)
	v.held.ok = false
	if err != nil {
		return fmt.Errorf("kvm: vCPU %d: %w", v.index, err)
	}
	if known {
		v.held.take(v.staged, entries)
	}
	v.setPriority(v.staged.sregs.CR8)
	return nil
}

// update completes what saveMost has saved. same is false if the registers have changed
// since.
func (s *VCPUState) update(vcpu int) (same bool, err error) {
	was := s.mp
	if _, err := ioctl(vcpu, "KVM_GET_MP_STATE", kvmGetMPState, unsafe.Pointer(&s.mp)); err != nil || s.mp != was {
		return false, err
	}
	if err := s.saveRest(vcpu); err != nil || !s.mayHaveBegunAnew() {
		return true, err
	}
	var regs gokvm.Regs
	_, err = ioctl(vcpu, "KVM_GET_REGS", kvmGetRegs, unsafe.Pointer(&regs))
	return regs == s.regs, err
}

// mayHaveBegunAnew reports whether a device may have sent the vCPU an INIT. The MP state need not
// tell: that of the first vCPU is the same after an INIT. But an INIT also resets the local APIC,
// which is switched off then. Whoever finds it so compares the general registers. (Intel SDM
// volume 3, 11.4.7.)
func (s *VCPUState) mayHaveBegunAnew() bool {
	const spurious, enabled = 0xf0, 1 << 0 // bit 8 of the spurious-interrupt vector register
	return s.apic && s.lapic.Regs[spurious+1]&enabled == 0
}
