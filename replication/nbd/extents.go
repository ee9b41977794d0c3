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
// if the server does not know that.
func (c *Client) Extents(off, n int64, yield func(n int64, flags uint32) bool) error {
	return c.Status(ContextAllocation, off, n, yield)
}

const maxStatus = 1 << 30 // of one request

// Status calls yield with one extent of a metadata context after another, of n
// bytes and with those flags, that together cover [off, off+n) from off on,
// until yield returns false. Neighbours may have the same flags. It asks the
// server as often as is needed; no more than the answer to one request is kept
// in memory. The error is errors.ErrUnsupported if [Client.Contexts] does not
// have the context. It is called from any goroutine; yield may use the client.
func (c *Client) Status(context string, off, n int64, yield func(n int64, flags uint32) bool) error {
	if err := c.check(off, n, false); err != nil {
		return err
	}
	at := slices.IndexFunc(c.contexts, func(x clientContext) bool { return x.name == context })
	if at < 0 {
		return fmt.Errorf("nbd: metadata context %s: %w", context, errors.ErrUnsupported)
	}
	answer := statusAnswer{id: c.contexts[at].id}
	for end := off + n; off < end; {
		answer.seen, answer.extents = 0, answer.extents[:0]
		req := request{cmd: cmdBlockStatus, off: uint64(off), n: uint32(min(end-off, maxStatus))}
		if err := c.wait(c.begin(ask{request: req, status: &answer})); err != nil {
			return err
		}
		for _, x := range answer.extents {
			k := min(int64(x.n), end-off) // the last one may go beyond the range that was asked for
			if k == 0 {
				break
			}
			if !yield(k, x.flags) {
				return nil
			}
			off += k
		}
	}
	return nil
}
