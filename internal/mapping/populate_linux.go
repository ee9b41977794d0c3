package mapping

import "golang.org/x/sys/unix"

// populate asks for it; a kernel before 5.14 says EINVAL.
func populate(p []byte) { _ = unix.Madvise(p, unix.MADV_POPULATE_WRITE) }
