package ram

import (
	"errors"
	"fmt"
	"os"
)

// PageSize is the size of a page in the stream, in bytes: the target page of
// x86. The bits of a record's address below it are its flags.
const PageSize = 4096

// Block is one RAM block of a guest. Saver and cache of a pair need blocks of
// the same names and lengths; their order does not matter.
type Block struct {
	// Name identifies the block in the stream: 1 to 255 bytes, unique in the
	// guest ("pc.ram").
	Name string

	// Host is the guest's memory as the host sees it, a multiple of PageSize long. The
	// caller owns it, and keeps it mapped as long as a Saver or Cache is in use. For a
	// resizable block it is as long as the block can become.
	Host []byte

	// Used is the length of the block now, in bytes, a multiple of PageSize;
	// 0 means all of Host.
	Used uint64

	// Resizable lets a cache accept a block of another length than Used, up
	// to that of Host. Resize, if not nil, is then told of the new length, in
	// [Cache.Flush] and before memory changes.
	Resizable bool
	Resize    func(used uint64) error

	// Shared says that the other side sees the same memory, through a shared
	// file. With the x-ignore-shared capability (see [Format]) such a block is
	// listed and its pages are not sent.
	Shared bool

	// GPA is where the block begins in the guest's physical address space.
	// Only x-ignore-shared looks at it.
	GPA uint64

	// HostPageSize is the size of the pages that back Host, where they are
	// not ordinary ones (2097152 for huge pages); 0 means ordinary. It is in
	// the block list only if postcopy was advised.
	HostPageSize uint64
}

// Format says what the block list contains beyond names and lengths. Nothing in
// the RAM section says so: both sides know it from the capabilities of the
// migration, so it has to be the same on both.
type Format struct {
	// IgnoreShared is QEMU's capability x-ignore-shared: every block is
	// listed with its guest physical address. A stream announces it in its
	// configuration section.
	IgnoreShared bool

	// Postcopy says that the POSTCOPY_ADVISE command is in the stream: a
	// block on pages of another size than the host's is listed with that
	// size.
	Postcopy bool

	// MappedRAM is QEMU's capability mapped-ram (9.0 and later): the stream is a file, and
	// each block's pages are at fixed places of it, which the stream gives behind the
	// block's entry in the list. A stream announces it in its configuration section. A
	// [Walker] reads it, and a [Cache] where the reader is at offset 0 of the file's first
	// byte; see [MappedWriter] for writing, and [Lazy.OpenMapped].
	MappedRAM bool
}

// DirtyLog tells which pages were written. A Saver reads the log of the
// primary's guest, a Cache that of the secondary's guest. What follows with
// "must" is checked by colotest.TestVM.
type DirtyLog interface {
	// ReadDirty marks the pages of a block that were dirtied since the last
	// call, and forgets them: bit i&63 of bitmap[i>>6] is page i. It is called
	// from the goroutine that uses the Saver or Cache, with a bitmap that
	// covers all of Host, and the guest may run.
	//
	// Every page that was written since the last call must be marked, also while the
	// guest runs, and also a page that a device wrote, or that saving a device wrote;
	// pages that were not written may be. A mark must be cleared before the page is
	// read for it, so that a write in between is marked again; of a guest that stands
	// still, a second call must mark nothing. Bits that are set already must stay set,
	// and none beyond the block's pages may be. A block that the guest does not have
	// must be an error. A [DirtyKeeper] has other rules for the pages that may stay
	// writable.
	ReadDirty(block string, bitmap []uint64) error
}

// LogSwitch is implemented by a DirtyLog that costs something while it is on.
// Starting a log that runs and stopping one that does not are no errors.
type LogSwitch interface {
	StartDirtyLog() error
	StopDirtyLog() error
}

// used returns how many bytes of Host are in use.
func (b *Block) used() uint64 {
	if b.Used == 0 {
		return uint64(len(b.Host))
	}
	return b.Used
}

// hugePages returns the page size that the block list carries if postcopy was
// advised, or 0.
func (b *Block) hugePages() uint64 {
	if b.HostPageSize == uint64(os.Getpagesize()) {
		return 0
	}
	return b.HostPageSize
}

// CheckBlocks reports what of a guest's blocks no Saver or Cache takes: a name that is too long
// or not unique, or a length that is no multiple of PageSize. The error is an *[Error].
func CheckBlocks(blocks []Block) error {
	seen := make(map[string]bool, len(blocks))
	for i := range blocks {
		b := &blocks[i]
		var err error
		switch {
		case len(b.Name) == 0 || len(b.Name) > 255:
			err = errors.New("name is not 1 to 255 bytes long")
		case seen[b.Name]:
			err = errors.New("name is not unique")
		case len(b.Host)%PageSize != 0:
			err = fmt.Errorf("%d bytes are not a multiple of %d", len(b.Host), PageSize)
		case b.Used%PageSize != 0 || b.Used > uint64(len(b.Host)):
			err = fmt.Errorf("%d bytes used of %d", b.Used, len(b.Host))
		}
		if err != nil {
			return &Error{Op: "block", Block: b.Name, Stream: -1, Err: err}
		}
		seen[b.Name] = true
	}
	return nil
}
