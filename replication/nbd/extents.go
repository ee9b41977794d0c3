package nbd

import (
	"errors"
	"fmt"
	"slices"
)

// clientContext is a metadata context that a client has selected.
type clientContext struct {
	name string
	id   uint32
}

// Contexts returns the metadata contexts that the server has and the client has
// asked for, ContextAllocation and those of ClientConfig.Contexts.
func (c *Client) Contexts() []string {
	var names []string
	for _, x := range c.contexts {
		names = append(names, x.name)
	}
	return names
}

// Extents implements replication.ExtentReader: it asks for ContextAllocation,
// whose flags are StateHole and StateZero. The error is errors.ErrUnsupported
// if the server does not know that. A server whose answers tell of less than 64 KiB each, after
// the first few hundred, is not asked on: the rest of the range is data then, which costs less
// to read than to ask about.
func (c *Client) Extents(off, n int64, yield func(n int64, flags uint32) bool) error {
	left, err := c.status(ContextAllocation, off, n, freeAnswers+n/usefulAnswer, yield)
	if err == nil && left > 0 {
		yield(left, 0)
	}
	return err
}

const (
	maxStatus    = 1 << 30  // of one request
	freeAnswers  = 256      // to a Status or Extents, however little each tells of
	usefulAnswer = 64 << 10 // of how many bytes each tells that Extents asks for beside these, on average
	leastAnswer  = 512      // and Status
)

// Status calls yield with one extent of a metadata context after another, of n
// bytes and with those flags, that together cover [off, off+n) from off on,
// until yield returns false. Neighbours may have the same flags. It asks the
// server as often as is needed; no more than the answer to one request is kept
// in memory. The error is errors.ErrUnsupported if [Client.Contexts] does not
// have the context, and a *ProtocolError, with a part yielded, if a server's answers, after the
// first few hundred, tell of less than 512 bytes each. It is called from any goroutine; yield may
// use the client.
func (c *Client) Status(context string, off, n int64, yield func(n int64, flags uint32) bool) error {
	most := freeAnswers + n/leastAnswer
	left, err := c.status(context, off, n, most, yield)
	if err == nil && left > 0 {
		return &ProtocolError{fmt.Sprintf("block status of %d bytes, but for %d, in answers of number", n, left), uint64(most)}
	}
	return err
}

// status does what Status does with so many requests at most. It returns for how many bytes more
// would have been needed.
func (c *Client) status(context string, off, n, most int64, yield func(n int64, flags uint32) bool) (left int64, err error) {
	if err := c.check(off, n, false); err != nil {
		return 0, err
	}
	at := slices.IndexFunc(c.contexts, func(x clientContext) bool { return x.name == context })
	if at < 0 {
		return 0, fmt.Errorf("nbd: metadata context %s: %w", context, errors.ErrUnsupported)
	}
	answer := statusAnswer{id: c.contexts[at].id}
	for end := off + n; off < end; most-- {
		if most == 0 {
			return end - off, nil
		}
		answer.seen, answer.extents = 0, answer.extents[:0]
		req := request{cmd: cmdBlockStatus, off: uint64(off), n: uint32(min(end-off, maxStatus))}
		if err := c.wait(c.begin(ask{request: req, status: &answer})); err != nil {
			return 0, err
		}
		for _, x := range answer.extents {
			k := min(int64(x.n), end-off) // the last one may go beyond the range that was asked for
			if k == 0 {
				break
			}
			if !yield(k, x.flags) {
				return 0, nil
			}
			off += k
		}
	}
	return 0, nil
}
