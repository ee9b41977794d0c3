package compare

import (
	"context"
	"time"
)

// ComposePacket does what WriteVNetPacket does, for a packet of n bytes that does not exist
// yet: compose writes it into memory of the Comparer, where it can wait and from where it
// can leave without being copied, which matters for a large segment (TSO). A NIC gathers
// the packet there from the memory of its guest. p has n bytes of any content, and is valid
// during the call. compose is called at most once, on the caller's goroutine and with no
// lock held, and returns false if there is no packet after all; then ComposePacket returns
// [ErrFrame]. It returns [ErrFull] before the call or after it.
func (c *Comparer) ComposePacket(n, hdrLen int, compose func(p []byte) bool) error {
	if n <= 0 || n > maxFrame || hdrLen < 0 || hdrLen > n {
		return ErrFrame
	}
	c.mu.Lock()
	if c.crowded(costOf(n)) {
		c.wants = true
		c.mu.Unlock()
		return ErrFull
	}
	p := c.eng.draft(n)
	c.mu.Unlock()
	if !compose(p.Data) {
		c.giveBack(p)
		return ErrFrame
	}
	if !c.compose(p, hdrLen) {
		c.giveBack(p)
		return ErrFull
	}
	return nil
}

// ComposeAtMost does what ComposePacket does, for a packet whose length is known only when it is
// there, as one that is read from a TAP interface: p has most bytes, compose reads into it, and
// returns how many the packet has. Where it returns 0, or what no packet has in p, there is none:
// ComposeAtMost returns [ErrFrame], and the Comparer has its memory back. It returns [ErrFull] before
// the call, so that nothing is read, if there is no room for a packet of most bytes. It returns it
// after the call, and the packet is lost, only if packets of other callers took that room meanwhile.
// compose may wait, since nothing waits for it; each call has memory of its own as long as it waits.
//
// A packet of more than half of p's memory waits where it was read: 32 KiB, if most is the greatest
// length that a packet has, 68 KiB. A shorter one is copied.
func (c *Comparer) ComposeAtMost(most, hdrLen int, compose func(p []byte) int) error {
	if most <= 0 || most > maxFrame || hdrLen < 0 || hdrLen > most {
		return ErrFrame
	}
	p := c.draftAtMost(most)
	if p == nil {
		return ErrFull
	}
	n := compose(p.Data)
	if n <= 0 || n > most || hdrLen > n {
		c.giveBack(p)
		return ErrFrame
	}
	p.Data = p.Data[:n]
	if !c.compose(p, hdrLen) {
		c.giveBack(p)
		return ErrFull
	}
	return nil
}

// draftAtMost returns memory for a packet of up to n bytes, or nil if the Comparer would not take one
// of n bytes, which is noted as the refusal of a packet is.
func (c *Comparer) draftAtMost(n int) (p *pkt) {
	c.do(func(e *Engine, now time.Time) (Result, error) {
		if c.crowded(costOf(n)) {
			return Result{Full: true}, nil
		}
		if r := e.refusal(n, now); r.Full {
			return r, nil
		}
		p = e.draft(n)
		return Result{}, nil
	})
	return p
}

// crowded reports whether n bytes more would be too many beside what waits to be written. mu is held.
func (c *Comparer) crowded(n int) bool { return c.bytes > 0 && c.bytes+n > c.limit }

// compose takes the packet that is in p, or returns false if there is no room; then p is the
// caller's still.
func (c *Comparer) compose(p *pkt, hdrLen int) bool {
	full, _ := c.do(func(e *Engine, now time.Time) (Result, error) {
		if c.crowded(p.needs()) { // others have come meanwhile
			return Result{Full: true}, nil
		}
		r := e.compose(p, hdrLen, now)
		if r.Full {
			e.drafted = nil
		}
		return r, nil
	})
	return !full
}

func (c *Comparer) giveBack(p *pkt) {
	c.mu.Lock()
	c.eng.giveBack(p)
	c.mu.Unlock()
}

// ServePrimary takes the primary's packets from r until reading fails or ctx ends, and
// returns why. It does not read while there is no room. It drops what is no frame (see
// [ErrFrame]), since there is no packet in it. A read that blocks is ended by closing what
// r reads from.
//
// If r has a method ReadInto(p []byte) (int, error), as a tap.Device has, that is called instead of
// ReadPacket, with memory of the Comparer for the longest frame. It writes the next frame there,
// as many bytes as it returns, and keeps nothing of p. A large segment then waits, and leaves, where
// it was read. A type that embeds a tap.Device, and has a ReadPacket of its own, needs a ReadInto of
// its own too: that of the Device would be called, and never the type's ReadPacket.
func (c *Comparer) ServePrimary(ctx context.Context, r PacketReader) error {
	if in, ok := r.(interface{ ReadInto(p []byte) (int, error) }); ok {
		vnet, _ := r.(interface{ VNetHdrLen() int })
		for ctx.Err() == nil {
			if err := c.readInto(ctx, in.ReadInto, vnet); err != nil {
				return err
			}
		}
		return context.Cause(ctx)
	}
	return c.serve(ctx, r, func(f Frame) error {
		for c.WriteVNetPacket(f.Data, f.VNetHdr) == ErrFull {
			if err := c.waitRoom(ctx); err != nil {
				return err
			}
		}
		return nil
	})
}

// readInto takes one packet that read writes into memory of the Comparer.
func (c *Comparer) readInto(ctx context.Context, read func([]byte) (int, error), vnet interface{ VNetHdrLen() int }) error {
	p := c.draftAtMost(maxFrame)
	for ; p == nil; p = c.draftAtMost(maxFrame) {
		if err := c.waitRoom(ctx); err != nil {
			return err
		}
	}
	n, err := read(p.Data)
	hdrLen := 0
	if vnet != nil {
		hdrLen = vnet.VNetHdrLen()
	}
	if err != nil || n <= 0 || n > len(p.Data) || hdrLen < 0 || hdrLen > n {
		c.giveBack(p)
		return err
	}
	p.Data = p.Data[:n]
	for !c.compose(p, hdrLen) {
		if err := c.waitRoom(ctx); err != nil {
			c.giveBack(p)
			return err
		}
	}
	return nil
}

func (c *Comparer) waitRoom(ctx context.Context) error {
	select {
	case <-c.room:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
