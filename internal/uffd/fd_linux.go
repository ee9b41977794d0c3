//go:build linux && (amd64 || arm64)

package uffd

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// FD is a userfaultfd.
type FD struct {
	k        kernel
	fd       int
	file     *os.File // fd, for Faults, in Go's poller
	features Feature
	closed   atomic.Bool
	args     sync.Pool // of *copyArg
	page     uintptr
}

// Open makes a userfaultfd that sees what user code and the kernel touch, with the
// features asked for. Its error is a [*FeatureError], a [*PermissionError], or that of the
// system call.
func Open(features Feature) (*FD, error) { return open(linux{}, features) }

func open(k kernel, features Feature) (*FD, error) {
	fd, err := create(k)
	if err != nil {
		return nil, err
	}
	api := apiArg{api: apiVersion, features: uint64(features)}
	if _, err := k.ioctl(fd, uffdioAPI, unsafe.Pointer(&api)); err != nil {
		unix.Close(fd)
		return nil, refused(k, features, err)
	}
	if missing := features &^ Feature(api.features); missing != 0 {
		unix.Close(fd)
		return nil, &FeatureError{Missing: missing}
	}
	f := &FD{k: k, fd: fd, file: os.NewFile(uintptr(fd), "userfaultfd"), features: features, page: uintptr(os.Getpagesize())}
	f.args.New = func() any { return new(copyArg) }
	return f, nil
}

// create makes a userfaultfd by the system call or, if the process may not use
// that, by /dev/userfaultfd.
func create(k kernel) (int, error) {
	const flags = unix.O_CLOEXEC | unix.O_NONBLOCK
	fd, err := k.userfaultfd(flags)
	switch {
	case err == nil:
		return fd, nil
	case errors.Is(err, unix.ENOSYS):
		return -1, &FeatureError{What: "userfaultfd(2) (CONFIG_USERFAULTFD)"}
	case !errors.Is(err, unix.EPERM):
		return -1, os.NewSyscallError("userfaultfd", err)
	}
	call := err
	if fd, err = k.device(flags); err != nil {
		return -1, &PermissionError{Call: os.NewSyscallError("userfaultfd", call), Device: os.NewSyscallError("/dev/userfaultfd", err)}
	}
	return fd, nil
}

// refused returns why the kernel did not take the features. It asks the kernel which
// features there are, with another descriptor that requests none.
func refused(k kernel, features Feature, err error) error {
	fd, cerr := create(k)
	if cerr != nil {
		return cerr
	}
	defer unix.Close(fd)
	api := apiArg{api: apiVersion}
	if _, err := k.ioctl(fd, uffdioAPI, unsafe.Pointer(&api)); err == nil {
		if missing := features &^ Feature(api.features); missing != 0 {
			return &FeatureError{Missing: missing}
		}
	}
	return os.NewSyscallError("ioctl UFFDIO_API", err)
}

// span returns where mem is, if it is whole pages.
func (f *FD) span(mem []byte) (rangeArg, error) {
	if f.closed.Load() {
		return rangeArg{}, ErrClosed
	}
	start := uintptr(unsafe.Pointer(unsafe.SliceData(mem)))
	if len(mem) == 0 || start%f.page != 0 || uintptr(len(mem))%f.page != 0 {
		return rangeArg{}, fmt.Errorf("%w: %d bytes at %#x", ErrRange, len(mem), start)
	}
	return rangeArg{uint64(start), uint64(len(mem))}, nil
}

// Register makes the kernel report on mem, which must be memory of a mapping, and not Go's
// own. If another userfaultfd has the memory, the error wraps [unix.EBUSY].
// It stays registered until Unregister, Close, or the end of the mapping.
func (f *FD) Register(mem []byte, mode Mode) error {
	at, err := f.span(mem)
	if err != nil {
		return err
	}
	arg := registerArg{rangeArg: at, mode: uint64(mode)}
	if _, err := f.k.ioctl(f.fd, uffdioRegister, unsafe.Pointer(&arg)); err != nil {
		err = os.NewSyscallError("ioctl UFFDIO_REGISTER", err)
		switch {
		case errors.Is(err, unix.EBUSY):
			return fmt.Errorf("uffd: %d bytes at %#x are registered with another userfaultfd: %w", len(mem), at.start, err)
		case errors.Is(err, unix.EINVAL):
			return fmt.Errorf("uffd: %d bytes at %#x are not of a kind that can be registered so (a file's mapping, or not mapped): %w", len(mem), at.start, err)
		}
		return fmt.Errorf("uffd: %d bytes at %#x: %w", len(mem), at.start, err)
	}
	return nil
}

