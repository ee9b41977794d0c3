package vmstate

import (
	"encoding/binary"
	"fmt"

	"github.com/gocolo/lockstep/qemufile"
)

// CommandType is the number of a command in the stream (MIG_CMD_* in
// migration/savevm.c).
type CommandType uint16

// The commands.
const (
	CommandInvalid         CommandType = 0
	CommandOpenReturnPath  CommandType = 1
	CommandPing            CommandType = 2
	CommandPostcopyAdvise  CommandType = 3
	CommandPostcopyListen  CommandType = 4
	CommandPostcopyRun     CommandType = 5
	CommandRAMDiscard      CommandType = 6
	CommandPackaged        CommandType = 7
	CommandEnableCOLO      CommandType = 8
	CommandPostcopyResume  CommandType = 9
	CommandRecvBitmap      CommandType = 10
	CommandSwitchoverStart CommandType = 11 // QEMU 10.0 and later
)

// commands gives each command its name and the length of its payload; -1 where
// it varies.
var commands = [...]struct {
	name string
	size int
}{
	CommandInvalid:         {"invalid", -1},
	CommandOpenReturnPath:  {"open-return-path", 0},
	CommandPing:            {"ping", 4},
	CommandPostcopyAdvise:  {"postcopy-advise", -1},
	CommandPostcopyListen:  {"postcopy-listen", 0},
	CommandPostcopyRun:     {"postcopy-run", 0},
	CommandRAMDiscard:      {"postcopy-ram-discard", -1},
	CommandPackaged:        {"packaged", 4},
	CommandEnableCOLO:      {"enable-colo", 0},
	CommandPostcopyResume:  {"postcopy-resume", 0},
	CommandRecvBitmap:      {"recv-bitmap", -1},
	CommandSwitchoverStart: {"switchover-start", 0},
}

// String returns the command's name in lower case, such as "ping" or "postcopy-run".
func (t CommandType) String() string {
	if int(t) < len(commands) {
		return commands[t].name
	}
	return fmt.Sprintf("command %d", uint16(t))
}

// A Command is a record of type [CommandRecord]. The methods whose names begin with As
// decode its payload.
type Command struct {
	Type    CommandType
	Payload []byte // at most 65535 bytes
}

// String returns the name of the command.
func (c Command) String() string { return c.Type.String() }

// PutCommand writes c. It does not flush; QEMU flushes after each command.
func PutCommand(w *qemufile.Writer, c Command) {
	if len(c.Payload) > 0xffff {
		w.Fail(fmt.Errorf("vmstate: %v with %d bytes: %w", c, len(c.Payload), qemufile.ErrTooLong))
		return
	}
	w.PutByte(byte(CommandRecord))
	w.PutBE16(uint16(c.Type))
	w.PutBE16(uint16(len(c.Payload)))
	w.Write(c.Payload)
}

// ReadCommand reads a command after its type byte. The caller may keep the
// payload.
// An unknown command or a payload of the wrong length is [ErrCommand].
func ReadCommand(r *qemufile.Reader) (Command, error) {
	c := Command{Type: CommandType(r.BE16())}
	n := int(r.BE16())
	if err := r.Err(); err != nil {
		return c, qemufile.NoEOF(err)
	}
	if c.Type == CommandInvalid || int(c.Type) >= len(commands) {
		return c, fmt.Errorf("%w %#x of length %#x is unknown", ErrCommand, uint16(c.Type), n)
	}
	if want := commands[c.Type].size; want >= 0 && n != want {
		return c, fmt.Errorf("%w %v of length %d, want %d", ErrCommand, c, n, want)
	}
	if n > 0 {
		c.Payload = r.Bytes(uint64(n), 0xffff)
	}
	if err := r.Err(); err != nil {
		return c, qemufile.NoEOF(err)
	}
	return c, c.check()
}

// check looks into payloads of variable length.
func (c Command) check() (err error) {
	switch c.Type {
	case CommandPostcopyAdvise:
		_, err = c.AsPostcopyAdvise()
	case CommandRAMDiscard:
		_, err = c.AsRAMDiscard()
	case CommandRecvBitmap:
		_, err = c.AsRecvBitmap()
	}
	return err
}

func be32(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }

func (c Command) malformed(want CommandType) error {
	return fmt.Errorf("%w %v of %d bytes, want a valid %v", ErrCommand, c, len(c.Payload), want)
}

// OpenReturnPath asks the destination to answer on the same connection.
func OpenReturnPath() Command { return Command{Type: CommandOpenReturnPath} }

// Ping asks for a PONG of the same value on the return path.
func Ping(value uint32) Command { return Command{Type: CommandPing, Payload: be32(value)} }

// AsPing returns the value of a PING. Any other command is [ErrCommand].
func (c Command) AsPing() (value uint32, err error) {
	if c.Type != CommandPing || len(c.Payload) != 4 {
		return 0, c.malformed(CommandPing)
	}
	return binary.BigEndian.Uint32(c.Payload), nil
}

// EnableCOLO tells the destination that it is to become a secondary. It comes
// before the first START section.
func EnableCOLO() Command { return Command{Type: CommandEnableCOLO} }

// SwitchoverStart says that the source has stopped. Only QEMU 10.0 and later
// understand it; to an older one it is an error.
func SwitchoverStart() Command { return Command{Type: CommandSwitchoverStart} }
