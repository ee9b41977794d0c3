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

// release says that p is not needed. Of memory that is locked (mlockall) a newer
// kernel wants to hear it in another word, and an older one not at all.
func release(p []byte) error {
	err := unix.Madvise(p, unix.MADV_DONTNEED)
	if errors.Is(err, unix.EINVAL) {
		err = unix.Madvise(p, unix.MADV_DONTNEED_LOCKED)
	}
	return err
}
