package vmstate

import (
	"encoding/binary"
	"fmt"

	"github.com/gocolo/lockstep/qemufile"
)

// PostcopyAdvise announces that postcopy may follow. Both sides must have the
// same page sizes.
type PostcopyAdvise struct {
	// RAM is false if only dirty bitmaps are going to use postcopy; the sizes
	// are then absent.
	RAM bool
	// PageSizes is the OR of the page sizes of all RAM blocks, TargetPageSize the
	// page size of the target CPU; bytes.
	PageSizes, TargetPageSize uint64
}

// Command encodes a.
func (a PostcopyAdvise) Command() Command {
	c := Command{Type: CommandPostcopyAdvise}
	if a.RAM {
		c.Payload = binary.BigEndian.AppendUint64(c.Payload, a.PageSizes)
		c.Payload = binary.BigEndian.AppendUint64(c.Payload, a.TargetPageSize)
	}
	return c
}

// AsPostcopyAdvise decodes a POSTCOPY_ADVISE. Any other command is [ErrCommand].
func (c Command) AsPostcopyAdvise() (PostcopyAdvise, error) {
	switch {
	case c.Type == CommandPostcopyAdvise && len(c.Payload) == 0:
		return PostcopyAdvise{}, nil
	case c.Type == CommandPostcopyAdvise && len(c.Payload) == 16:
		return PostcopyAdvise{RAM: true, PageSizes: binary.BigEndian.Uint64(c.Payload), TargetPageSize: binary.BigEndian.Uint64(c.Payload[8:])}, nil
	}
	return PostcopyAdvise{}, c.malformed(CommandPostcopyAdvise)
}

// PostcopyListen tells the destination to get ready for page faults.
func PostcopyListen() Command { return Command{Type: CommandPostcopyListen} }

// PostcopyRun tells the destination to run the guest. It ends the section loop.
func PostcopyRun() Command { return Command{Type: CommandPostcopyRun} }

// PostcopyResume says that an interrupted postcopy goes on.
func PostcopyResume() Command { return Command{Type: CommandPostcopyResume} }

// A Range is a part of a RAM block, in bytes from its start.
type Range struct{ Start, Length uint64 }

// RAMDiscard tells the destination to throw away pages that it has received but
// that are dirty again.
type RAMDiscard struct {
	Block  string
	Ranges []Range
}

// maxDiscards is how many ranges one command carries when we write it, as in
// QEMU (MAX_DISCARDS_PER_COMMAND); more are accepted.
const maxDiscards = 12

// PutRAMDiscard writes d as as many commands as it takes. A name longer than 255
// bytes fails the Writer with [qemufile.ErrTooLong].
func PutRAMDiscard(w *qemufile.Writer, d RAMDiscard) {
	if len(d.Block) > 255 {
		w.Fail(fmt.Errorf("vmstate: RAM block name of %d bytes: %w", len(d.Block), qemufile.ErrTooLong))
		return
	}
	for ranges := d.Ranges; len(ranges) > 0; {
		n := min(len(ranges), maxDiscards)
		p := append([]byte{0, byte(len(d.Block))}, d.Block...) // version 0
		p = append(p, 0)
		for _, r := range ranges[:n] {
			p = binary.BigEndian.AppendUint64(p, r.Start)
			p = binary.BigEndian.AppendUint64(p, r.Length)
		}
		PutCommand(w, Command{Type: CommandRAMDiscard, Payload: p})
		ranges = ranges[n:]
	}
}

// AsRAMDiscard decodes a POSTCOPY_RAM_DISCARD. Whether the ranges lie within the
// block is for the block's owner to say; that they do not wrap around is checked.
func (c Command) AsRAMDiscard() (d RAMDiscard, err error) {
	p := c.Payload
	if c.Type != CommandRAMDiscard || len(p) < 20 {
		return d, c.malformed(CommandRAMDiscard)
	}
	n := int(p[1])
	if p[0] != 0 || len(p) < 3+n+16 || p[2+n] != 0 || (len(p)-3-n)%16 != 0 {
		return d, c.malformed(CommandRAMDiscard)
	}
	d.Block = string(p[2 : 2+n])
	for p = p[3+n:]; len(p) > 0; p = p[16:] {
		r := Range{binary.BigEndian.Uint64(p), binary.BigEndian.Uint64(p[8:])}
		if r.Start+r.Length < r.Start {
			return RAMDiscard{}, fmt.Errorf("%w %v: range %#x+%#x: %w", ErrCommand, c, r.Start, r.Length, ErrBounds)
		}
		d.Ranges = append(d.Ranges, r)
	}
	return d, nil
}

// RecvBitmap asks the destination which pages of a block it has. A name of more
// than 255 bytes gives a command that the peer refuses; QEMU's names are
// shorter.
func RecvBitmap(block string) Command {
	return Command{Type: CommandRecvBitmap, Payload: append([]byte{byte(len(block))}, block...)}
}

// AsRecvBitmap decodes a RECV_BITMAP. Any other command is [ErrCommand].
func (c Command) AsRecvBitmap() (block string, err error) {
	p := c.Payload
	if c.Type != CommandRecvBitmap || len(p) < 2 || len(p) != 1+int(p[0]) {
		return "", c.malformed(CommandRecvBitmap)
	}
	return string(p[1:]), nil
}

// PutPackaged writes a PACKAGED command and after it the nested stream that it
// announces: sections and commands without a file header, ending with RUN or
// EOF. More than 4 GiB fail the Writer with [qemufile.ErrTooLong].
func PutPackaged(w *qemufile.Writer, nested []byte) {
	if uint64(len(nested)) > 1<<32-1 {
		w.Fail(fmt.Errorf("vmstate: package of %d bytes: %w", len(nested), qemufile.ErrTooLong))
		return
	}
	PutCommand(w, Command{Type: CommandPackaged, Payload: be32(uint32(len(nested)))})
	w.Write(nested)
}

// AsPackaged returns the length of the nested stream that follows a PACKAGED
// command.
func (c Command) AsPackaged() (length uint32, err error) {
	if c.Type != CommandPackaged || len(c.Payload) != 4 {
		return 0, c.malformed(CommandPackaged)
	}
	return binary.BigEndian.Uint32(c.Payload), nil
}
