package replication

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// lockFile takes the image for this open file alone, until it is closed. The
// lock is of the open file description, so that another File of the same
// process meets it too, and so does a QEMU.
func lockFile(f *os.File) error {
	err := retry(f, "fcntl", func(fd int) error {
		return unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK})
	})
	switch {
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EACCES):
		return fmt.Errorf("%w: %s", ErrLocked, f.Name())
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOLCK):
		return nil // a file system without locks
	}
	return err
}

// unlockFile gives the lock up also where a process that is being started has a copy
// of the descriptor for a moment, which a close would leave it to.
func unlockFile(f *os.File) {
	retry(f, "fcntl", func(fd int) error {
		return unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_UNLCK})
	})
}

// birth tells a file from another of the same name: its inode number and the
// time at which it was made. It is zero where the system has no way to ask; where it could not
// be asked now there is an error, since another answer would be taken for another file.
func birth(f *os.File) (id [32]byte, err error) {
	var st unix.Statx_t
	err = retry(f, "statx", func(fd int) error {
		return unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_INO|unix.STATX_BTIME, &st)
	})
	switch {
	case errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EINVAL), errors.Is(err, unix.EPERM): // an old kernel, or a filter of system calls
		return id, nil
	case err != nil:
		return id, err
	}
	copy(id[:], fmt.Sprintf("%x", st.Ino))
	if st.Mask&unix.STATX_BTIME != 0 {
		copy(id[16:], fmt.Sprintf("%x.%x", uint32(st.Btime.Sec), st.Btime.Nsec))
	}
	return id, nil
}
