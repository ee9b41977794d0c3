//go:build linux && amd64

package kvm

import (
	"encoding/binary"
	"sync/atomic"
	"unsafe"
)

// Places in an XSAVE area, and a component of it. (Intel SDM volume 1, 13.4 and 13.5.)
const (
	xstateBV    = 512 // which components are not in their initial state
	keysFeature = 9   // the rights of protection keys (PKRU)
	keysSize    = 8
	msrXFD      = 0x1c4 // components that are switched off
)

// keysKVM says what KVM does with the protection keys of a vCPU when an XSAVE area is written
// that has them in their initial state.
//
// KVM has them apart from the rest of the area. From Linux 5.14 on, and before 6.2, it leaves them as they
// are then, where every other component is reset: the guest of a vCPU that is taken back would go on
// with rights that it had later. (Linux, fpu_copy_uabi_to_guest_fpstate.)
type keysKVM struct{ atomic.Int32 }

const (
	keysUnknown = iota
	keysReset   // as the processor does
	keysStay
)

// setXSave writes the FPU and vector state.
func (s *VCPUState) setXSave(vcpu int) error {
	if at := s.keysAt(); at != 0 && !s.sys.keys.plain(s.xsave) {
		return s.resetKeys(vcpu, at)
	}
	return s.putXSave(vcpu)
}

func (s *VCPUState) putXSave(vcpu int) error {
	_, err := ioctl(vcpu, "KVM_SET_XSAVE", kvmSetXSave, unsafe.Pointer(&s.xsave[0]))
	return err
}

// resetKeys is setXSave where KVM may leave the keys as they are.
func (s *VCPUState) resetKeys(vcpu, at int) error {
	area := s.xsave
	return s.sys.keys.set(area, at, func() error { return s.putXSave(vcpu) }, func(got []byte) error {
		s.xsave = got
		defer func() { s.xsave = area }()
		return s.getXSave(vcpu)
	})
}

// keysAt returns where the XSAVE area of the state has the protection keys, 0 if it has none.
func (s *VCPUState) keysAt() int {
	table := s.cpuid.entries[:s.cpuid.n]
	e := findCPUID(table, xcr0CPUIDFn, keysFeature)
	if e == nil || cpuidValue(table, xcr0CPUIDFn, 0, eax)>>keysFeature&1 == 0 ||
		e.Ebx < xsaveHeaders || uint64(e.Ebx)+keysSize > uint64(s.xsaveSize) {
		return 0
	}
	return int(e.Ebx)
}

// plain reports whether one call writes all of an area.
func (k *keysKVM) plain(area []byte) bool {
	return binary.LittleEndian.Uint64(area[xstateBV:])>>keysFeature&1 != 0 || k.Load() == keysReset
}

// set writes, by put, an area that has the keys, at the place at, in their initial state. Where KVM leaves
// them as they are, it first writes them as what that state is: 0. Which KVM does so is found out the first
// time, by get, which reads an area.
func (k *keysKVM) set(area []byte, at int, put func() error, get func(got []byte) error) error {
	const some = 4 // no writing by the second key
	does, keys := k.Load(), uint64(0)
	if does == keysUnknown {
		keys = some
	}
	if putKeys(area, at, keys, put) != nil {
		err := put()
		if err == nil {
			k.Store(keysReset) // vCPUs here have none
		}
		return err
	}
	if err := put(); err != nil || does == keysStay {
		return err
	}
	got := make([]byte, len(area))
	if err := get(got); err != nil {
		return err
	}
	if binary.LittleEndian.Uint32(got[at:]) != some {
		k.Store(keysReset)
		return nil
	}
	k.Store(keysStay)
	return k.set(area, at, put, get)
}

// putKeys writes an area with other keys, and leaves it as it was.
func putKeys(area []byte, at int, keys uint64, put func() error) error {
	le := binary.LittleEndian
	bv, was := le.Uint64(area[xstateBV:]), le.Uint64(area[at:])
	le.PutUint64(area[xstateBV:], bv|1<<keysFeature)
	le.PutUint64(area[at:], keys)
	err := put()
	le.PutUint64(area[xstateBV:], bv)
	le.PutUint64(area[at:], was)
	return err
}

// dropDisabled puts components that the guest has switched off into their initial state, as the processor does
// when it saves them. KVM before 6.19 would take them as they come, and the host's kernel would not
// survive that the processor then refuses them.
func (s *VCPUState) dropDisabled() {
	if off, ok := s.savedMSR(msrXFD); ok && off != 0 {
		le := binary.LittleEndian
		le.PutUint64(s.xsave[xstateBV:], le.Uint64(s.xsave[xstateBV:])&^off)
	}
}
