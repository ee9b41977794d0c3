package mapping

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Resident returns how many pages of a mapping the kernel has given memory for. p begins
// with a page.
func Resident(p []byte) (pages int, err error) {
	size := os.Getpagesize()
	list := make([]byte, (len(p)+size-1)/size)
	if len(list) == 0 {
		return 0, nil
	}
	if _, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)), uintptr(unsafe.Pointer(&list[0]))); errno != 0 {
		return 0, os.NewSyscallError("mincore", errno)
	}
	for _, b := range list {
		pages += int(b & 1)
	}
	return pages, nil
}
