//go:build linux && amd64

package kvm

import (
	"time"
	"unsafe"

	gokvm "github.com/bobuhiro11/gokvm/kvm"
)

// longPause is how long a VM must have been paused for its timer to go on without the interrupts of that
// time. KVM counts those that a guest has missed and delivers them later, each as soon as the one before was
// acknowledged. That is right for the pause of a checkpoint, of which few are missed or none: a guest
// that counts its ticks keeps the time. After a minute's pause it would be kept busy with tens of thousands.
const longPause = time.Second

// dropTicks has the timer (PIT) of a VM that was paused for long forget the interrupts that the guest has missed, as it
// does when it is given a state: it begins to count anew. A timer that does not repeat has missed one at most,
// and keeps that. Without an answer of KVM the guest gets all of them. mu is held, and no vCPU runs.
func (vm *VM) dropTicks() {
	const rateGenerator, squareWave = 2, 3
	if !vm.chips.hasPIT || time.Since(vm.since) < longPause {
		return
	}
	var pit gokvm.PITState2 // vm.chips has what may still be being encoded
	if _, err := ioctl(vm.fd, "KVM_GET_PIT2", kvmGetPIT2, unsafe.Pointer(&pit)); err != nil {
		return
	}
	if mode := pit.Channels[0].Mode; mode == rateGenerator || mode == squareWave {
		_, _ = ioctl(vm.fd, "KVM_SET_PIT2", kvmSetPIT2, unsafe.Pointer(&pit))
	}
}
