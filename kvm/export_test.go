//go:build linux && amd64

package kvm

// Descriptor returns the VM's file descriptor.
func (vm *VM) Descriptor() int { return vm.fd }
