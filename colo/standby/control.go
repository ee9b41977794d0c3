package standby

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"
)

// ErrControl means that a line which came over a control channel is no message of it.
var ErrControl = errors.New("standby: not a message of the control channel")

// ControlVersion is in the first message of either side. Another one is refused.
const ControlVersion = 1

// MaxControl bounds a message of the control channel, in bytes.
const MaxControl = 4 << 10

// A Said is the kind of a message of the control channel.
type Said string

// The messages of the guardian; Hello and Beat are sent by both sides.
const (
	SaidHello   Said = "hello"   // of both, first: Version, Generation
	SaidBeat    Said = "beat"    // of both: the guardian's is answered by the standby's
	SaidProtect Said = "protect" // the next migration is that of Generation
	SaidPlanned Said = "planned" // Word Planned, with Why
	SaidDead    Said = "dead"    // Word Dead
	SaidAlone   Said = "alone"   // Word Alone: Generation is the one that has begun
	SaidStopped Said = "stopped" // Word Stopped
)

// The messages of the standby, beside its Hello and Beat.
const (
	SaidWants Said = "wants" // an operator has promoted it: the guest is to be stopped
	SaidRuns  Said = "runs"  // it has gone on with the guest
)

// ControlMessage is a message of a control channel: a line of JSON. A number that does not
// belong to its kind is zero.
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
	// Why has a reason for people to read. In a Beat of the guardian, it is what a standby that
	// was promoted has to wait for, as far as that is known.
	Why string `json:"why,omitempty"`
}

// word returns the Word for a guardian's message.
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

// WordFor returns the Word for a guardian's message, about the guest of which this host
// has a copy of that generation. A message about an earlier generation gives NoWord. A
// message about a later one gives Alone, whatever its kind: the copy is old.
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

	turn chan struct{} // capacity one: held while a message is sent, which may wait
}

// NewControl returns a Control over conn, which the caller closes.
func NewControl(conn net.Conn) *Control {
	c := &Control{conn: conn, in: bufio.NewScanner(conn), turn: make(chan struct{}, 1)}
	c.in.Buffer(make([]byte, 0, 512), MaxControl)
	return c
}

// Send sends a message, or fails if the other side does not take it within that time, in which
// messages of other goroutines may have to leave first. After an error the Control cannot be used
// any more.
func (c *Control) Send(m ControlMessage, within time.Duration) error {
	end := time.Now().Add(within)
	for { // words for people must not make it too long
		b, err := json.Marshal(m)
		if err != nil {
			return err
		}
		if len(b) < MaxControl {
			late := time.NewTimer(time.Until(end))
			defer late.Stop()
			select {
			case c.turn <- struct{}{}:
			case <-late.C:
				return os.ErrDeadlineExceeded
			}
			defer func() { <-c.turn }()
			if err := c.conn.SetWriteDeadline(end); err != nil {
				return err
			}
			_, err = c.conn.Write(append(b, '\n'))
			return err
		}
		m.Why = m.Why[:len(m.Why)/2]
	}
}

// Receive returns the next message. If none comes within that time the error is a timeout
// of the connection; a line that is no message is [ErrControl]; the end of the connection is
// io.EOF. After an error the Control cannot be used any more.
func (c *Control) Receive(within time.Duration) (ControlMessage, error) {
	// A net.Pipe whose other end is closed takes no deadline: what is left, or the end, is read.
	if err := c.conn.SetReadDeadline(time.Now().Add(within)); err != nil && !errors.Is(err, io.ErrClosedPipe) {
		return ControlMessage{}, err
	}
	if !c.in.Scan() {
		err := c.in.Err()
		switch {
		case err == nil:
			err = io.EOF
		case errors.Is(err, bufio.ErrTooLong):
			err = fmt.Errorf("%w: more than %d bytes", ErrControl, MaxControl)
		}
		return ControlMessage{}, err
	}
	return ParseControl(c.in.Bytes())
}
