package vmstate

import (
	"fmt"
	"math"
)

// PostcopyState is how far a destination has come towards running on memory
// that is still on its way (PostcopyState in migration/postcopy-ram.h).
type PostcopyState uint8

// The states, in order.
const (
	PostcopyNone PostcopyState = iota
	PostcopyAdvised
	PostcopyDiscarding
	PostcopyListening
	PostcopyRunning
	PostcopyEnded
)

// String returns the state's name as QEMU has it, such as "listening".
func (s PostcopyState) String() string {
	names := [...]string{"none", "advise", "discard", "listening", "running", "end"}
	if int(s) < len(names) {
		return names[s]
	}
	return fmt.Sprintf("state %d", uint8(s))
}

// Incoming decides at which point of a migration a destination accepts which command. It
// does no I/O: a host passes each [Command] to Accept, from the function that it gives to
// [Registry.Load], and then carries the command out. The zero value accepts plain
// migrations. The rules are those of loadvm_process_command in migration/savevm.c.
type Incoming struct {
	// COLO allows ENABLE_COLO. (QEMU 7.2 did not ask; since 8.1 it does.)
	COLO bool
	// PostcopyRAM is the capability postcopy-ram. PageSizes and TargetPageSize
	// are then the local values, which an ADVISE must repeat.
	PostcopyRAM               bool
	PageSizes, TargetPageSize uint64
	// Block returns the length of a RAM block in bytes, if there is one of that
	// name. Nil accepts any name and range in RECV_BITMAP and
	// POSTCOPY_RAM_DISCARD.
	Block func(name string) (length uint64, ok bool)

	state      PostcopyState
	paused     bool
	returnPath bool
	colo       bool
}

// Postcopy returns the state of postcopy.
func (in *Incoming) Postcopy() PostcopyState { return in.state }

// ReturnPath reports whether the source has opened the return path.
func (in *Incoming) ReturnPath() bool { return in.returnPath }

// COLOEnabled reports whether the source has asked for COLO.
func (in *Incoming) COLOEnabled() bool { return in.colo }

// Pause records that the connection broke during postcopy; a RESUME is then in
// order.
func (in *Incoming) Pause() { in.paused = true }

// End records that the last page has arrived.
func (in *Incoming) End() { in.state = PostcopyEnded }

// Accept takes one command. An error wraps [ErrCommand] and ends the migration.
// act=false says that the command is legal but must be ignored: a second
// OPEN_RETURN_PATH, or a RESUME when nothing was interrupted.
func (in *Incoming) Accept(c Command) (act bool, err error) {
	switch c.Type {
	case CommandOpenReturnPath:
		if in.returnPath {
			return false, nil
		}
		in.returnPath = true
	case CommandPing:
		if !in.returnPath {
			return false, fmt.Errorf("%w %v without a return path", ErrCommand, c)
		}
	case CommandPostcopyAdvise:
		if err := in.advise(c); err != nil {
			return false, err
		}
		in.state = PostcopyAdvised
	case CommandRAMDiscard:
		if in.state != PostcopyAdvised && in.state != PostcopyDiscarding {
			return false, in.wrongState(c)
		}
		if err := in.discard(c); err != nil {
			return false, err
		}
		in.state = PostcopyDiscarding
	case CommandPostcopyListen:
		if in.state != PostcopyAdvised && in.state != PostcopyDiscarding {
			return false, in.wrongState(c)
		}
		in.state = PostcopyListening
	case CommandPostcopyRun:
		if in.state != PostcopyListening {
			return false, in.wrongState(c)
		}
		in.state = PostcopyRunning
	case CommandPostcopyResume:
		if !in.paused {
			return false, nil
		}
		in.paused = false
	case CommandEnableCOLO:
		if !in.COLO {
			return false, fmt.Errorf("%w %v, but COLO is not wanted here", ErrCommand, c)
		}
		in.colo = true
	case CommandRecvBitmap:
		block, err := c.AsRecvBitmap()
		if err == nil {
			_, err = in.length(c, block)
		}
		if err != nil {
			return false, err
		}
	case CommandPackaged, CommandSwitchoverStart:
	default:
		return false, fmt.Errorf("%w %v", ErrCommand, c)
	}
	return true, nil
}

func (in *Incoming) advise(c Command) error {
	a, err := c.AsPostcopyAdvise()
	switch {
	case err != nil:
		return err
	case in.state != PostcopyNone:
		return in.wrongState(c)
	case a.RAM != in.PostcopyRAM:
		return fmt.Errorf("%w %v: RAM postcopy is %t there and %t here", ErrCommand, c, a.RAM, in.PostcopyRAM)
	case a.RAM && (a.PageSizes != in.PageSizes || a.TargetPageSize != in.TargetPageSize):
		return fmt.Errorf("%w %v: page sizes %#x and %#x, local %#x and %#x", ErrCommand, c,
			a.PageSizes, a.TargetPageSize, in.PageSizes, in.TargetPageSize)
	}
	return nil
}

// length returns the length of the block that a command names, or the greatest length if
// there is no function Block.
func (in *Incoming) length(c Command, block string) (uint64, error) {
	if in.Block == nil {
		return math.MaxUint64, nil
	}
	n, ok := in.Block(block)
	if !ok {
		return 0, fmt.Errorf("%w %v: no block %q", ErrCommand, c, block)
	}
	return n, nil
}

func (in *Incoming) discard(c Command) error {
	d, err := c.AsRAMDiscard()
	if err != nil {
		return err
	}
	n, err := in.length(c, d.Block)
	if err != nil {
		return err
	}
	for _, r := range d.Ranges {
		if r.Start+r.Length > n {
			return fmt.Errorf("%w %v: range %#x+%#x of block %q: %w", ErrCommand, c, r.Start, r.Length, d.Block, ErrBounds)
		}
	}
	return nil
}

func (in *Incoming) wrongState(c Command) error {
	return fmt.Errorf("%w %v in postcopy state %v", ErrCommand, c, in.state)
}
