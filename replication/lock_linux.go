package replication

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

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

// LockedBy reports whether a process has the image of that name locked, as OpenFile does, and which: its number,
// or 0 if that is not known, since it is another user's, or of another container. It does not lock.
func LockedBy(name string) (locked bool, pid int, err error) {
	f, err := os.Open(name)
	if err != nil {
		return false, 0, err
	}
	defer f.Close()
	lock := unix.Flock_t{Type: unix.F_WRLCK}
	err = retry(f, "fcntl", func(fd int) error { return unix.FcntlFlock(uintptr(fd), unix.F_OFD_GETLK, &lock) })
	switch {
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOLCK):
		return false, 0, nil // a file system without locks
	case err != nil || lock.Type == unix.F_UNLCK:
		return false, 0, err
	case lock.Pid > 0:
		return true, int(lock.Pid), nil
	}
	st, err := f.Stat()
	if err != nil {
		return true, 0, nil
	}
	// The kernel does not say which process has a lock of an open file. The descriptors of
	// each process say which files it has open.
	fds, _ := filepath.Glob("/proc/[0-9]*/fd/[0-9]*")
	for _, fd := range fds {
		if of, err := os.Stat(fd); err != nil || !os.SameFile(of, st) {
			continue
		}
		of := filepath.Dir(filepath.Dir(fd))
		info, err := os.ReadFile(filepath.Join(of, "fdinfo", filepath.Base(fd)))
		if err == nil && bytes.Contains(info, []byte("lock:")) {
			pid, _ := strconv.Atoi(filepath.Base(of))
			return true, pid, nil
		}
	}
	return true, 0, nil
}

// birth tells a file from another of the same name: its inode number and the
// time at which it was made. The file of a block device is made anew when the system starts, so that it is
// what deviceName returns for the device. It is zero where the system has no way to ask; where it could not
// be asked now there is an error, since another answer would be taken for another file.
func birth(f *os.File) (id [32]byte, err error) {
	var st unix.Statx_t
	err = retry(f, "statx", func(fd int) error {
		return unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_TYPE|unix.STATX_INO|unix.STATX_BTIME, &st)
	})
	switch {
	case errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EINVAL), errors.Is(err, unix.EPERM): // an old kernel, or a filter of system calls
		return id, nil
	case err != nil:
		return id, err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFBLK {
		return deviceName("/sys/dev/block", st.Rdev_major, st.Rdev_minor), nil
	}
	copy(id[:], fmt.Sprintf("%x", st.Ino))
	if st.Mask&unix.STATX_BTIME != 0 {
		copy(id[16:], fmt.Sprintf("%x.%x", uint32(st.Btime.Sec), st.Btime.Nsec))
	}
	return id, nil
}
