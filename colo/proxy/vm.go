package proxy

import (
	"errors"
	"fmt"
	"time"
)

// throttle slows the guest down, where its VM can (colo.Throttler).
func throttle(vm VM, percent int) error {
	if t, ok := vm.(interface{ Throttle(percent int) error }); ok {
		return t.Throttle(percent)
	}
	return fmt.Errorf("proxy: throttle a %T: %w", vm, errors.ErrUnsupported)
}

// stopped returns how long the guest stood still in its last pause, where its VM
// measures that (colo.Stopper), and otherwise 0.
func stopped(vm VM) time.Duration {
	if s, ok := vm.(interface{ Stopped() time.Duration }); ok {
		return s.Stopped()
	}
	return 0
}

// Throttle keeps the guest's vCPUs from running for a share of the time, in percent,
// as far as the VM of the configuration can: it returns the error of its Throttle,
// and one that matches errors.ErrUnsupported where it has none. (A colo.Throttler.)
func (p *Primary) Throttle(percent int) error { return throttle(p.cfg.VM, percent) }

// Stopped returns how long the guest stood still in its last pause, as the VM of the
// configuration has measured it; 0 where it does not. (A colo.Stopper.)
func (p *Primary) Stopped() time.Duration { return stopped(p.cfg.VM) }

// Throttle keeps the guest's vCPUs from running for a share of the time, as that of
// [Primary] does. (A colo.Throttler.)
func (s *Secondary) Throttle(percent int) error { return throttle(s.cfg.VM, percent) }

// Stopped returns how long the guest stood still in its last pause, as that of
// [Primary] does. (A colo.Stopper.)
func (s *Secondary) Stopped() time.Duration { return stopped(s.cfg.VM) }
