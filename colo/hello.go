package colo

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/gocolo/lockstep/internal/plain"
)

// How two sides of this package recognise each other. The primary announces itself in the
// description that ends the initial stream, as one more member of its JSON
// object: a QEMU reads the description and throws it away. A secondary that
// knows the member answers with Hello in front of CheckpointReady. Neither word
// is ever sent to a QEMU.

// announcement is the member that a primary adds to the description of its initial stream.
type announcement struct {
	Version int `json:"version"` // 1
	// CheckpointTimeout in nanoseconds: the primary never takes longer over a
	// checkpoint. 0: it has no bound.
	CheckpointTimeout int64 `json:"checkpoint-timeout"`
}

// offer is all that a primary announces: the announcement, and the extensions
// of the protocol that this primary has.
type offer struct {
	announcement
	Resend bool `json:"resend"` // DirtyPages
	// Channels is how many there are, 0: none, and Compression how they are
	// compressed, by the method's name.
	Channels    int    `json:"channels"`
	Compression string `json:"compression"`
	// Early: the primary may send memory between checkpoints. Differences: it may send
	// that memory as differences, too.
	Early       bool `json:"early"`
	Differences bool `json:"differences"`
}

const announcementVersion = 1

// announce adds a to a description, which is a JSON object.
func (a announcement) announce(description []byte) []byte {
	return offer{announcement: a}.announce(description)
}

// announce adds o to a description.
func (o offer) announce(description []byte) []byte {
	end := bytes.LastIndexByte(description, '}')
	if end < 0 {
		return description
	}
	text := bytes.Clone(description[:end])
	text = fmt.Appendf(text, `, "lockstep": {"version": %d, "checkpoint-timeout": %d, "resend": %t`, o.Version, o.CheckpointTimeout, o.Resend)
	if o.Channels > 0 {
		text = fmt.Appendf(text, `, "channels": %d, "compression": %q`, o.Channels, o.Compression)
	}
	if o.Early {
		text = fmt.Appendf(text, `, "early": true, "differences": %t`, o.Differences)
	}
	return append(text, "}}"...)
}

// announced returns the announcement in a description, nil if there is none or
// it is of a version that is not known here.
func announced(description []byte) *offer {
	if !bytes.Contains(description, []byte(`"lockstep"`)) {
		return nil
	}
	var d struct {
		Lockstep *offer `json:"lockstep"`
	}
	if json.Unmarshal(description, &d) != nil || d.Lockstep == nil || d.Lockstep.Version != announcementVersion {
		return nil
	}
	return d.Lockstep
}

// longest bounds the times that a peer announces; a longer one is taken for this one.
const longest = 24 * time.Hour

func (a *announcement) checkpointTimeout() time.Duration {
	return min(max(0, time.Duration(a.CheckpointTimeout)), longest)
}

// maxReason bounds the reason that a goodbye carries, in bytes.
const maxReason = 1 << 10

// sayGoodbye sends Goodbye, the last word of this side, ahead of what the writer may
// still have queued. The last write must have been whole.
func (l *Link) sayGoodbye(reason string) error {
	if l.conn.half {
		return errInterrupted
	}
	if len(reason) > maxReason {
		reason = strings.ToValidUTF8(reason[:maxReason], "")
	}
	l.trace(">", Goodbye, 0)
	b := binary.BigEndian.AppendUint32(nil, uint32(Goodbye))
	b = binary.BigEndian.AppendUint32(b, uint32(len(reason)))
	b = append(b, reason...)
	_, err := l.conn.Write(b)
	return err
}

// goodbye reads the reason that follows the word Goodbye, and returns it as a *GoodbyeError. The
// reason may take as long as one read of the link, however many reads bring it.
func (l *Link) goodbye() error {
	l.trace("<", Goodbye, 0)
	was := l.conn.until
	if at, _ := l.conn.deadline(); !at.IsZero() {
		l.until(at)
		defer l.until(was)
	}
	n := l.R.BE32()
	if n > maxReason {
		l.R.Fail(fmt.Errorf("%w: a reason of %d bytes", ErrSize, n))
	}
	text := l.R.Bytes(uint64(n), maxReason)
	if err := l.R.Err(); err != nil {
		return &GoodbyeError{Reason: err.Error()} // the word itself was read whole
	}
	return &GoodbyeError{Reason: plain.Text(string(text), maxReason)}
}

// linger reads and drops what the peer still sends, until the peer has closed the
// connection or d has passed: closing with unread bytes would reset the connection, and
// the last word could be lost.
func (l *Link) linger(d time.Duration) {
	l.until(time.Now().Add(d))
	p := make([]byte, 32<<10)
	for {
		if _, err := l.conn.Read(p); err != nil {
			return
		}
	}
}
