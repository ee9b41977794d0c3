package nbd

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"io"
	"slices"
)

// readReply reads one simple reply, or one chunk, and hands it out. The caller has the
// turn. An error ends the connection.
func (c *Client) readReply() error {
	head, err := c.awaitReply()
	if err != nil {
		return err
	}
	be := binary.BigEndian
	switch m := be.Uint32(head); {
	case m == magicReply:
		return c.readSimple(head)
	case m == magicChunk && c.structured:
		return c.readChunk()
	default:
		return &ProtocolError{"reply magic", uint64(m)}
	}
}

// take returns the call that a reply is for. From then on only the caller of take finishes
// it.
func (c *Client) take(handle uint64) (*call, error) {
	slot := uint32(handle)
	c.mu.Lock()
	defer c.mu.Unlock()
	if uint64(slot) >= uint64(len(c.calls)) || !c.calls[slot].active || c.calls[slot].gen != uint32(handle>>32) {
		if c.err != nil {
			return nil, c.err
		}
		return nil, &ProtocolError{"reply to a request that is not under way", handle}
	}
	k := c.calls[slot]
	k.active = false
	c.active--
	c.pulse.partial = true
	return k, nil
}

// conclude hands out the answer to a call that take has returned.
func (c *Client) conclude(k *call, err error) {
	c.mu.Lock()
	c.answered++
	c.pulse.partial = false
	c.pushIf(false)
	c.finish(k, err)
}

// readSimple reads a simple reply, whose header is in the buffer.
func (c *Client) readSimple(head []byte) error {
	be := binary.BigEndian
	errno, handle := be.Uint32(head[4:]), be.Uint64(head[8:])
	c.r.Discard(replyLen)
	k, err := c.take(handle)
	if err != nil {
		return err
	}
	switch {
	case k.errors > 0:
		lost := &ProtocolError{"simple reply after a chunk of the same answer, errno", uint64(errno)}
		c.finish(k, lost)
		return lost
	case errno != 0:
		err = k.req.failed(errno, "")
	case k.req.cmd == cmdBlockStatus || k.req.cmd == cmdRead && c.structured:
		lost := &ProtocolError{"simple reply to a request that wants chunks", uint64(k.req.cmd)}
		c.finish(k, lost)
		return lost
	case k.req.cmd == cmdRead:
		if lost := c.why(c.r.data(k.buf)); lost != nil {
			c.finish(k, lost)
			return lost
		}
	}
	c.conclude(k, err)
	return nil
}

// failed returns the error of a request that the server has answered with errno.
func (r *request) failed(errno uint32, message string) error {
	return &RequestError{commandName(r.cmd), int64(r.off), int64(r.n), fromErrno(errno), message}
}

// readChunk reads a chunk, the beginning of whose header is in the buffer.
func (c *Client) readChunk() error {
	if c.r.Buffered() < chunkLen { // the rest of the header is on its way
		c.mu.Lock()
		c.watch()
		c.pulse.partial = true
		c.mu.Unlock()
	}
	head, err := c.r.Peek(chunkLen)
	if err != nil {
		return eof(err)
	}
	var h chunk
	h.parse(head)
	c.r.Discard(chunkLen)
	k, err := c.take(h.handle)
	if err != nil {
		return err
	}
	if err := c.why(c.readPayload(k, &h)); err != nil {
		c.finish(k, err)
		return err
	}
	if h.flags&chunkDone == 0 {
		c.mu.Lock()
		if err := c.err; err != nil {
			c.mu.Unlock()
			c.finish(k, err)
			return err
		}
		k.active = true
		c.active++
		c.pulse.partial = false
		c.mu.Unlock()
		return nil
	}
	err = k.failure
	if err == nil {
		if lost := k.incomplete(); lost != nil {
			c.finish(k, lost)
			return lost
		}
	}
	c.conclude(k, err)
	return nil
}

// incomplete returns an error if an answer without an error chunk lacks something.
func (k *call) incomplete() error {
	if k.req.cmd == cmdRead && k.left != 0 {
		return &ProtocolError{"answer to a read without data, in bytes,", uint64(k.left)}
	}
	if k.req.cmd == cmdBlockStatus && len(k.status.extents) == 0 {
		return &ProtocolError{"answer to block status without the context", uint64(k.status.id)}
	}
	return nil
}

const (
	maxParts        = 1024     // parts of a read that are there while data between them is missing
	maxErrors       = 16       // error chunks of one answer
	maxErrorChunk   = 16 << 10 // bytes of one error chunk
	maxAnswerExtent = 1 << 20  // extents of one chunk
)

