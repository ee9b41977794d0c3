//go:build linux && amd64

package kvm

import (
	"fmt"
	"unsafe"
)

// Dispatch returns a function for Run that tells exits apart and calls h. It
// belongs to this vCPU, allocates nothing per exit, and may be given to one Run
// at a time.
func (v *VCPU) Dispatch(h Handler) func(*RunData) error {
	var pio IO
	var mmio MMIO
	return func(d *RunData) error {
		switch {
		case d.ExitReason == exitIO && h.IO != nil:
			direction, size, port, count, offset := d.IO()
			n := size * count
			if offset > uint64(len(v.run)) || n > uint64(len(v.run))-offset {
				return fmt.Errorf("kvm: vCPU %d: port data of %d bytes at %#x is outside struct kvm_run", v.index, n, offset)
			}
			pio = IO{In: direction == 0, Port: uint16(port), Size: int(size), Count: int(count), Data: v.run[offset:][:n:n]}
			return h.IO(&pio)
		case d.ExitReason == exitMMIO && h.MMIO != nil:
			m := (*mmioExit)(unsafe.Pointer(&d.Data))
			mmio = MMIO{Write: m.isWrite != 0, Addr: m.addr, Data: m.data[:min(m.length, 8)]}
			return h.MMIO(&mmio)
		case d.ExitReason == exitHalt && h.Halt != nil:
			return h.Halt()
		case d.ExitReason == exitShutdown && h.Shutdown != nil:
			return h.Shutdown()
		case h.Other != nil && d.ExitReason != exitIO && d.ExitReason != exitMMIO &&
			d.ExitReason != exitHalt && d.ExitReason != exitShutdown:
			return h.Other(d)
		}
		return v.exitError()
	}
}

// mmioExit is the member mmio of struct kvm_run's union.
type mmioExit struct {
	addr    uint64
	data    [8]byte
	length  uint32
	isWrite uint8
}
