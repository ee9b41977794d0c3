//go:build linux && amd64

package kvm

import (
	"errors"
	"testing"
	"unsafe"

	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/vmstate"
)

// A guest is taken to use KVM's Xen interface when it has told KVM of anything by it, and not where kernels
// only say that there is nothing, each in its own way.
func TestAGuestThatUsesKVMsXenInterfaceIsKnown(t *testing.T) {
	none := map[uint16]uint64{xenLongMode: 0, xenSharedInfo: ^uint64(0), xenUpcallVector: 0, xenSharedAddress: 0}
	with := func(kind uint16, value uint64) map[uint16]uint64 {
		m := map[uint16]uint64{kind: value}
		for k, v := range none {
			if k != kind {
				m[k] = v
			}
		}
		return m
	}
	older := with(xenSharedInfo, ^uint64(0)>>12)
	delete(older, xenSharedAddress)
	for name, c := range map[string]struct {
		says map[uint16]uint64
		uses bool
	}{
		"nothing":                       {none, false},
		"nothing, as older kernels say": {older, false},
		"no answer":                     {nil, false},
		"long mode":                     {with(xenLongMode, 1), true},
		"a page":                        {with(xenSharedInfo, 5), true},
		"the first page":                {with(xenSharedInfo, 0), true},
		"an interrupt":                  {with(xenUpcallVector, 0xf3), true},
		"a page by its address":         {with(xenSharedAddress, 0x7f0000001000), true},
	} {
		got := usesXen(func(kind uint16) (uint64, bool) {
			value, ok := c.says[kind]
			return value, ok
		})
		if got != c.uses {
			t.Errorf("%s: %v, want %v", name, got, c.uses)
		}
	}
	if n := unsafe.Sizeof(xenAttr{}); n != 72 {
		t.Errorf("struct kvm_xen_hvm_attr has %d bytes, want 72", n)
	}
}

// It is not saved either: on a KVM that has the interface.
func TestAGuestThatUsesKVMsXenInterfaceIsNotSaved(t *testing.T) {
	require.Usable(t, require.KVM, Probe)
	const setAttr = 0x4048aec9
	vm, vcpu, run := adoptedHere(t)
	if !vm.sys.xen {
		t.Skip("this KVM has no Xen interface")
	}
	if _, err := vm.AddVCPU(uintptr(vcpu), run); err != nil {
		t.Fatal(err)
	}
	var reg vmstate.Registry
	if err := vm.Register(&reg); err != nil {
		t.Fatal(err)
	}
	if err := vm.noXen(); err != nil {
		t.Error("a guest that does not use it:", err)
	}
	attr := xenAttr{kind: xenSharedInfo, value: 5}
	if _, err := ioctl(vm.fd, "KVM_XEN_HVM_SET_ATTR", setAttr, unsafe.Pointer(&attr)); err != nil {
		t.Skip(err)
	}
	var not *NotSavedError
	if err := reg.CaptureDevices(); !errors.As(err, &not) {
		t.Errorf("got %v, want a NotSavedError", err)
	}
}
