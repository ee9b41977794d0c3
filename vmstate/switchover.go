package vmstate

import "fmt"

// A SwitchoverAcker is a LiveLoader that must be ready before the source may
// stop the guest (capability switchover-ack, QEMU 8.1 and later).
type SwitchoverAcker interface {
	SwitchoverAckNeeded() bool
}

// A Switchover counts the devices of a destination that have not approved the
// switchover yet. The zero value waits for none. It belongs to one goroutine.
type Switchover struct{ pending int }

// Switchover returns the count of the live loaders that want to be asked. If
// [Switchover.Approved] is already true, the acknowledgement is due at once,
// when the return path opens.
func (reg *Registry) Switchover() *Switchover {
	var s Switchover
	for _, e := range reg.entries {
		if a, ok := e.loader.(SwitchoverAcker); ok && a.SwitchoverAckNeeded() {
			s.pending++
		}
	}
	return &s
}

// Approved reports whether no device is left that has to approve.
func (s *Switchover) Approved() bool { return s.pending == 0 }

// Approve records the approval of one device. It returns true with the last one:
// now [ReturnWriter.SwitchoverAck] is due. One approval too many is
// [ErrSwitchover].
func (s *Switchover) Approve() (last bool, err error) {
	if s.pending == 0 {
		return false, fmt.Errorf("vmstate: %w: no device is left to approve it", ErrSwitchover)
	}
	s.pending--
	return s.pending == 0, nil
}

// maySwitch returns [ErrSwitchover] while the guest may not be stopped.
func (reg *Registry) maySwitch() error {
	if reg.SwitchoverAcked != nil && !reg.SwitchoverAcked() {
		return fmt.Errorf("vmstate: %w: the destination has not agreed", ErrSwitchover)
	}
	return nil
}
