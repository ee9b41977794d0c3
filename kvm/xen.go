//go:build linux && amd64

package kvm

import "unsafe"

// xenAttr is struct kvm_xen_hvm_attr.
type xenAttr struct {
	kind  uint16
	_     [3]uint16
	value uint64
	_     [7]uint64
}

// What KVM can be asked of its Xen interface, where xenAsked is among the flags of KVM_CAP_XEN_HVM
// (KVM_XEN_HVM_CONFIG_SHARED_INFO, KVM_XEN_ATTR_TYPE_* in linux/kvm.h).
const (
	xenAsked         = 1 << 2
	xenLongMode      = 0
	xenSharedInfo    = 1
	xenUpcallVector  = 2
	xenSharedAddress = 6 // newer kernels
)

// xenFrames is beyond the number of any page of a guest: kernels say by different large
// numbers that there is none.
const xenFrames = 1 << 40

// noXen fails with a NotSavedError if the guest uses KVM's Xen interface: the page that it shares
// with KVM, and the way in which KVM tells it of events, are state of the VM that is not saved. A
// VM that Create made has no such interface.
func (vm *VM) noXen() error {
	if vm.ours || !vm.sys.xen {
		return nil
	}
	if usesXen(vm.xenAttr) {
		return &NotSavedError{"KVM's Xen interface"}
	}
	return nil
}

// xenAttr asks KVM; ok is false where it does not answer.
func (vm *VM) xenAttr(kind uint16) (value uint64, ok bool) {
	attr := xenAttr{kind: kind}
	_, err := ioctl(vm.fd, "KVM_XEN_HVM_GET_ATTR", kvmXenGetAttr, unsafe.Pointer(&attr))
	return attr.value, err == nil
}

// usesXen reports whether a guest has told KVM anything by its Xen interface: that it runs in
// long mode, which KVM notes when the guest has its page of hypercalls written; the page that it
// shares; or an interrupt for events.
func usesXen(ask func(kind uint16) (value uint64, ok bool)) bool {
	const one = 0xff // of the bytes of value
	if mode, ok := ask(xenLongMode); ok && mode&one != 0 {
		return true
	}
	if frame, ok := ask(xenSharedInfo); ok && frame < xenFrames {
		return true
	}
	if vector, ok := ask(xenUpcallVector); ok && vector&one != 0 {
		return true
	}
	address, ok := ask(xenSharedAddress)
	return ok && address != 0
}
