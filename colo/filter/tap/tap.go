package tap

import "fmt"

// Config configures a [Device]. The zero value is usable.
type Config struct {
	// Name of the interface, of up to 15 bytes. It may have one %d, for which
	// the kernel finds a number; empty is "tap%d". If there is a persistent
	// interface of that name, it is used.
	Name string

	// VNetHdrLen is the length in bytes of the virtio-net header that each frame
	// begins with: 10, 12 with mergeable buffers, 20 with a hash report, 24 with
	// tunnels, or 0 for none. The kernel fills in and looks at the first 10 bytes, and
	// what follows is zero: the device that puts a frame into the guest's ring sets
	// num_buffers. For a frame that is written, the kernel does what the header asks for:
	// it completes a partial checksum, and cuts a frame that is to be cut, whatever
	// Offload says.
	VNetHdrLen int

	// Offload names the work that the kernel may leave to the reader of its frames, as a guest has
	// negotiated it. It needs VNetHdrLen. Zero is nothing: then the headers that are
	// read say nothing, checksums are complete, and no frame is longer than the MTU.
	Offload Offload
}

// Offload is a set of bits, one for each kind of work on a frame that the reader of an
// interface takes over from the kernel (TUNSETOFFLOAD). A guest takes it over by the features
// VIRTIO_NET_F_GUEST_CSUM, GUEST_TSO4 and so on.
type Offload uint

// What may be left to the reader. All but the first need the first, too.
const (
	OffloadChecksum Offload = 1 << iota // checksums may be partial
	OffloadTSO4                         // TCP over IPv4 of up to 64 KiB
	OffloadTSO6                         // over IPv6
	OffloadECN                          // such frames with congestion marks
	OffloadUFO                          // UDP to be cut into fragments; kernels since 4.14 send none
	OffloadUSO4                         // UDP over IPv4 to be cut into datagrams, since Linux 6.2
	OffloadUSO6                         // over IPv6

	OffloadTCP = OffloadChecksum | OffloadTSO4 | OffloadTSO6 | OffloadECN
)

// An Error says what failed. It wraps the error of the kernel, or
// errors.ErrUnsupported.
type Error struct {
	Op   string // "open", "read", "write", "offload"
	Name string // of the interface, as far as it is known
	Err  error
}

func (e *Error) Error() string { return fmt.Sprintf("tap: %s %q: %v", e.Op, e.Name, e.Err) }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }
