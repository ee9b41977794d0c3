package uffd

// A Mode says which faults in a range a userfaultfd reports
// (UFFDIO_REGISTER_MODE_*).
type Mode uint64

// The modes, which may be combined.
const (
	ModeMissing      Mode = 1 << 0
	ModeWriteProtect Mode = 1 << 1
)

// A Fault is a thread that waits for a page.
type Fault struct {
	Addr   uintptr // where: the first byte of the page of the host
	Write  bool    // the access that faulted is a write
	WP     bool    // the page is there, and protected
	Thread uint32  // the thread that faulted; with [ThreadID] only
}

// A Region is pages next to each other that were written, as addresses.
type Region struct {
	Start, End uintptr // End is behind the last byte
	_          uint64  // the kernel's categories
}
