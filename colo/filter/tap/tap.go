package tap

import "fmt"

// Config configures a [Device]. The zero value is usable.
type Config struct {
	// Name of the interface, of up to 15 bytes. It may have one %d, for which
	// the kernel finds a number; empty is "tap%d". If there is a persistent
	// interface of that name, it is used.
	Name string

	// VNetHdrLen is the length in bytes of the virtio-net header that each
	// frame begins with: 10, 12, or 0 for none. No offload is asked for, so
	// that the kernel's headers say nothing and its checksums are complete; of
	// a frame that is written, the kernel believes the header.
	VNetHdrLen int
}

// An Error says what failed. It wraps the error of the kernel, or
// errors.ErrUnsupported.
type Error struct {
	Op   string // "open", "read", "write"
	Name string // of the interface, as far as it is known
	Err  error
}

func (e *Error) Error() string { return fmt.Sprintf("tap: %s %q: %v", e.Op, e.Name, e.Err) }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }
