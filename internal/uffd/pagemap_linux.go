//go:build linux && (amd64 || arm64)

package uffd

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Pagemap is /proc/self/pagemap, for [Pagemap.Scan].
type Pagemap struct {
	k      kernel
	fd     int
	arg    scanArg
	vec    []Region
	closed bool
}

// OpenPagemap opens it. The error is a [*FeatureError] where the kernel, older than Linux
// 6.7 or without CONFIG_PROC_PAGE_MONITOR, cannot scan.
func OpenPagemap() (*Pagemap, error) { return openPagemap(linux{}) }

func openPagemap(k kernel) (*Pagemap, error) {
	fd, err := unix.Open("/proc/self/pagemap", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil, &FeatureError{What: "/proc/self/pagemap (CONFIG_PROC_PAGE_MONITOR, and a mounted /proc)"}
	}
	if err != nil {
		return nil, fmt.Errorf("uffd: %w", os.NewSyscallError("open /proc/self/pagemap", err))
	}
	p := &Pagemap{k: k, fd: fd, vec: make([]Region, 1024)}
	p.arg = scanArg{size: uint64(unsafe.Sizeof(p.arg))} // of nothing
	if _, err := p.k.ioctl(fd, pagemapScan, unsafe.Pointer(&p.arg)); errors.Is(err, unix.ENOTTY) {
		unix.Close(fd)
		return nil, &FeatureError{What: "PAGEMAP_SCAN (Linux 6.7)"}
	}
	return p, nil
}

// Scan protects every page of mem that was written since it was protected last, and calls
// fn for each run of them, in order; the kernel finds and protects a page in one step. mem
// is registered with an [FD] that has [WPAsync], in [ModeWriteProtect]. fn must not write
// mem. After an error all of mem counts as written: the kernel may have protected pages that
// fn was not called for.
func (p *Pagemap) Scan(mem []byte, fn func(Region)) error {
	if p.closed {
		return ErrClosed
	}
	if len(mem) == 0 {
		return nil
	}
	start := uintptr(unsafe.Pointer(unsafe.SliceData(mem)))
	end := uint64(start) + uint64(len(mem))
	for at := uint64(start); at < end; {
		p.arg = scanArg{
			size: uint64(unsafe.Sizeof(p.arg)), flags: scanProtect | scanCheckAsync, start: at, end: end,
			vec: unsafe.Pointer(&p.vec[0]), vecLen: uint64(len(p.vec)),
			categoryMask: pageIsWritten, r: pageIsWritten,
		}
		n, err := p.k.ioctl(p.fd, pagemapScan, unsafe.Pointer(&p.arg))
		if errors.Is(err, unix.EPERM) {
			return fmt.Errorf("uffd: PAGEMAP_SCAN: memory at %#x+%#x is not all registered for asynchronous write-protection: %w", start, len(mem), err)
		}
		if err != nil {
			return fmt.Errorf("uffd: %w", os.NewSyscallError("ioctl PAGEMAP_SCAN", err))
		}
		for _, r := range p.vec[:n] {
			fn(r)
		}
		if p.arg.walkEnd <= at {
			return fmt.Errorf("uffd: PAGEMAP_SCAN does not advance at %#x", at)
		}
		at = p.arg.walkEnd
	}
	return nil
}

// Close closes the file.
func (p *Pagemap) Close() error {
	if p.closed {
		return nil
	}
	p.closed = true
	return os.NewSyscallError("close pagemap", unix.Close(p.fd))
}
