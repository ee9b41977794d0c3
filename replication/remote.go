package replication

import (
	"context"
	"fmt"
	"io"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/gocolo/lockstep/event"
)

// Remote is the way to the secondary disk. Its Start methods begin something
// and return, perhaps after waiting for room to send; done is called exactly
// once, with nil when the other side has answered, from inside of any method
// of the Remote (also before Start returns) and on that goroutine. It must not
// block. Things that are under way together have no order.
//
// A Remote may keep writes for a while only if it is a [Pusher].
//
// The Start methods may be called from several goroutines at the same time,
// Progress from one at a time. [nbd.Client] is one.
//
// [nbd.Client]: https://pkg.go.dev/github.com/gocolo/lockstep/replication/nbd#Client
type Remote interface {
	// Size returns the length of the disk in bytes.
	Size() int64
	// StartWrite writes p, which the caller may change when it returns. With
	// fua the answer comes when the data is stable.
	StartWrite(p []byte, off int64, fua bool, done func(error))
	// StartZeroes makes a range read as zeroes, and may give its storage
	// back.
	StartZeroes(off, n int64, fua bool, done func(error))
	// StartFlush makes everything stable that has been answered.
	StartFlush(done func(error))
	// Progress handles answers, and returns when there has been at least
	// one, ctx ends (with its error), or the connection is lost (with why).
	Progress(ctx context.Context) error
	// Close ends the connection; what is under way gets an error. It may take
	// leave of the other side first, see [Aborter].
	Close() error
}

// Aborter is a [Remote] whose Close may wait, if only to say goodbye to the other side. A
// Remote that is no Aborter is closed where it would be aborted, and closed again later.
type Aborter interface {
	// Abort closes the Remote without a word to the other side. It does not wait. It may
	// be called from any goroutine, also while another method runs, and calling it again
	// does nothing. Close may follow.
	Abort()
}

// Pusher is a [Remote] that may keep what StartWrite was given, without fua, as long as
// answers to other requests are to come, to send several writes together.
type Pusher interface {
	// Push sends what was kept. Whoever waits for the answer to a write calls it first. It
	// may be called from any goroutine.
	Push()
}

// Mover is a [Remote] that knows when anything has moved over its link last, in either
// direction. By that a slow link is told from a lost one; of a Remote that is no Mover only
// answers count.
type Mover interface {
	// Moved returns when that was, as far as is known by now. It does not wait, and may be
	// called from any goroutine.
	Moved() time.Time
}

// Aligner is a [Remote] that takes only requests whose offset and length are multiples of a
// block.
type Aligner interface {
	// Align returns the length of the block in bytes, a power of two up to [ChunkSize], which
	// stays as it is.
	Align() int64
}

// alignOf returns in what blocks r takes requests, or why a disk of that size cannot be sent
// to it.
func alignOf(r Remote, size int64) (int64, error) {
	a, ok := r.(Aligner)
	if !ok {
		return 1, nil
	}
	switch n := a.Align(); {
	case n <= 0 || n&(n-1) != 0 || n > ChunkSize:
		return 0, fmt.Errorf("%w: the secondary takes blocks of %d bytes", ErrSize, n)
	case size&(n-1) != 0:
		return 0, fmt.Errorf("%w: the secondary takes blocks of %d bytes only, and could not be sent the end of a disk of %d, whose blocks are of %d; let both disks grow to a multiple", ErrSize, n, size, SectorSize)
	default:
		return n, nil
	}
}

// abort ends the connection of r without waiting if it is an Aborter; otherwise it closes
// r.
func abort(r any) {
	switch r := r.(type) {
	case Aborter:
		r.Abort()
	case io.Closer:
		r.Close()
	}
}

// part is closed by a Remote of this package together with itself: once, even if it is
// closed in place of an Abort that it does not have.
type part struct {
	of     any
	closed atomic.Bool
}

func (p *part) Close() error {
	if c, ok := p.of.(io.Closer); ok && !p.closed.Swap(true) {
		return c.Close()
	}
	return nil
}

func (p *part) abort() {
	if a, ok := p.of.(Aborter); ok {
		a.Abort()
		return
	}
	p.Close()
}

// diskRemote is a Disk as a Remote that does everything at once.
type diskRemote struct {
	d    Disk
	part *part // d
}

// DiskRemote returns a [Remote] whose other side is d, in this process: for
// two disks on one host, and for tests. Closing it closes d, once, if it is an
// io.Closer. So does Abort, unless d is an [Aborter], and then waits as long as that
// does.
func DiskRemote(d Disk) Remote { return diskRemote{d, &part{of: d}} }

func (r diskRemote) Size() int64 { return r.d.Size() }

func (r diskRemote) StartWrite(p []byte, off int64, fua bool, done func(error)) {
	if fua {
		done(WriteFUA(r.d, p, off))
		return
	}
	done(writeFull(r.d, p, off))
}

func (r diskRemote) StartZeroes(off, n int64, fua bool, done func(error)) {
	err := WriteZeroes(r.d, off, n)
	if err == nil && fua {
		err = r.d.Sync()
	}
	done(err)
}

func (r diskRemote) StartFlush(done func(error)) { done(r.d.Sync()) }

func (r diskRemote) Progress(ctx context.Context) error {
	<-ctx.Done() // nothing is ever under way
	return ctx.Err()
}

// Align implements [Aligner] if the disk does.
func (r diskRemote) Align() int64 {
	if a, ok := r.d.(Aligner); ok {
		return a.Align()
	}
	return 1
}

// CheckWrites implements [WriteChecker] if the disk does.
func (r diskRemote) CheckWrites() error {
	if c, ok := r.d.(WriteChecker); ok {
		return c.CheckWrites()
	}
	return nil
}

func (r diskRemote) ReadAt(p []byte, off int64) (int, error) { return r.d.ReadAt(p, off) }

// Close implements [Remote].
func (r diskRemote) Close() error { return r.part.Close() }

// Abort implements [Aborter].
func (r diskRemote) Abort() { r.part.abort() }

// BrokenError says that one side of a replicated disk can take part in no checkpoint any
// more. On a primary, writes have not reached the secondary: the two disks differ until a
// new synchronisation. On a secondary, an operation has failed on which the next
// checkpoint, or a failover, depends.
type BrokenError struct {
	// Op is, on a primary, "write", "zeroes", "flush" or "connection", or "local
	// flush" or "local metadata" if it is the primary's own disk that has failed, or
	// what is known of it; on a secondary "pre-image", "write", "flush", "checkpoint",
	// "commit", "restore", or "hung" if a device of it hangs (ErrHung).
	Op  string
	Off int64 // where on the disk, if Len is not zero
	Len int64
	Err error
}

func (e *BrokenError) Error() string {
	if e.Len > 0 {
		return fmt.Sprintf("replication: broken: %s of %d bytes at %d: %v", e.Op, e.Len, e.Off, e.Err)
	}
	return fmt.Sprintf("replication: broken: %s: %v", e.Op, e.Err)
}

// Unwrap returns the cause.
func (e *BrokenError) Unwrap() error { return e.Err }

// event returns the error as an event.
func (e *BrokenError) event(mode event.Mode, disk string) event.DiskBroken {
	return event.DiskBroken{Mode: mode, Disk: disk, Operation: e.Op, Offset: e.Off, Length: e.Len, Error: e.Err.Error()}
}

// Is makes every BrokenError match ErrBroken.
func (e *BrokenError) Is(target error) bool { return target == ErrBroken }

// Errors of the primary's side.
var (
	// ErrBroken: see [BrokenError].
	ErrBroken error = &sentinel{"broken", 0}
	// ErrCut: Cut has ended the connection.
	ErrCut error = &sentinel{"cut off from the secondary", 0}
	// ErrTimeout: the secondary was silent for too long while answers were owed.
	ErrTimeout error = &sentinel{"the secondary does not answer", 0}
	// ErrWriteOnly: a [Forwarder] cannot be read. EIO.
	ErrWriteOnly error = &sentinel{"a forwarder is only written", syscall.EIO}
	// ErrNotSynchronised: the secondary disk is not, or not known to be, a
	// copy of the primary's.
	ErrNotSynchronised error = &sentinel{"the disks are not synchronised", 0}
)
