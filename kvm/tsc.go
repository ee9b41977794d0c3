//go:build linux && amd64

package kvm

import (
	"fmt"
	"log/slog"
	"runtime"
	"time"
	"unsafe"

	gokvm "github.com/bobuhiro11/gokvm/kvm"

	"github.com/gocolo/lockstep/vmstate"
)

// TSCError says that KVM took a value for the TSC of a vCPU without an error and did not
// set it: the guest's TSC goes on from another count than the saved one.
type TSCError struct {
	VCPU      int
	Want, Got uint64 // counts of the TSC, in cycles
	KHz       uint32 // 0: not known
}

// Error implements error.
func (e *TSCError) Error() string {
	s := fmt.Sprintf("kvm: vCPU %d: KVM took %d as the TSC, which is %d", e.VCPU, e.Want, e.Got)
	if e.KHz != 0 {
		s += fmt.Sprintf(", %+d ms from it", int64(e.Got-e.Want)/int64(e.KHz))
	}
	return s
}

// deviceAttr is struct kvm_device_attr. The vCPU's TSC offset is attribute 0 of group
// 0. (KVM documentation, devices/vcpu, KVM_VCPU_TSC_CTRL.)
type deviceAttr struct {
	flags, group uint32
	attr, addr   uint64
}

// tsc has what is needed to restore the TSC of a vCPU. Its leader is the one that Follow names.
type tsc struct {
	attr   bool       // KVM has KVM_VCPU_TSC_OFFSET
	deaf   bool       // KVM does not listen: it was seen to take a TSC without setting it; no offset is written any more
	moves  bool       // KVM was seen to move the offset by itself: the host's TSC is not stable
	shared bool       // the VM has more vCPUs
	leader *VCPUState // the state of the vCPU to whose TSC this one keeps its distance; nil: none

	// Part of the state: how far the guest's TSC is ahead of the TSC of the host that saved it.
	// On another host only its difference from the offsets of the VM's other vCPUs means
	// something.
	offset uint64
	saved  bool // offset is there

	applied uint64 // the offset that Restore has set
	known   bool   // applied is there
	advance time.Duration
	err     *TSCError // of the last Restore
	first   *TSCError // of the first Restore that failed
	word    uint64    // what the kernel reads and writes
}

// Follow makes Restore keep the distance of the TSC of s from that of first, so that vCPUs of one
// VM whose TSCs agreed agree again. first is the state of another vCPU of the VM, and is restored
// before s. A VM of this package calls Follow by itself.
func (s *VCPUState) Follow(first *VCPUState) {
	s.tsc.leader, s.tsc.shared, first.tsc.shared = first, true, true
}

// Advance makes Restore set the TSC to a count that is later than the saved one by this
// time, for a guest that is to notice that time has passed.
func (s *VCPUState) Advance(by time.Duration) { s.tsc.advance = max(by, 0) }

// TSCError returns how the last Restore failed to set the TSC, nil if the TSC goes on from where
// it was saved.
func (s *VCPUState) TSCError() *TSCError { return s.tsc.err }

// TSCError returns a TSCError for the first vCPU whose TSC KVM did not set as it was
// told when the VM's state was last restored, nil if there is none. Nothing can be
// done about it; a guest that reads the TSC sees time step. It may be called from any
// goroutine.
func (vm *VM) TSCError() error {
	if e := vm.tscError.Load(); e != nil {
		return e
	}
	return nil
}

// noteTSC records whether KVM has set the TSC of a vCPU, and logs the first failure.
func (vm *VM) noteTSC(v *VCPU) {
	if v.staged.tsc.moves && !vm.tscMoves.Swap(true) && vm.log != nil {
		vm.log.Warn("the host's TSC is not stable: KVM lets the guest's stand still while a vCPU does not run, and then catch up")
	}
	e := v.staged.tsc.err
	switch old := vm.tscError.Load(); {
	case e != nil:
		if e.VCPU != v.index { // it is not written once others may have it
			e.VCPU = v.index
		}
		if old == nil || old.VCPU >= v.index {
			vm.tscError.Store(e)
		}
		if !vm.tscTold.Swap(true) && vm.log != nil {
			vm.log.Warn("the guest's TSC is not where it was saved", slog.Any("err", e))
		}
	case old != nil && old.VCPU == v.index:
		vm.tscError.Store(nil)
	}
}

func (s *VCPUState) tscFields(f *vmstate.Fields) {
	vmstate.Set(f, &s.tsc.saved, false)
	vmstate.Set(f, &s.tsc.offset, 0)
	f.Subsection("kvm/vcpu/tsc", 1, s.tsc.saved, func(f *vmstate.Fields) {
		vmstate.Set(f, &s.tsc.saved, true)
		f.Uint64("offset", &s.tsc.offset)
	})
}

// hasTSCOffset asks whether KVM has the attribute.
func hasTSCOffset(vcpu int) bool {
	var attr deviceAttr
	_, err := ioctl(vcpu, "KVM_HAS_DEVICE_ATTR", kvmHasDeviceAttr, unsafe.Pointer(&attr))
	return err == nil
}

