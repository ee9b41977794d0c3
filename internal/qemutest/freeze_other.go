//go:build !unix

package qemutest

// Freeze is never reached: a guest is started only where there is KVM.
func (v *VM) Freeze() { panic("qemutest: there is no SIGSTOP") }
