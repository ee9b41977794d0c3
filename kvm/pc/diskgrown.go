//go:build linux && amd64

package pc

import "fmt"

// DiskGrown tells the guest that the Storage of Devices.Disks[disk] has become size bytes long, of which
// whole sectors of 512 are used. A guest that is paused is told when it goes on, and one whose driver is
// setting the disk up when that is done. It waits for neither, so that it can be what
// protect.DiskConfig.Grown calls. Any goroutine may call it.
//
// How long the guest was told that its disk is belongs to the state: a guest that goes on from a state of
// before has a shorter disk, and is told anew by the host that was told of the longer one, or whose Storage
// had that length when the Machine was made. A state with a disk that is longer than the Storage here is
// refused.
//
// It fails with ErrDiskSize, and changes nothing, if the Storage has fewer bytes, or the guest's disk more.
func (m *Machine) DiskGrown(disk int, size int64) error {
	switch {
	case m.closed.Load():
		return ErrClosed
	case disk < 0 || disk >= len(m.disks):
		return fmt.Errorf("pc: the guest has no disk %d, but %d disks", disk, len(m.disks))
	}
	if err := m.disks[disk].Grown(m.gate, size); err != nil {
		return fmt.Errorf("pc: disk %d: %w", disk, err)
	}
	return nil
}
