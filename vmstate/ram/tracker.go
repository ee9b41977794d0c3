package ram

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"unsafe"

	"github.com/gocolo/lockstep/internal/uffd"
)

// ErrLogOff means that the dirty log is off, so that what was written is not known.
var ErrLogOff = errors.New("dirty log is off")

// A Tracker is a DirtyLog of any mapping. The kernel keeps the log (userfaultfd with
// asynchronous write-protection, and PAGEMAP_SCAN), so it has the writes of a vCPU of
// KVM, of a device model in Go and of a system call, and none of them has to report
// anything. A host without KVM needs no dirty log of its own, and one with KVM can
// compare ([NewVerifier]).
//
// It costs a fault of the kernel, one to three microseconds, for the first write to each
// page after a call of ReadDirty, and a scan for each call; nobody in user space is
// asked. KVM's own log costs the same kind of fault. Of what the process writes it reports
// exactly the pages; of what a vCPU writes also some that KVM had made writable for it, and
// that the vCPU has not got to write.
//
// # What it does not see
//
// It sees writes through the mapping that Block.Host is, of this process. It does not see
// writes through another mapping of the same file (another process, such as a
// vhost-user device), nor those of a device that was given the memory once and for all
// (VFIO). A read into the memory that the kernel is asked for and does later (io_uring,
// O_DIRECT) counts as written when it begins: it must have ended before a pause of the
// guest does. The same holds for memory that the host drops (MADV_DONTNEED, a balloon):
// its pages are reported as written if the kernel still has a table for them, and the
// host must not rely on it, but write to them.
//
// # What it needs
//
// Linux 6.7 on x86-64, with userfaultfd, and a process that may use it: root,
// CAP_SYS_PTRACE, the sysctl vm.unprivileged_userfaultfd at 1, or access to
// /dev/userfaultfd. (What else an unprivileged process gets, UFFD_USER_MODE_ONLY, does not
// serve KVM.) Blocks are mappings of whole pages of the host, anonymous, shared memory or
// hugetlbfs; of the latter a whole huge page counts as written. A block can have one
// userfaultfd only.
//
// The kernel's tables for the blocks are all there from StartDirtyLog on: 2 MiB for each
// GiB, also of memory that was never touched.
//
// Its methods may be called from any goroutine.
type Tracker struct {
	mu     sync.Mutex
	fd     *uffd.FD
	scan   *uffd.Pagemap
	blocks []trackedBlock
	on     bool
	closed bool

	// Of the scan that is under way.
	base   uintptr
	bitmap Bitmap
	mark   func(uffd.Region) // marks a region in bitmap
	forget func(uffd.Region)
}

type trackedBlock struct {
	Block
	lost bool // a scan failed: every page counts as written
}

// NewTracker opens what it takes to track blocks. The log is off; a Saver or Cache
// switches it on. The blocks' memory must stay mapped until Close.
//
// Its error wraps [errors.ErrUnsupported] where the kernel lacks something, which it
// names, and fs.ErrPermission where the process may not use it, and then says what would
// help. An [*Error] is about a block.
func NewTracker(blocks []Block) (*Tracker, error) {
	if err := CheckBlocks(blocks); err != nil {
		return nil, err
	}
	page := uintptr(os.Getpagesize())
	t := &Tracker{}
	for _, b := range blocks {
		start := uintptr(unsafe.Pointer(unsafe.SliceData(b.Host)))
		if start%page != 0 || uintptr(len(b.Host))%page != 0 {
			return nil, &Error{Op: "block", Block: b.Name, Stream: -1, Err: fmt.Errorf("%d bytes at %#x are not whole pages of the host", len(b.Host), start)}
		}
		t.blocks = append(t.blocks, trackedBlock{Block: b})
	}
	var err error
	if t.fd, err = uffd.Open(uffd.WPAsync | uffd.WPUnpopulated | uffd.WPHugetlbfsShmem); err != nil {
		return nil, fmt.Errorf("ram: tracker: %w", err)
	}
	if t.scan, err = uffd.OpenPagemap(); err != nil {
		return nil, fmt.Errorf("ram: tracker: %w", errors.Join(err, t.fd.Close()))
	}
	t.mark = func(r uffd.Region) {
		// Pages of the host may be larger than those of the stream.
		t.bitmap.SetRange(int((r.Start-t.base)/PageSize), int((r.End-t.base)/PageSize))
	}
	t.forget = func(uffd.Region) {}
	return t, nil
}

