package ram

import (
	"errors"
	"fmt"
	"strings"
)

// What can be wrong with a RAM section. Each is found with errors.Is within an
// [*Error], which says where.
var (
	// ErrVersion: the section's version is not 4.
	ErrVersion = errors.New("unsupported version of the ram section")

	// ErrFlags: a record with flags that are unknown, obsolete (FULL), not for
	// this kind of connection (HOOK, which only RDMA has), or that do not go
	// together. Also an address that is no multiple of the page size, since its
	// low bits are the flags.
	ErrFlags = errors.New("unknown combination of flags")

	// ErrUnknownBlock: a name that is not one of the guest's RAM blocks.
	ErrUnknownBlock = errors.New("unknown RAM block")

	// ErrNoBlock: CONTINUE before any record of this connection named a
	// block.
	ErrNoBlock = errors.New("CONTINUE without a block")

	// ErrOffset: a page at or beyond the end of its block.
	ErrOffset = errors.New("page beyond the end of the block")

	// ErrIgnored: a page of a shared block, which x-ignore-shared leaves out.
	ErrIgnored = errors.New("page of a block that is not migrated")

	// ErrBlockList: the block list does not add up, or does not fit the
	// guest.
	ErrBlockList = errors.New("block list does not fit")

	// ErrFill: a ZERO record with another fill byte than 0, where the
	// configuration refuses it.
	ErrFill = errors.New("fill byte is not zero")

	// ErrXBZRLE: a delta that is no XBZRLE, or too long, or corrupt.
	ErrXBZRLE = errors.New("bad XBZRLE page")

	// ErrCompressed: a compressed page that is too long, corrupt, or not one
	// page.
	ErrCompressed = errors.New("bad compressed page")

	// ErrDiscarded: Flush after a failed load, Discard or Close, with nothing
	// loaded since.
	ErrDiscarded = errors.New("nothing valid is staged")

	// ErrStagedFull: a checkpoint with more pages than CacheConfig.MaxStaged has
	// room for.
	ErrStagedFull = errors.New("more is staged than the configuration allows")

	// ErrNotResent: a page that the secondary's guest wrote, of which the primary
	// sent a difference or nothing, to a cache that has not kept it
	// (CacheConfig.StagedOnly); or the difference of any page that is not staged,
	// before SaveDirty has told what was written.
	ErrNotResent = errors.New("page that was written here was not sent again")

	// ErrDirtyList: a list of pages to be sent again (Saver.LoadDirty) that does
	// not add up, or does not fit the guest.
	ErrDirtyList = errors.New("list of written pages does not fit")
)

// Error is the error of this package.
type Error struct {
	Op     string // what was done: "load", "walk", "flush", "save", "capture", "dirty log", "block"
	Block  string // the RAM block; "" if it is not about one
	Offset uint64 // of the page in the block, in bytes, where Block is known
	Stream int64  // where the record begins in the stream, in bytes; -1 outside a stream
	Err    error
}

// Error implements error.
func (e *Error) Error() string {
	var s strings.Builder
	s.WriteString("ram: " + e.Op)
	if e.Stream >= 0 {
		fmt.Fprintf(&s, " at %d", e.Stream)
	}
	if e.Block != "" {
		fmt.Fprintf(&s, ": block %q offset %#x", e.Block, e.Offset)
	}
	s.WriteString(": " + e.Err.Error())
	return s.String()
}

// Unwrap returns the cause: one of the errors above, the stream's, or the
// host's.
func (e *Error) Unwrap() error { return e.Err }