// tscOffset gets or sets the offset: tsc.word, which is on the heap and stays there
// while the kernel has its address.
func (s *VCPUState) tscOffset(vcpu int, name string, req uintptr) error {
	attr := deviceAttr{addr: uint64(uintptr(unsafe.Pointer(&s.tsc.word)))}
	_, err := ioctl(vcpu, name, req, unsafe.Pointer(&attr))
	runtime.KeepAlive(s)
	return err
}

// saveTSC reads the offset if the VM has other vCPUs, to whose TSCs a distance is to be kept.
func (s *VCPUState) saveTSC(vcpu int) error {
	s.tsc.saved = s.tsc.attr && s.tsc.shared
	if !s.tsc.saved {
		return nil
	}
	err := s.tscOffset(vcpu, "KVM_GET_DEVICE_ATTR", kvmGetDeviceAttr)
	s.tsc.offset = s.tsc.word
	return err
}

// farTSC is a distance, in cycles, at which KVM no longer takes two TSCs for an attempt to
// set the same one.
const farTSC = 1 << 44

// restoreTSC sets the TSC to what it was when it was saved, and reads it back to see whether KVM
// has set it. It sets the offset, because KVM may take a plain write for an attempt to
// synchronise vCPUs: it does if the value is within a second of what the last write has become by
// now, and the guest's TSC is then not rolled back. On kernels before 5.16, which have no offset
// to set, the first vCPU's TSC is moved far away before it is written; the others', written right
// after, are indeed to be synchronised. (Linux, kvm_synchronize_tsc.)
//
// Where the host's TSC is not stable, KVM moves the offset whenever it loads the vCPU onto a CPU, so that
// the guest's TSC goes on from where the vCPU left the guest, or from what was written since; when
// the vCPU enters the guest, the time since that is added. The offset then is not what was set, which tells
// of such a host. (Linux, kvm_arch_vcpu_load, kvm_guest_time_update.)
func (s *VCPUState) restoreTSC(vcpu int) error {
	t := &s.tsc
	t.known, t.err = false, nil
	want, ok := s.savedMSR(msrTSC)
	if !ok {
		return nil
	}
	want += uint64(t.advance.Milliseconds()) * uint64(s.tscKHz)
	begun := time.Now()
	switch {
	case t.attr && !t.deaf:
		now, _, err := s.readMSR(vcpu, msrTSC)
		if err != nil {
			return err
		}
		if err := s.tscOffset(vcpu, "KVM_GET_DEVICE_ATTR", kvmGetDeviceAttr); err != nil {
			return err
		}
		next := t.word + want - now
		if l := t.leader; l != nil && l.tsc.known && l.tsc.saved && t.saved {
			next = l.tsc.applied + t.offset - l.tsc.offset
			want = now + next - t.word
		}
		t.word, t.applied, t.known = next, next, true
		if err := s.tscOffset(vcpu, "KVM_SET_DEVICE_ATTR", kvmSetDeviceAttr); err != nil {
			return err
		}
	case t.leader == nil:
		if err := s.writeMSR(vcpu, msrTSC, want+farTSC); err != nil {
			return err
		}
		fallthrough
	default:
		if err := s.writeMSR(vcpu, msrTSC, want); err != nil {
			return err
		}
	}
	got, _, err := s.readMSR(vcpu, msrTSC)
	if err != nil {
		return err
	}
	// The TSC has gone on since begun, at a frequency that may be known.
	khz := uint64(s.tscKHz)
	if khz == 0 {
		khz = 10_000_000
	}
	slack := (2*uint64(time.Since(begun).Microseconds())/1000 + 2) * khz
	if off := int64(got - want); off > int64(slack) || off < -int64(slack) {
		if t.first == nil { // the first of them tells as much as the last
			t.first = &TSCError{Want: want, Got: got, KHz: s.tscKHz}
		}
		t.err, t.deaf = t.first, true
	}
	if t.known && t.leader == nil { // one vCPU tells
		err = s.tscOffset(vcpu, "KVM_GET_DEVICE_ATTR", kvmGetDeviceAttr)
		t.moves = err == nil && t.word != t.applied
	}
	return err
}

// savedMSR returns an MSR of the state.
func (s *VCPUState) savedMSR(index uint32) (uint64, bool) {
	for i := range s.msr.entries[:s.msr.n] {
		if m := &s.msr.entries[i]; m.Index == index {
			return m.Data, true
		}
	}
	return 0, false
}

// readMSR reads one MSR; ok is false if there is none.
func (s *VCPUState) readMSR(vcpu int, index uint32) (value uint64, ok bool, err error) {
	s.one = msrOne{n: 1, entry: gokvm.MSREntry{Index: index}}
	n, err := ioctl(vcpu, "KVM_GET_MSRS", kvmGetMSRs, unsafe.Pointer(&s.one))
	return s.one.entry.Data, err == nil && n == 1, err
}

func (s *VCPUState) writeMSR(vcpu int, index uint32, value uint64) error {
	s.one = msrOne{n: 1, entry: gokvm.MSREntry{Index: index, Data: value}}
	n, err := ioctl(vcpu, "KVM_SET_MSRS", kvmSetMSRs, unsafe.Pointer(&s.one))
	if err == nil && n != 1 {
		err = &MSRError{index, value}
	}
	return err
}
