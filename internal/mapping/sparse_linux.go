package mapping

import (
	"errors"

	"golang.org/x/sys/unix"
)

const sparse = true

// smallPages asks for pages of the ordinary size: a transparent huge page would
// cost 2 MiB for each 4 KiB that is written. A kernel without them says EINVAL.
func smallPages(p []byte) error {
	if err := unix.Madvise(p, unix.MADV_NOHUGEPAGE); err != nil && !errors.Is(err, unix.EINVAL) {
		return err
	}
	return nil
}

func release(p []byte) error { return unix.Madvise(p, unix.MADV_DONTNEED) }
