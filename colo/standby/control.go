package standby

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

// ErrControl says that what has come over a control channel is none of its messages.
var ErrControl = errors.New("standby: not a message of the control channel")

// ControlVersion is in the first message of either side. Another one is refused.
const ControlVersion = 1

// MaxControl bounds a message of the control channel, in bytes.
const MaxControl = 4 << 10

// A Said is what a message of the control channel is about.
type Said string

// What the guardian says, beside its Hello and Beat.
const (
	SaidHello   Said = "hello"   // of both, first: Version, Generation
	SaidBeat    Said = "beat"    // of both: the guardian's is answered by the standby's
	SaidProtect Said = "protect" // the next migration is that of Generation
	SaidPlanned Said = "planned" // Word Planned, with Why
	SaidDead    Said = "dead"    // Word Dead
	SaidAlone   Said = "alone"   // Word Alone: Generation is the one that has begun
	SaidStopped Said = "stopped" // Word Stopped
)

// What the standby says, beside its Hello and Beat.
const (
	SaidWants Said = "wants" // an operator has promoted it: the guest is to be stopped
	SaidRuns  Said = "runs"  // it has gone on with the guest
)

// ControlMessage is what one side of a control channel tells the other: a line of
// JSON. A number that does not belong to what is said is zero.
type ControlMessage struct {
	Say     Said `json:"say"`
	Version int  `json:"version,omitempty"` // of the protocol; in a Hello only
	// Generation is the one of the guest that this is about; in the standby's
	// Hello and Beat, of the copy that it has.
	Generation uint64 `json:"generation,omitempty"`
	Ready      bool   `json:"ready,omitempty"` // of the standby's Hello and Beat: it waits for a primary
	Epoch      uint64 `json:"epoch,omitempty"` // of the standby's Beat: its last checkpoint
	Bytes      uint64 `json:"bytes,omitempty"` // of the standby's Beat: received from the primary so far
	Seq        uint64 `json:"seq,omitempty"`   // of a Beat; the standby's has that of the one it answers
	// Promise, in a Beat of the standby, is a number of milliseconds, counted from the
	// Beat that it answers: for so long the standby does not ask an arbiter for the
	// guest. See failover.Holder.
	Promise uint32 `json:"promise,omitempty"`
	Why     string `json:"why,omitempty"` // a reason for people to read
}

// word returns what a guardian's message says of its guest.
func (m ControlMessage) word() Word {
	switch m.Say {
	case SaidPlanned:
		return Planned
	case SaidDead:
		return Dead
	case SaidAlone:
		return Alone
	case SaidStopped:
		return Stopped
	}
	return NoWord
}

// WordFor returns what a guardian's message says of the guest whose copy is of a
// generation. Words of an earlier generation say nothing; that a later one has
// begun says that the copy is old, whatever else the message is about.
func (m ControlMessage) WordFor(generation uint64) Word {
	switch {
	case m.Generation < generation || m.Say == SaidAlone && m.Generation == generation:
		return NoWord
	case m.Generation > generation:
		if w := m.word(); w == Planned {
			return w
		}
		return Alone
	}
	return m.word()
}

// ParseControl returns the message in a line. An error matches [ErrControl].
func ParseControl(line []byte) (ControlMessage, error) {
	var m ControlMessage
	if len(line) > MaxControl {
		return m, fmt.Errorf("%w: %d bytes", ErrControl, len(line))
	}
	if err := json.Unmarshal(line, &m); err != nil {
		return ControlMessage{}, fmt.Errorf("%w: %w", ErrControl, err)
	}
	switch m.Say {
	case SaidHello:
		if m.Version != ControlVersion {
			return ControlMessage{}, fmt.Errorf("%w: version %d, this is version %d", ErrControl, m.Version, ControlVersion)
		}
	case SaidBeat, SaidProtect, SaidPlanned, SaidDead, SaidAlone, SaidStopped, SaidWants, SaidRuns:
		if m.Version != 0 {
			return ControlMessage{}, fmt.Errorf("%w: a version in %q", ErrControl, m.Say)
		}
	default:
		return ControlMessage{}, fmt.Errorf("%w: %.40q", ErrControl, string(m.Say))
	}
	return m, nil
}

// A Control is one side of the control channel between a guardian and a standby,
// over a connection that the caller has authenticated. Send may be called from any
// goroutine, Receive from one.
type Control struct {
	conn net.Conn
	in   *bufio.Scanner

	mu sync.Mutex // one message at a time
}

// NewControl returns a Control over conn, which the caller closes.
func NewControl(conn net.Conn) *Control {
	c := &Control{conn: conn, in: bufio.NewScanner(conn)}
	c.in.Buffer(make([]byte, 0, 512), MaxControl)
	return c
}

// Send tells the other side something, or fails when it is not taken within a
// time. After an error the connection is of no more use.
func (c *Control) Send(m ControlMessage, within time.Duration) error {
	for { // words for people must not make it too long
		b, err := json.Marshal(m)
		if err != nil {
			return err
		}
		if len(b) < MaxControl {
			c.mu.Lock()
			defer c.mu.Unlock()
			if err := c.conn.SetWriteDeadline(time.Now().Add(within)); err != nil {
				return err
			}
			_, err = c.conn.Write(append(b, '\n'))
			return err
		}
		m.Why = m.Why[:len(m.Why)/2]
	}
}

// Receive returns the next message. Where none comes within a time the error is
// the connection's timeout; what is no message is [ErrControl]. After an error
// the connection is of no more use.
func (c *Control) Receive(within time.Duration) (ControlMessage, error) {
	if err := c.conn.SetReadDeadline(time.Now().Add(within)); err != nil {
		return ControlMessage{}, err
	}
	if !c.in.Scan() {
		err := c.in.Err()
		switch {
		case err == nil:
			err = net.ErrClosed
		case errors.Is(err, bufio.ErrTooLong):
			err = fmt.Errorf("%w: more than %d bytes", ErrControl, MaxControl)
		}
		return ControlMessage{}, err
	}
	return ParseControl(c.in.Bytes())
}
