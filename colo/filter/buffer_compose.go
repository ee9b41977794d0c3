package filter

// ComposePacket is [Buffer.WritePacket] for a packet of n bytes that does not exist yet:
// compose writes the packet into the memory in which it waits and from which it leaves, so
// that a large segment (TSO) is not copied. p has n bytes of any content, and is valid during
// the call. compose is called at most once, on the caller's goroutine, and nothing waits for
// it but other packets that are composed. If it returns false there is no packet, and
// ComposePacket returns an [*Error] with [ErrFrame]. It returns [ErrFull] before the call or
// after it.
func (b *Buffer) ComposePacket(n int, compose func(p []byte) bool) error {
	return b.compose(n, func(p []byte) int {
		if !compose(p) {
			return 0
		}
		return n
	})
}

// ComposeAtMost is ComposePacket for a packet whose length is known only when it is there, as one
// that is read from a TAP interface: p has most bytes, compose reads into it, and returns how many
// the packet has. If that is 0, or what no packet in p has, nothing was taken, and the error is an
// [*Error] with [ErrFrame]. [ErrFull] comes before the call, so that nothing is read, if there is no
// room for a packet of most bytes. It comes after the call, and the packet is lost, only if packets of
// other callers took that room meanwhile.
func (b *Buffer) ComposeAtMost(most int, compose func(p []byte) int) error {
	return b.compose(most, compose)
}

// noFrame is the error for a frame that compose did not make. There is one, since a reader that finds
// nothing to read gets it each time.
var noFrame error = &Error{Op: "buffer", Offset: -1, Err: ErrFrame}

// compose is ComposeAtMost.
func (b *Buffer) compose(most int, compose func(p []byte) int) error {
	if err := checkLength(most); err != nil {
		return err
	}
	b.drafts.Lock()
	defer b.drafts.Unlock()
	p := b.draft(most)
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
	n := compose(p)
	if n <= 0 || n > most {
		return noFrame
	}
	made = true
	b.mu.Lock()
	taken := b.fits(n) && b.own.adopt(p[:n])
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
