package nbd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
)

// maxExtents bounds the extents of one context in one answer to block status. A client
// that wants more asks again.
const maxExtents = 4096

// statusLen returns the greatest length of the answer to a request for block status.
func (s *session) statusLen(req *request) int {
	k := maxExtents
	if req.flags&cmdFlagReqOne != 0 {
		k = 1
	}
	return len(s.contexts) * (chunkLen + 4 + k*extentLen)
}

// status appends the answer to block status to p, which has room for it: one
// chunk for each context that the client has selected.
func (s *session) status(req *request, p []byte) ([]byte, error) {
	be := binary.BigEndian
	most := maxExtents
	if req.flags&cmdFlagReqOne != 0 {
		most = 1
	}
	for i, c := range s.contexts {
		head := chunk{typ: chunkStatus, handle: req.handle}
		if i == len(s.contexts)-1 {
			head.flags = chunkDone
		}
		at := len(p)
		p = head.append(p)
		p = be.AppendUint32(p, c.id)
		count, left := 0, int64(req.n)
		err := c.Extents(int64(req.off), left, func(n int64, flags uint32) bool {
			n = min(n, left)
			if n <= 0 {
				return left > 0
			}
			if last := len(p) - extentLen; count > 0 && be.Uint32(p[last+4:]) == flags {
				be.PutUint32(p[last:], be.Uint32(p[last:])+uint32(n)) // together at most req.n
			} else if count == most {
				return false
			} else {
				p = be.AppendUint32(p, uint32(n))
				p = be.AppendUint32(p, flags)
				count++
			}
			left -= n
			return left > 0
		})
		if err != nil {
			return nil, err
		}
		if count == 0 {
			return nil, fmt.Errorf("nbd: metadata context %s has nothing at %d", c.Name, req.off)
		}
		be.PutUint32(p[at+16:], uint32(4+count*extentLen))
	}
	return p, nil
}

// extentsOf yields the extents of a disk. If the disk does not know them, it yields
// the whole range as data.
func extentsOf(d Disk, off, n int64, yield func(n int64, flags uint32) bool) error {
	if x, ok := d.(extenter); ok {
		if err := x.Extents(off, n, yield); !errors.Is(err, errors.ErrUnsupported) {
			return err
		}
	}
	yield(min(n, math.MaxUint32), 0)
	return nil
}
