package replication

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// Flags of fallocate(2), linux/falloc.h.
const (
	fallocKeepSize  = 0x01
	fallocPunchHole = 0x02
)

// checkFlags refuses a file whose flags do not let it be read and written at any place
// and from any memory. With O_DIRECT the system takes only what is aligned as the device wants
// it, and otherwise returns EINVAL, so that a guest would meet it at its first small write;
// with O_APPEND it writes at the end.
func checkFlags(f *os.File) error {
	var flags int
	err := retry(f, "fcntl", func(fd int) (err error) {
		flags, err = unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
		return err
	})
	switch {
	case err != nil:
		return err
	case flags&unix.O_DIRECT != 0:
		return fmt.Errorf("replication: %s is open with O_DIRECT, and a disk is read and written in units that its device may not take: open it without: %w",
			f.Name(), errors.ErrUnsupported)
	case flags&unix.O_APPEND != 0:
		return fmt.Errorf("replication: %s is open with O_APPEND, and a disk is not only written at its end: open it without: %w",
			f.Name(), errors.ErrUnsupported)
	}
	return nil
}

// readOnly returns why f cannot be written, as far as the system says so. What it cannot be
// asked about may be written: if that is wrong, the first write tells.
func readOnly(f *os.File) error {
	var flags, set int
	err := retry(f, "fcntl", func(fd int) (err error) {
		flags, err = unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
		return err
	})
	if err == nil && flags&unix.O_ACCMODE == unix.O_RDONLY {
		return fmt.Errorf("replication: %s is open for reading only: %w", f.Name(), syscall.EROFS)
	}
	if st, err := f.Stat(); err != nil || st.Mode()&(os.ModeDevice|os.ModeCharDevice) != os.ModeDevice {
		return nil
	}
	err = retry(f, "ioctl", func(fd int) (err error) {
		set, err = unix.IoctlGetInt(fd, unix.BLKROGET)
		return err
	})
	if err == nil && set != 0 {
		return fmt.Errorf("replication: the device %s is read-only (see blockdev --getro): %w", f.Name(), syscall.EROFS)
	}
	return nil
}

// punchHole deallocates a range of f, which then reads as zeroes; parts of
// file system blocks at its ends are zeroed. The error is
// errors.ErrUnsupported where the file system cannot do it, and errPunchAlign
// where a device can, but not for this range.
func punchHole(f *os.File, off, n int64) error {
	if n == 0 {
		return nil // fallocate refuses it
	}
	err := retry(f, "fallocate", func(fd int) error {
		return syscall.Fallocate(fd, fallocPunchHole|fallocKeepSize, off, n)
	})
	if errors.Is(err, syscall.EINVAL) { // the range is inside the file
		return errPunchAlign
	}
	return err
}

// reserve gives the first n bytes of a regular file their storage, so that writing them takes no more, where the
// file system can do that and does not write to another place each time. What is there stays.
func reserve(f *os.File, n int64) error {
	st, err := f.Stat()
	if err != nil || !st.Mode().IsRegular() {
		return err
	}
	err = retry(f, "fallocate", func(fd int) error {
		return syscall.Fallocate(fd, fallocKeepSize, 0, n)
	})
	if noRoom(err) {
		return fmt.Errorf("replication: %s: no room for %d bytes that a failover needs: %w", f.Name(), n, err)
	}
	return nil // it cannot
}

// datasync makes f's content stable. Unlike fsync it leaves out time stamps.
func datasync(f *os.File) error {
	return retry(f, "fdatasync", syscall.Fdatasync)
}

// startSync begins to write f to its device. It does not wait, so that a failure is
// reported by the next fdatasync.
func startSync(f *os.File) {
	retry(f, "sync_file_range", func(fd int) error {
		return unix.SyncFileRange(fd, 0, 0, unix.SYNC_FILE_RANGE_WRITE)
	})
}

func retry(f *os.File, op string, call func(fd int) error) error {
	c, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var callErr error
	err = c.Control(func(fd uintptr) {
		for {
			if callErr = call(int(fd)); callErr != syscall.EINTR {
				return
			}
		}
	})
	if err != nil {
		return err
	}
	return os.NewSyscallError(op, callErr)
}