// StartDirtyLog begins to track, with no page marked as written. It protects every page,
// which takes some 40 ms for each GiB of ordinary pages. Threads may write meanwhile;
// writes that come after it has returned are reported.
func (t *Tracker) StartDirtyLog() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.closed:
		return &Error{Op: "dirty log", Stream: -1, Err: ErrDiscarded}
	case t.on:
		return nil
	}
	for i := range t.blocks {
		b := &t.blocks[i]
		if len(b.Host) == 0 {
			continue
		}
		err := t.fd.Register(b.Host, uffd.ModeWriteProtect)
		if err == nil {
			if err = t.fd.WriteProtect(b.Host, true); err != nil {
				i++ // this one is registered
			}
		}
		if err != nil {
			for _, r := range t.blocks[:i] {
				if len(r.Host) > 0 {
					err = errors.Join(err, t.fd.Unregister(r.Host))
				}
			}
			return &Error{Op: "dirty log", Block: b.Name, Stream: -1, Err: err}
		}
		b.lost = false
	}
	t.on = true
	return nil
}

// StopDirtyLog forgets what was written; writes cost nothing any more.
func (t *Tracker) StopDirtyLog() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.stop()
}

func (t *Tracker) stop() (err error) {
	if !t.on {
		return nil
	}
	t.on = false
	for i := range t.blocks {
		b := &t.blocks[i]
		if len(b.Host) == 0 {
			continue
		}
		if e := t.fd.Unregister(b.Host); e != nil && err == nil {
			err = &Error{Op: "dirty log", Block: b.Name, Stream: -1, Err: e}
		}
	}
	return err
}

// ReadDirty adds to bitmap the pages of a block that were written since the last call, and
// forgets them, each in one step: a write is in this call's pages or in the next one's.
// It fails with [ErrLogOff] while the log is off and with [ErrUnknownBlock]. After another
// error the next call reports every page of the block.
func (t *Tracker) ReadDirty(block string, bitmap []uint64) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	b, err := t.block(block)
	if err != nil {
		return err
	}
	pages := len(b.Host) / PageSize
	if len(bitmap) < (pages+63)/64 {
		return &Error{Op: "dirty log", Block: block, Stream: -1, Err: fmt.Errorf("bitmap of %d words for %d pages", len(bitmap), pages)}
	}
	t.bitmap = bitmap
	err = t.walk(b, t.mark)
	t.bitmap = nil
	if err == nil && b.lost {
		b.lost = false
		Bitmap(bitmap).SetRange(0, pages)
	}
	return err
}

// ForgetDirty forgets what was written to a block until now; see [Forgetter].
func (t *Tracker) ForgetDirty(block string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if b, err := t.block(block); err == nil {
		// After an error every page counts as written, which harms nothing.
		_ = t.walk(b, t.forget)
	}
}

// block returns a block of a log that is on.
func (t *Tracker) block(name string) (*trackedBlock, error) {
	if !t.on {
		return nil, &Error{Op: "dirty log", Block: name, Stream: -1, Err: ErrLogOff}
	}
	for i := range t.blocks {
		if t.blocks[i].Name == name {
			return &t.blocks[i], nil
		}
	}
	return nil, &Error{Op: "dirty log", Block: name, Stream: -1, Err: ErrUnknownBlock}
}

// walk calls fn for what was written to a block, and protects it again.
func (t *Tracker) walk(b *trackedBlock, fn func(uffd.Region)) error {
	t.base = uintptr(unsafe.Pointer(unsafe.SliceData(b.Host)))
	if err := t.scan.Scan(b.Host, fn); err != nil {
		b.lost = true
		return &Error{Op: "dirty log", Block: b.Name, Stream: -1, Err: err}
	}
	return nil
}

// Close stops tracking and gives the descriptors back. Closing twice is no error.
func (t *Tracker) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil
	}
	err := t.stop()
	t.closed = true
	return errors.Join(err, t.scan.Close(), t.fd.Close())
}
