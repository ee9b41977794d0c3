package proxy

// Packets that came before their connection could be translated are passed on when it can be.

// sendLate takes the packets of the guest that can be translated since the last packet to it. What
// finds no room the guest will send again. mu is held.
func (s *Secondary) sendLate() {
	for late := s.rewriter.Late(); late != nil; late = s.rewriter.Late() {
		_ = s.send(late)
	}
}

// give delivers a packet that came before it could be translated; nil: there is none. If the
// guest is paused, or is about to be, the packet is dropped: the client will send it again.
func (s *Secondary) give(early []byte) {
	if early == nil {
		return
	}
	s.gate.mu.Lock()
	defer s.gate.mu.Unlock()
	if s.gate.open {
		s.mu.Lock()
		s.scales.ToGuest(early, s.cfg.VNetHdr)
		s.mu.Unlock()
		s.note(s.cfg.Deliver(early))
	}
}
