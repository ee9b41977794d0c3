// Package mapping gives out zeroed memory outside the Go heap, where a large
// area costs address space only until it is written.
//
// The garbage collector neither counts nor scans nor frees it, and the race
// detector does not track it, which suits memory that a guest shares. Where
// the platform has no anonymous mappings the memory is ordinary Go memory.
package mapping

import "fmt"

// New returns size zeroed bytes, aligned to a page of the host. The memory
// is the caller's until it gives it to [Free]. The error is the operating
// system's, if it has no memory to promise.
func New(size int) ([]byte, error) {
	if size < 0 {
		return nil, fmt.Errorf("mapping: size %d", size)
	}
	if size == 0 {
		return nil, nil
	}
	p, err := mmap(size)
	if err != nil {
		return nil, fmt.Errorf("mapping: %d bytes: %w", size, err)
	}
	return p, nil
}

// Free returns what New gave out, whole. The memory must not be touched any
// more, through no slice of it.
func Free(p []byte) error {
	if len(p) == 0 {
		return nil
	}
	if err := munmap(p); err != nil {
		return fmt.Errorf("mapping: free: %w", err)
	}
	return nil
}
