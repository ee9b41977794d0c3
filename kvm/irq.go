//go:build linux && amd64

package kvm

import (
	"fmt"
	"unsafe"
)

// irqLevel is struct kvm_irq_level.
type irqLevel struct {
	irq   uint32
	level uint32
}

// SetIRQ sets the level of an input of the VM's interrupt controllers, which
// must be in the kernel: 0 to 23, the numbers of the IOAPIC's pins and, below 16,
// of the PICs'. (KVM api, section 4.25.) It may be called while the vCPUs run,
// and reaches a vCPU that waits in HLT. It must not be called any more when the VM is closed.
//
// The level of an input is not part of the controllers' state: whoever drives one
// sets it again after the state was restored.
func (vm *VM) SetIRQ(irq uint32, level bool) error {
	arg := irqLevel{irq: irq}
	if level {
		arg.level = 1
	}
	if _, err := ioctl(vm.fd, "KVM_IRQ_LINE", kvmIRQLine, unsafe.Pointer(&arg)); err != nil {
		return fmt.Errorf("kvm: interrupt %d: %w", irq, err)
	}
	return nil
}
