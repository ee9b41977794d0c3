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

var messageNames = [messageMax]string{
	"checkpoint-ready", "checkpoint-request", "checkpoint-reply", "vmstate-send",
	"vmstate-size", "vmstate-received", "vmstate-loaded",
}

// String returns the QAPI word.
func (m Message) String() string {
	if m < messageMax {
		return messageNames[m]
	}
	return fmt.Sprintf("message(%d)", uint32(m))
}