// readPayload reads what follows the header of a chunk (proto, "Structured
// reply types").
func (c *Client) readPayload(k *call, h *chunk) error {
	be := binary.BigEndian
	bad := func(what string) error { return &ProtocolError{what, uint64(h.n)} }
	switch {
	case h.typ == chunkNone:
		if h.n != 0 || h.flags&chunkDone == 0 {
			return bad("empty chunk that goes on, or of length")
		}
		return nil
	case h.typ == chunkData && k.req.cmd == cmdRead:
		if h.n <= 8 {
			return bad("data chunk of length")
		}
		field, err := c.next(8)
		if err != nil {
			return err
		}
		part, err := k.part(be.Uint64(field), h.n-8)
		if err != nil {
			return err
		}
		return c.r.data(part)
	case h.typ == chunkHole && k.req.cmd == cmdRead:
		if h.n != 12 {
			return bad("hole chunk of length")
		}
		field, err := c.next(12)
		if err != nil {
			return err
		}
		part, err := k.part(be.Uint64(field), be.Uint32(field[8:]))
		if err != nil {
			return err
		}
		clear(part)
		return nil
	case h.typ == chunkStatus && k.req.cmd == cmdBlockStatus:
		if h.n < 4+extentLen || (h.n-4)%extentLen != 0 || h.n > 4+extentLen*maxAnswerExtent {
			return bad("block status of length")
		}
		field, err := c.next(4)
		if err != nil {
			return err
		}
		return c.readExtents(k, be.Uint32(field), (h.n-4)/extentLen)
	case h.typ&chunkErr != 0:
		return c.readError(k, h)
	}
	return &ProtocolError{fmt.Sprintf("answer to %s with chunk", commandName(k.req.cmd)), uint64(h.typ)}
}

// next reads n bytes, which are valid until the next read.
func (c *Client) next(n int) ([]byte, error) {
	p, err := c.r.Peek(n)
	c.r.Discard(len(p))
	return p, eof(err)
}

// span is a part of a read, relative to its beginning.
type span struct{ from, to uint64 }

// part returns the memory for the data of a chunk. It refuses data that has come before.
func (k *call) part(off uint64, n uint32) ([]byte, error) {
	from := off - k.req.off
	if n == 0 || off < k.req.off || from > uint64(len(k.buf)) || uint64(n) > uint64(len(k.buf))-from {
		return nil, &ProtocolError{fmt.Sprintf("data outside of a read, %d bytes at", n), off}
	}
	to := from + uint64(n)
	i, _ := slices.BinarySearchFunc(k.parts, from, func(s span, from uint64) int { return cmp.Compare(s.to, from) })
	// parts[i] is the first that does not end before from.
	switch joins := i < len(k.parts) && k.parts[i].to == from; {
	case joins && i+1 < len(k.parts) && k.parts[i+1].from < to, !joins && i < len(k.parts) && k.parts[i].from < to:
		return nil, &ProtocolError{fmt.Sprintf("data a second time, %d bytes at", n), off}
	case joins && i+1 < len(k.parts) && k.parts[i+1].from == to:
		k.parts[i].to = k.parts[i+1].to
		k.parts = slices.Delete(k.parts, i+1, i+2)
	case joins:
		k.parts[i].to = to
	case i < len(k.parts) && k.parts[i].from == to:
		k.parts[i].from = from
	case len(k.parts) == maxParts:
		return nil, &ProtocolError{"number of separate parts of a read", maxParts}
	default:
		k.parts = slices.Insert(k.parts, i, span{from, to})
	}
	k.left -= int64(n)
	return k.buf[from:to], nil
}

// readError reads an error chunk. If an answer has several, the first counts.
func (c *Client) readError(k *call, h *chunk) error {
	if k.errors++; k.errors > maxErrors {
		return &ProtocolError{"number of errors", uint64(k.errors)}
	}
	if h.n < 6 || h.n > maxErrorChunk {
		return &ProtocolError{"error chunk of length", uint64(h.n)}
	}
	p := make([]byte, h.n)
	if err := readFull(c.r, p); err != nil {
		return err
	}
	errno, text := binary.BigEndian.Uint32(p), p[6:]
	n := int(binary.BigEndian.Uint16(p[4:]))
	if n > len(text) {
		return &ProtocolError{"error message of length", uint64(n)}
	}
	if known := h.typ == chunkError || h.typ == chunkErrorOffset; errno == 0 && known {
		return &ProtocolError{"error chunk with errno", 0}
	}
	if k.failure == nil {
		k.failure = k.req.failed(errno, words(text[:n]))
	}
	return nil
}

// statusAnswer collects an answer to block status.
type statusAnswer struct {
	id      uint32 // of the context that was asked for; others are skipped
	seen    uint32 // contexts that have come: bit i is for the i-th
	extents []extent
}

// extent is a length and the flags of that many bytes.
type extent struct{ n, flags uint32 }

// readExtents reads the extents of a context.
func (c *Client) readExtents(k *call, id uint32, count uint32) error {
	at := -1
	for i, x := range c.contexts {
		if x.id == id {
			at = i
		}
	}
	if at < 0 || k.status.seen&(1<<at) != 0 {
		return &ProtocolError{"block status of a context that is not wanted, or again,", uint64(id)}
	}
	k.status.seen |= 1 << at
	for range count {
		p, err := c.next(extentLen)
		if err != nil {
			return err
		}
		x := extent{binary.BigEndian.Uint32(p), binary.BigEndian.Uint32(p[4:])}
		if x.n == 0 {
			return &ProtocolError{"extent of length", 0}
		}
		if id == k.status.id {
			k.status.extents = append(k.status.extents, x)
		}
	}
	return nil
}

// eof turns io.EOF into io.ErrUnexpectedEOF, where something had to come.
func eof(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
