package filter

// ComposePacket is [Buffer.WritePacket] for a packet of n bytes that does not exist yet:
// compose writes the packet into the memory in which it waits and from which it leaves, so
// that a large segment (TSO) is not copied. p has n bytes of any content, and is valid during
// the call. compose is called at most once, on the caller's goroutine, and nothing waits for
// it but other packets that are composed. If it returns false there is no packet, and
// ComposePacket returns an [*Error] with [ErrFrame]. It returns [ErrFull] before the call or
// after it.
func (b *Buffer) ComposePacket(n int, compose func(p []byte) bool) error {
	if err := checkLength(n); err != nil {
		return err
	}
	b.drafts.Lock()
	defer b.drafts.Unlock()
	p := b.draft(n)
	if p == nil {
		return ErrFull
	}
	made := false
	defer func() {
		if !made { // or it panics
			b.mu.Lock()
			b.own.scrap()
			b.mu.Unlock()
		}
	}()
	if !compose(p) {
		return &Error{Op: "buffer", Offset: -1, Err: ErrFrame}
	}
	made = true
	b.mu.Lock()
	taken := b.fits(n) && b.own.adopt(p)
	b.own.scrap()
	return b.note(n, taken)
}

// draft returns memory for a packet of n bytes, or nil, having said so, if there is no room.
func (b *Buffer) draft(n int) []byte {
	b.mu.Lock()
	if b.fits(n) {
		if p := b.own.draft(n); p != nil {
			b.mu.Unlock()
			return p
		}
	}
	_ = b.note(n, false)
	return nil
}
