package mapping

import (
	"errors"
	"fmt"
	"os"
)

// NewSparse is [New] for memory of which single pages are given back with
// [Release]: a page of 4 KiB that is written costs that page and no larger one.
// Where the system cannot do it, or has larger pages, the error wraps
// [errors.ErrUnsupported].
func NewSparse(size int) ([]byte, error) {
	if err := supported(os.Getpagesize()); err != nil {
		return nil, err
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

// pageSize is the size of a page of a guest: memory is given back in whole pages.
const pageSize = 4096

// supported returns why there is no sparse memory on a host with pages of size
// bytes: of larger ones the system would take what lies beside, or nothing.
func supported(size int) error {
	switch {
	case !sparse:
		return fmt.Errorf("mapping: giving pages back is for Linux: %w", errors.ErrUnsupported)
	case size != pageSize:
		return fmt.Errorf("mapping: giving back %d bytes of a page of %d: %w", pageSize, size, errors.ErrUnsupported)
	}
	return nil
}

// Release gives the memory of p, whole pages of what NewSparse gave out, back to
// the system. They stay mapped, and read as zeros. After an error they are as they
// were: an old kernel (before 5.18) takes no memory that is locked.
func Release(p []byte) error {
	if len(p) == 0 {
		return nil
	}
	if err := release(p); err != nil {
		return fmt.Errorf("mapping: release %d bytes: %w", len(p), err)
	}
	return nil
}
