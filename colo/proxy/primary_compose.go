package proxy

// ComposePacket is WritePacket for a packet of n bytes that does not exist yet: compose
// writes it into memory of the Primary, from which a large segment (TSO) leaves without
// having been copied again. A NIC gathers it there from its guest's memory. The slice has
// n bytes of any content, and is valid during the call; compose must not call the
// Primary. It is called at most once, on the caller's goroutine, and returns false if
// there is no packet after all: that is a *filter.Error with filter.ErrFrame. [ErrFull]
// may come before the call or after it.
func (p *Primary) ComposePacket(n int, compose func(packet []byte) bool) error {
	if err := checkLength(n, p.cfg.VNetHdr); err != nil {
		return err
	}
	called, made := false, false
	heard := func(packet []byte) bool {
		called = true
		if made = compose(packet); made {
			p.known.FromGuest(packet, p.cfg.VNetHdr)
		}
		return made
	}
	if p.buffer != nil {
		return composed(p.buffer.ComposePacket(n, heard), called && !made)
	}
	err := composed(p.comparer.ComposePacket(n, p.cfg.VNetHdr, heard), called && !made)
	if err == nil {
		p.took(n)
	}
	return err
}

// ComposeAtMost is ComposePacket for a packet whose length is known only when it is there, as
// one that is read from a TAP interface or a socket on which the guest's NIC sends. The slice has most
// bytes; compose reads into it and returns how many the packet has. Where it returns 0, because there is
// nothing to read, or a length that no packet in the slice has, nothing was taken, and the error is a
// *filter.Error with filter.ErrFrame. [ErrFull] comes before the call, so that nothing is read, if there
// is no room for a packet of most bytes. It comes after the call, and the packet is lost, only if packets
// of other callers took that room meanwhile. With Continuous only one packet is composed at a time, so
// that a compose that waits keeps others waiting.
func (p *Primary) ComposeAtMost(most int, compose func(packet []byte) int) error {
	if err := checkLength(most, p.cfg.VNetHdr); err != nil {
		return err
	}
	called, n := false, 0
	heard := func(packet []byte) int {
		called = true
		if n = compose(packet); !isLength(n, most, p.cfg.VNetHdr) {
			n = 0
			return 0
		}
		p.known.FromGuest(packet[:n], p.cfg.VNetHdr)
		return n
	}
	if p.buffer != nil {
		return composed(p.buffer.ComposeAtMost(most, heard), called && n == 0)
	}
	err := composed(p.comparer.ComposeAtMost(most, p.cfg.VNetHdr, heard), called && n == 0)
	if err == nil {
		p.took(n)
	}
	return err
}

// isLength reports whether a packet in most bytes may have n.
func isLength(n, most, vnetHdr int) bool { return n <= most && checkLength(n, vnetHdr) == nil }

// composed returns what a composing method returns where one of what is below has returned err, and
// compose has said that there is no packet, or has not.
func composed(err error, none bool) error {
	switch {
	case err == nil:
		return nil
	case none:
		return errNoPacket()
	}
	return ErrFull
}
