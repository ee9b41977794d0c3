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

// The words that QEMU does not have. A side sends one only to a peer that has announced that it
// knows the word. Goodbye is the exception: a side that cannot take the peer's stream sends it
// to any peer as its last word, and a QEMU takes the unknown word for the end of the
// connection, which follows.
const (
	// Hello, before CheckpointReady: the secondary has read the primary's
	// announcement. The message carries the secondary's IdleTimeout in
	// nanoseconds as be64; 0 is no bound.
	Hello Message = 0x4c530001 + iota
	// Alive: the primary waits for its next checkpoint, and lives.
	Alive
	// Goodbye ends the session. A secondary that says it does not run the
	// guest, and will not. A primary that says it asks the secondary to answer
	// with Goodbye, and so to promise the same. A reason in words follows: be32
	// length, at most maxReason bytes.
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
