package colo

import "fmt"

// Message is one word of the checkpoint protocol (QAPI COLOMessage; on the
// wire its ordinal as be32).
type Message uint32

// The messages, in wire order. Which side sends which, and when, is the table
// in the package comment.
const (
	CheckpointReady   Message = iota // secondary: loaded the initial state and runs
	CheckpointRequest                // primary: a checkpoint begins, pause
	CheckpointReply                  // secondary: paused
	VMStateSend                      // primary: live sections follow, up to an EOF byte
	VMStateSize                      // primary: be64 length and that many bytes of device state follow
	VMStateReceived                  // secondary: all of it is staged
	VMStateLoaded                    // secondary: committed, runs again
	messageMax
)

// The words that are not QEMU's. A side says one only to a peer that has announced that it
// knows it, but for Goodbye, which is also the last word to a peer whose stream it cannot take:
// a QEMU takes that for the end of the connection, which follows.
const (
	// Hello, before CheckpointReady: the secondary has read the primary's
	// announcement. It carries the secondary's IdleTimeout in nanoseconds as
	// be64, 0 for none.
	Hello Message = 0x4c530001 + iota
	// Alive: the primary waits for its next checkpoint, and lives.
	Alive
	// Goodbye ends the session: whoever says it does not run the guest, if it
	// is the secondary; if it is the primary, it asks for the same word in
	// return, and the secondary that says so will not run the guest. A reason
	// in words follows: be32 length, at most maxReason bytes.
	Goodbye
	// DirtyPages, before CheckpointReply: the pages that the secondary's guest
	// wrote since the last checkpoint, which the primary is to send again. The
	// list of a [CopylessStage] follows.
	DirtyPages
	// UseChannels, after Hello: the secondary takes the memory of checkpoints over the
	// [Channels] that the primary has announced. It carries their number as be64.
	UseChannels
	// TakeEarly, after Hello and UseChannels: the secondary takes memory of a checkpoint that
	// has not begun. It carries as be64 how many bytes of it between two checkpoints.
	TakeEarly
	// EarlyPages: the primary waits for its next checkpoint, and live sections follow, of
	// what its guest has written meanwhile, up to an EOF byte. Only to a secondary that has
	// said TakeEarly.
	EarlyPages
)

var messageNames = [messageMax]string{
	"checkpoint-ready", "checkpoint-request", "checkpoint-reply", "vmstate-send",
	"vmstate-size", "vmstate-received", "vmstate-loaded",
}

// String returns the QAPI word.
func (m Message) String() string {
	switch {
	case m < messageMax:
		return messageNames[m]
	case m == Hello:
		return "hello"
	case m == Alive:
		return "alive"
	case m == Goodbye:
		return "goodbye"
	case m == DirtyPages:
		return "dirty-pages"
	case m == UseChannels:
		return "use-channels"
	case m == TakeEarly:
		return "take-early"
	case m == EarlyPages:
		return "early-pages"
	}
	return fmt.Sprintf("message(%d)", uint32(m))
}
