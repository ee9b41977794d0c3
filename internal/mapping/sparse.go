package mapping

import (
	"errors"
	"fmt"
)

// NewSparse is [New] for memory of which single pages are given back with
// [Release]: a page that is written costs that page and no larger one. Where
// the system cannot do it the error wraps [errors.ErrUnsupported].
func NewSparse(size int) ([]byte, error) {
	if !sparse {
		return nil, fmt.Errorf("mapping: giving pages back is for Linux: %w", errors.ErrUnsupported)
	}
	p, err := New(size)
	if err != nil || len(p) == 0 {
		return p, err
	}
	if err := smallPages(p); err != nil {
		return nil, errors.Join(fmt.Errorf("mapping: %w", err), Free(p))
	}
	return p, nil
}

// Release gives the memory of p, whole pages of what NewSparse gave out, back to
// the system. They stay mapped, and read as zeros.
func Release(p []byte) error {
	if len(p) == 0 {
		return nil
	}
	if err := release(p); err != nil {
		return fmt.Errorf("mapping: release %d bytes: %w", len(p), err)
	}
	return nil
}
