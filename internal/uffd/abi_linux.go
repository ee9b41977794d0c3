//go:build linux && (amd64 || arm64)

package uffd

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// Requests (linux/userfaultfd.h, linux/fs.h).
const (
	uffdioAPI          = 0xc018aa3f
	uffdioRegister     = 0xc020aa00
	uffdioUnregister   = 0x8010aa01
	uffdioWake         = 0x8010aa02
	uffdioCopy         = 0xc028aa03
	uffdioZeropage     = 0xc020aa04
	uffdioWriteProtect = 0xc018aa06
	uffdIOCNew         = 0xaa00 // on /dev/userfaultfd
	pagemapScan        = 0xc0606610
)

const (
	apiVersion = 0xaa

	copyDontWake = 1 << 0
	wpProtect    = 1 << 0

	eventPagefault = 0x12
	faultWrite     = 1 << 0
	faultWP        = 1 << 1

	scanProtect    = 1 << 0 // PM_SCAN_WP_MATCHING
	scanCheckAsync = 1 << 1 // PM_SCAN_CHECK_WPASYNC
	pageIsWritten  = 1 << 1
)

// The structures of the requests. Addresses in them that lead to memory which Go may
// have allocated are pointers, so that it stays where it is.
type (
	apiArg   struct{ api, features, ioctls uint64 }
	rangeArg struct{ start, length uint64 }

	registerArg struct {
		rangeArg
		mode, ioctls uint64
	}
	copyArg struct {
		dst    uint64
		src    unsafe.Pointer
		length uint64
		mode   uint64
		copied int64
	}
	zeroArg struct {
		rangeArg
		mode   uint64
		zeroed int64
	}
	protectArg struct {
		rangeArg
		mode uint64
	}
	scanArg struct {
		size, flags, start, end, walkEnd                 uint64
		vec                                              unsafe.Pointer
		vecLen, maxPages                                 uint64
		categoryInverted, categoryMask, categoryAnyOf, r uint64
	}

	// message is struct uffd_msg of a page fault.
	message struct {
		event          uint8
		_              [7]byte
		flags, address uint64
		thread         uint32
		_              uint32
	}
)

// kernel has the system calls that this package makes; tests replace it.
type kernel interface {
	// userfaultfd is userfaultfd(2).
	userfaultfd(flags int) (int, error)
	// device opens /dev/userfaultfd and makes a userfaultfd of it.
	device(flags int) (int, error)
	// ioctl returns the request's number, if it has one.
	ioctl(fd int, request uintptr, arg unsafe.Pointer) (int, error)
}

// linux is the kernel, by its system calls.
type linux struct{}

func (linux) userfaultfd(flags int) (int, error) {
	fd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, uintptr(flags), 0, 0)
	if errno != 0 {
		return -1, errno
	}
	return int(fd), nil
}

func (linux) device(flags int) (int, error) {
	dev, err := unix.Open("/dev/userfaultfd", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(dev)
	fd, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(dev), uffdIOCNew, uintptr(flags))
	if errno != 0 {
		return -1, errno
	}
	return int(fd), nil
}

// ioctl repeats what a signal interrupts. The conversion to an address happens in the
// argument list of the system call, where the compiler keeps the object alive and in
// place (unsafe.Pointer, rule 4).
func (linux) ioctl(fd int, request uintptr, arg unsafe.Pointer) (int, error) {
	for {
		n, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(arg))
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR:
		default:
			return 0, errno
		}
	}
}
