package replication

import (
	"fmt"
	"io"
	"syscall"
)

// sentinel is an error that errors.Is also finds equal to an errno, which is what a peer
// or a guest is told.
type sentinel struct {
	text  string
	errno syscall.Errno
}

func (e *sentinel) Error() string { return "replication: " + e.text }

func (e *sentinel) Is(target error) bool { return e.errno != 0 && target == error(e.errno) }

// SectorSize is the unit, in bytes, in which disks are addressed. Sizes are multiples of
// it, and a power cut tears no write within a sector.
const SectorSize = 512

// BlockSize is the unit, in bytes, in which overlays keep data. A write saves
// the old content of whole blocks.
const BlockSize = 4096

// Disk is random access storage, whose size changes only by the Grow of a [Grower].
// All methods may be called from several goroutines at the same time; calls whose
// ranges overlap while they run have no defined order. A slice passed in is not
// kept, and an access beyond Size is an error.
type Disk interface {
	io.ReaderAt
	io.WriterAt
	// Size returns the length in bytes, a multiple of SectorSize.
	Size() int64
	// Sync returns when every write that was answered before the call is on
	// stable storage. After an error nothing is known about those writes,
	// and a later Sync that succeeds says nothing about them.
	Sync() error
}

// Trimmer is a Disk that can give back storage. Afterwards the content of the trimmed
// range is undefined.
type Trimmer interface {
	Trim(off, n int64) error
}

// ZeroWriter is a Disk that can zero a range without writing zeroes to it. It may give
// back the storage of the range.
type ZeroWriter interface {
	WriteZeroes(off, n int64) error
}

// FUAWriter is a Disk that can write through to stable storage: when WriteFUA returns,
// this write is stable, and other writes need not be.
type FUAWriter interface {
	WriteFUA(p []byte, off int64) error
}

// SyncStarter is a Disk that can begin to make earlier writes stable without waiting for
// it. The next Sync then takes less time, which matters at a checkpoint, where the guest
// stands still. StartSync promises nothing; an error of what it has begun is returned by
// the next Sync.
type SyncStarter interface {
	StartSync()
}

// WriteChecker is a Disk, or a [Remote], that knows beforehand whether what is written to it can
// become stable, as a connection to a server does. One that cannot is refused where it is given,
// and not when a guest has begun to write.
type WriteChecker interface {
	// CheckWrites returns nil, or why the disk can only be read, or cannot make stable what
	// is written. It does not wait, and always returns the same.
	CheckWrites() error
}

// Errors that a caller can tell apart with errors.Is. The errno that each names matches
// too.
var (
	// ErrNotRunning: the disk is not, or no longer, being replicated. EIO.
	ErrNotRunning error = &sentinel{"not running", syscall.EIO}
	// ErrRunning: Start was called on a disk that is being replicated.
	ErrRunning error = &sentinel{"already running", syscall.EBUSY}
	// ErrRange: an access outside the disk. EINVAL.
	ErrRange error = &sentinel{"outside the disk", syscall.EINVAL}
	// ErrGated: the primary's writes are refused, because a checkpoint or a
	// failover is under way or this side went on alone. ESHUTDOWN.
	ErrGated error = &sentinel{"writes from the primary are refused", syscall.ESHUTDOWN}
	// ErrFull: an overlay has reached its bound. A checkpoint empties it.
	// ENOSPC.
	ErrFull error = &sentinel{"overlay full", syscall.ENOSPC}
	// ErrEpoch: a checkpoint out of order.
	ErrEpoch error = &sentinel{"epoch out of order", 0}
	// ErrLocked: another process, or another File here, uses the image. EBUSY.
	ErrLocked error = &sentinel{"image in use by another", syscall.EBUSY}
	// ErrSize: disks or devices of unequal or unusable size.
	ErrSize error = &sentinel{"size mismatch", 0}
)

// checkRange returns an error unless [off, off+n) is inside a disk of size.
func checkRange(off, n, size int64) error {
	if off < 0 || n < 0 || off > size || n > size-off {
		return fmt.Errorf("%w: %d bytes at %d of %d", ErrRange, n, off, size)
	}
	return nil
}

// maxSize is the size of the largest disk, 1 PiB. What tells its blocks apart takes memory for
// all of them, and a server that lies says any number.
const maxSize = 1 << 50

func checkSize(what string, size int64) error {
	if size > maxSize {
		return fmt.Errorf("%w: %s has %d bytes, and a disk has at most %d", ErrSize, what, size, int64(maxSize))
	}
	if size <= 0 || size%SectorSize != 0 {
		return fmt.Errorf("%w: %s has %d bytes, not a positive multiple of %d", ErrSize, what, size, SectorSize)
	}
	return nil
}

// CheckDisk returns nil if a guest can have d for its disk, on either side, or why it cannot.
// [NewPrimary] and [NewSecondary] ask it too. The error is ErrSize if the size of d is not that
// of a disk (see SectorSize; at most 1 PiB), or if d is an [Aligner] that takes only larger blocks, and what
// CheckWrites returns if d is a [WriteChecker].
func CheckDisk(d Disk) error { return checkDisk("the disk", d) }

// checkDisk returns an error unless d can be the disk of a guest, or a device of its journal.
func checkDisk(what string, d Disk) error {
	if err := checkDevice(what, d); err != nil {
		return err
	}
	return checkSize(what, d.Size())
}

// checkDevice returns an error unless d can be read and written by sectors, and made stable. A
// disk that is an [Aligner] too, such as a connection to a server, may take only larger blocks.
func checkDevice(what string, d Disk) error {
	if a, ok := d.(Aligner); ok && a.Align() > SectorSize {
		return fmt.Errorf("%w: %s takes blocks of %d bytes only, and it is read and written by sectors of %d", ErrSize, what, a.Align(), SectorSize)
	}
	return checkWrites(what, d)
}

// checkWrites returns an error if d, a Disk or a [Remote], says that it cannot be written.
func checkWrites(what string, d any) error {
	if c, ok := d.(WriteChecker); ok {
		if err := c.CheckWrites(); err != nil {
			return fmt.Errorf("replication: %s cannot be used: %w", what, err)
		}
	}
	return nil
}

// readFull reads all of p. Less than that is an error, but io.EOF together with all of p
// is none.
func readFull(d io.ReaderAt, p []byte, off int64) error {
	n, err := d.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}

func writeFull(d io.WriterAt, p []byte, off int64) error {
	n, err := d.WriteAt(p, off)
	if err == nil && n != len(p) {
		err = io.ErrShortWrite
	}
	return err
}

// zeroes is written by writeZeroes to a disk that is no ZeroWriter.
var zeroes [256 << 10]byte

// WriteZeroes zeroes n bytes of d at off: with its own method if it has one,
// else by writing zeroes.
func WriteZeroes(d Disk, off, n int64) error {
	if z, ok := d.(ZeroWriter); ok {
		return z.WriteZeroes(off, n)
	}
	for n > 0 {
		c := min(n, int64(len(zeroes)))
		if err := writeFull(d, zeroes[:c], off); err != nil {
			return err
		}
		off, n = off+c, n-c
	}
	return nil
}

// WriteFUA writes p to d at off and returns when it is stable: with the disk's
// own method if it has one, else by WriteAt and Sync.
func WriteFUA(d Disk, p []byte, off int64) error {
	if f, ok := d.(FUAWriter); ok {
		return f.WriteFUA(p, off)
	}
	if err := writeFull(d, p, off); err != nil {
		return err
	}
	return d.Sync()
}