// Unregister undoes Register: it lifts the protection of every page of mem, and wakes the
// threads that wait for one.
func (f *FD) Unregister(mem []byte) error {
	at, err := f.span(mem)
	if err != nil {
		return err
	}
	_, err = f.k.ioctl(f.fd, uffdioUnregister, unsafe.Pointer(&at))
	return os.NewSyscallError("ioctl UFFDIO_UNREGISTER", err)
}

// Copy places pages that are missing in dst: each gets the bytes of src, which is as long,
// all at once, and threads that wait for it go on. It returns how many bytes were placed. A
// page that is there already ends it with [ErrExists]; the caller wakes the threads that wait
// for that page with Wake.
func (f *FD) Copy(dst, src []byte) (int, error) {
	at, err := f.span(dst)
	if err == nil && len(src) != len(dst) {
		err = fmt.Errorf("%w: %d bytes for %d", ErrRange, len(src), len(dst))
	}
	if err != nil {
		return 0, err
	}
	arg := f.args.Get().(*copyArg)
	defer f.args.Put(arg)
	done := 0
	for {
		*arg = copyArg{dst: at.start + uint64(done), src: unsafe.Pointer(&src[done]), length: uint64(len(dst) - done)}
		_, err := f.k.ioctl(f.fd, uffdioCopy, unsafe.Pointer(arg))
		done += int(max(arg.copied, 0))
		arg.src = nil
		switch {
		case err == nil:
			return done, nil
		case errors.Is(err, unix.EAGAIN): // a part of it, or mappings change
			runtime.Gosched()
		case errors.Is(err, unix.EEXIST):
			return done, ErrExists
		default:
			return done, os.NewSyscallError("ioctl UFFDIO_COPY", err)
		}
	}
}

// Zero places pages of zeros, which cost no memory until they are written. It cannot place
// huge pages.
func (f *FD) Zero(dst []byte) (int, error) {
	at, err := f.span(dst)
	if err != nil {
		return 0, err
	}
	done := 0
	for {
		arg := zeroArg{rangeArg: rangeArg{at.start + uint64(done), at.length - uint64(done)}}
		_, err := f.k.ioctl(f.fd, uffdioZeropage, unsafe.Pointer(&arg))
		done += int(max(arg.zeroed, 0))
		switch {
		case err == nil:
			return done, nil
		case errors.Is(err, unix.EAGAIN):
			runtime.Gosched()
		case errors.Is(err, unix.EEXIST):
			return done, ErrExists
		default:
			return done, os.NewSyscallError("ioctl UFFDIO_ZEROPAGE", err)
		}
	}
}

// Wake lets every thread that waits for a page of mem try again.
func (f *FD) Wake(mem []byte) error {
	at, err := f.span(mem)
	if err != nil {
		return err
	}
	_, err = f.k.ioctl(f.fd, uffdioWake, unsafe.Pointer(&at))
	return os.NewSyscallError("ioctl UFFDIO_WAKE", err)
}

// WriteProtect protects every page of mem, or lifts the protection and wakes the threads that
// wait.
func (f *FD) WriteProtect(mem []byte, on bool) error {
	at, err := f.span(mem)
	if err != nil {
		return err
	}
	arg := protectArg{rangeArg: at}
	if on {
		arg.mode = wpProtect
	}
	for {
		_, err := f.k.ioctl(f.fd, uffdioWriteProtect, unsafe.Pointer(&arg))
		if errors.Is(err, unix.EAGAIN) {
			runtime.Gosched()
			continue
		}
		return os.NewSyscallError("ioctl UFFDIO_WRITEPROTECT", err)
	}
}

// CanWait returns why Faults could not wait here: Go's poller does not take the descriptor,
// as when the system watches as many as it may. Whoever is about to make memory missing asks
// first.
func (f *FD) CanWait() error {
	if err := f.file.SetReadDeadline(time.Time{}); err != nil {
		return fmt.Errorf("uffd: faults cannot be waited for: %w", err)
	}
	return nil
}

// maxFaults is how many faults one read takes.
const maxFaults = 64

// Faults waits until threads wait for pages and stores up to len(buf) of them, each once.
// It waits by way of Go's poller, as a read of a socket does: a system call that waits
// would keep a processor from those who fetch the page, until the scheduler notices, which
// takes longer than to fetch it. After Interrupt or Close it returns [ErrClosed].
func (f *FD) Faults(buf []Fault) (int, error) {
	if len(buf) == 0 {
		return 0, nil
	}
	var messages [maxFaults]message
	const size = int(unsafe.Sizeof(message{}))
	for {
		room := min(len(buf), maxFaults)
		raw := unsafe.Slice((*byte)(unsafe.Pointer(&messages[0])), room*size)
		n, err := f.file.Read(raw)
		switch {
		case f.closed.Load(), errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, os.ErrClosed):
			return 0, ErrClosed
		case err != nil:
			return 0, fmt.Errorf("read userfaultfd: %w", err)
		}
		got := 0
		for _, m := range messages[:n/size] {
			if m.event != eventPagefault {
				continue
			}
			buf[got] = Fault{Addr: uintptr(m.address) &^ (f.page - 1), Write: m.flags&faultWrite != 0, WP: m.flags&faultWP != 0, Thread: m.thread}
			got++
		}
		if got > 0 {
			return got, nil
		}
	}
}

// Interrupt makes Faults return, now and from now on. Threads that wait for a page go on
// waiting.
func (f *FD) Interrupt() {
	// It fails only where the file is closed, and then Faults returns as well.
	_ = f.file.SetReadDeadline(time.Unix(1, 0))
}

// Close closes the userfaultfd. Registered memory becomes ordinary memory, also for threads
// that wait for a page. No other method may be running: after Interrupt the caller first waits
// for Faults to return.
func (f *FD) Close() error {
	if f.closed.Swap(true) {
		return nil
	}
	return f.file.Close()
}

// Populate makes the kernel touch every page of mem for reading, and returns when they are
// there. Go code waits for missing pages in this way.
func Populate(mem []byte) error {
	for {
		err := unix.Madvise(mem, unix.MADV_POPULATE_READ)
		switch err {
		case unix.EINTR, unix.EAGAIN:
			continue
		case unix.EINVAL: // before Linux 5.14
			return readThrough(mem)
		}
		return os.NewSyscallError("madvise MADV_POPULATE_READ", err)
	}
}

// readThrough does what Populate does, by a system call that reads a byte of each page.
func readThrough(mem []byte) error {
	var b [1]byte
	local := []unix.Iovec{{Base: &b[0]}}
	local[0].SetLen(1)
	for len(mem) > 0 {
		page := min(len(mem), os.Getpagesize())
		remote := []unix.RemoteIovec{{Base: uintptr(unsafe.Pointer(&mem[0])), Len: 1}}
		switch _, err := unix.ProcessVMReadv(os.Getpid(), local, remote, 0); err {
		case nil:
			mem = mem[page:]
		case unix.EINTR, unix.EAGAIN:
		default:
			return os.NewSyscallError("process_vm_readv", err)
		}
	}
	return nil
}

// Drop frees the pages of mem, also those of a file in memory that it maps: they are missing
// afterwards, and read as zeros unless they are placed.
func Drop(mem []byte) error {
	if err := unix.Madvise(mem, unix.MADV_DONTNEED); err != nil {
		return os.NewSyscallError("madvise MADV_DONTNEED", err)
	}
	// EINVAL: the memory is not that of a file, so nothing has to be removed from one.
	if err := unix.Madvise(mem, unix.MADV_REMOVE); err != nil && err != unix.EINVAL {
		return os.NewSyscallError("madvise MADV_REMOVE", err)
	}
	return nil
}

// SmallPages keeps the kernel from backing mem with huge pages, of which it would place
// more than was asked for.
func SmallPages(mem []byte) error {
	// EINVAL: a kernel without them, or memory of hugetlbfs.
	if err := unix.Madvise(mem, unix.MADV_NOHUGEPAGE); err != nil && err != unix.EINVAL {
		return os.NewSyscallError("madvise MADV_NOHUGEPAGE", err)
	}
	return nil
}

// HugePages undoes SmallPages: the kernel may back mem with huge pages. The kernel's default
// cannot be restored, but for the memory of a guest huge pages are right.
func HugePages(mem []byte) error {
	if err := unix.Madvise(mem, unix.MADV_HUGEPAGE); err != nil && err != unix.EINVAL {
		return os.NewSyscallError("madvise MADV_HUGEPAGE", err)
	}
	return nil
}
