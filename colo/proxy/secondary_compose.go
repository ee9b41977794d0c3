package proxy

import (
	"bytes"
	"slices"
)

// ComposePacket is WritePacket for a packet of n bytes that does not exist yet, as
// [Primary.ComposePacket] is: compose writes it where it is translated, and must not call the
// Secondary.
func (s *Secondary) ComposePacket(n int, compose func(packet []byte) bool) error {
	if err := checkLength(n, s.cfg.VNetHdr); err != nil {
		return err
	}
	early, err := s.compose(n, func(packet []byte) int {
		if !compose(packet) {
			return 0
		}
		return n
	})
	s.give(early)
	return err
}

// ComposeAtMost is ComposePacket for a packet whose length is known only when it is there, as
// [Primary.ComposeAtMost] is. Only one packet is composed at a time, so that a compose that waits
// keeps others waiting. [ErrFull] may come after the call, and the packet is lost then, as on a network.
func (s *Secondary) ComposeAtMost(most int, compose func(packet []byte) int) error {
	if err := checkLength(most, s.cfg.VNetHdr); err != nil {
		return err
	}
	early, err := s.compose(most, compose)
	s.give(early)
	return err
}

// compose is ComposeAtMost, but for the packet that it returns for the guest. Nothing
// waits for compose but other packets that are composed.
func (s *Secondary) compose(most int, compose func(packet []byte) int) (early []byte, err error) {
	s.drafts.Lock()
	defer s.drafts.Unlock()
	s.draft = slices.Grow(s.draft[:0], most)[:most]
	n := compose(s.draft)
	if !isLength(n, most, s.cfg.VNetHdr) {
		return nil, errNoPacket()
	}
	packet := s.draft[:n]
	s.known.FromGuest(packet, s.cfg.VNetHdr)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.scales.FromGuest(packet, s.cfg.VNetHdr)
	early = bytes.Clone(s.rewriter.Outbound(packet, s.cfg.VNetHdr))
	if !s.rewriter.Kept() {
		err = s.send(packet)
	}
	s.sendLate()
	return early, err
}
