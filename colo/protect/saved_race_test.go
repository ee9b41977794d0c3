package protect

import (
	"errors"
	"testing"

	"github.com/gocolo/lockstep/vmstate"
)

var errUnread = errors.New("the medium is gone")

// Devices that waited for memory when the file failed have seen zeros: the guest must not run
// with them, however soon after that they have come to an end.
func TestDevicesThatHaveSeenNoMemoryAreNotCommitted(t *testing.T) {
	s := &Saved{reg: new(vmstate.Registry), filled: make(chan struct{})}
	var committed error
	given := 0
	err := s.read(errUnread, func() error {
		given++
		committed = s.commit() // what was waited for is there now, and is nothing
		return nil
	})
	if !errors.Is(err, errUnread) || given != 1 {
		t.Errorf("%v, given up %d times", err, given)
	}
	if !errors.Is(committed, errUnread) {
		t.Errorf("the devices are committed: %v", committed)
	}
}

// Once the guest may run, who waits for memory goes on waiting.
func TestMemoryIsNotGivenUpOnceTheDevicesAreCommitted(t *testing.T) {
	s := &Saved{reg: new(vmstate.Registry), filled: make(chan struct{})}
	if err := s.commit(); err != nil {
		t.Fatal(err)
	}
	if err := s.read(errUnread, func() error { t.Error("given up"); return nil }); !errors.Is(err, errUnread) {
		t.Error(err)
	}
	if err := s.Err(); err != nil {
		t.Errorf("it is told before it is over: %v", err)
	}
	close(s.filled)
	if err := s.Err(); !errors.Is(err, errUnread) {
		t.Error(err)
	}
}
