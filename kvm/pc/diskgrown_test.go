//go:build linux && amd64

package pc

import (
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"github.com/gocolo/lockstep/kvm/internal/fake"
)

// Registers of a disk, as its driver knows them.
const (
	diskStatus   = 18
	diskISR      = 19
	diskCapacity = 20
)

// A guest that is paused is told of a longer disk when it goes on, and not before.
func TestAGuestIsToldOfALongerDiskWhenItGoesOn(t *testing.T) {
	first, second := fake.NewDisk(4096), fake.NewDisk(8192)
	w := newIdle(t, Devices{Disks: []Disk{{Storage: first}, {Storage: second}}})
	wants := func(why string, disk int, sectors uint64, isr byte) {
		t.Helper()
		var capacity [8]byte
		var is [1]byte
		w.disks[disk].In(diskCapacity, capacity[:])
		w.disks[disk].In(diskISR, is[:])
		if n := binary.LittleEndian.Uint64(capacity[:]); n != sectors || is[0] != isr {
			t.Errorf("%s: disk %d has %d sectors, interrupt status %d", why, disk, n, is[0])
		}
	}
	w.start()
	w.must(w.Resume(t.Context()))
	w.must(w.disks[1].Out(diskStatus, []byte{7}))
	second.Grow(16384)
	w.must(w.DiskGrown(1, 16384))
	wants("it runs", 1, 32, 2)
	wants("it runs", 0, 8, 0)
	w.must(w.Pause(t.Context()))
	second.Grow(32768)
	w.must(w.DiskGrown(1, 32768))
	wants("it is paused", 1, 32, 0)
	w.must(w.Resume(t.Context()))
	wants("it goes on", 1, 64, 2)

	for _, c := range []struct {
		disk  int
		size  int64
		err   error
		words string
	}{
		{1, 32768 + 512, ErrDiskSize, "pc: disk 1: bad disk size: the guest cannot have 33280 bytes of a disk of 32768"},
		{1, 16384, ErrDiskSize, "the guest's disk of 32768 bytes does not become one of 16384"},
		{2, 512, nil, "the guest has no disk 2"},
		{-1, 512, nil, "the guest has no disk -1"},
	} {
		if err := w.DiskGrown(c.disk, c.size); err == nil || c.err != nil && !errors.Is(err, c.err) || !strings.Contains(err.Error(), c.words) {
			t.Errorf("disk %d, %d bytes: %v", c.disk, c.size, err)
		}
	}
	wants("what was refused", 1, 64, 0)
	w.must(w.Pause(t.Context()))
	_ = w.halt()
	w.must(w.Close())
	if err := w.DiskGrown(1, 32768); !errors.Is(err, ErrClosed) {
		t.Error("a closed Machine:", err)
	}
}
