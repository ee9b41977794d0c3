package trial

import (
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/gocolo/lockstep/colo/filter"
	"github.com/gocolo/lockstep/internal/oracle"
)

// A client takes what the guest emits, from whichever side it comes, has the
// oracle judge it, and talks to the guest. What a side wrote to its connection has left, even if
// the side is dead before the client reads it; a frame that was cut has not.
type client struct {
	mu      sync.Mutex
	oracle  *oracle.Oracle
	opened  map[string]int       // connections that a side has made to send by
	ended   map[string]int       // of these, how many have ended
	alone   map[string]time.Time // first frame after a side took over, or since expect, when it came
	waiting map[string]bool      // the side has taken over, or is expected to, and sent nothing since
	frames  map[string][]arrival
	inputs  map[string]*input // the ways to the sides
	vlan    VLAN              // of each frame; set before it serves
	guestAt string            // the side that the guest is at, as far as the client knows: the sides say so
	err     error
}

func newClient(o *oracle.Oracle, guestAt string) *client {
	return &client{
		oracle: o, opened: make(map[string]int), ended: make(map[string]int), alone: make(map[string]time.Time),
		waiting: make(map[string]bool), frames: make(map[string][]arrival),
		inputs: make(map[string]*input), guestAt: guestAt,
	}
}

// serve takes the connections of the two sides until the listener is closed,
// and returns when they have ended.
func (c *client) serve(l net.Listener) {
	var group sync.WaitGroup
	defer group.Wait()
	t := &talk{c, make(chan struct{})}
	group.Go(t.run)
	defer close(t.stop)
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		group.Go(func() {
			defer conn.Close()
			c.take(conn)
		})
	}
}

// take reads one side's connection to its end.
func (c *client) take(conn net.Conn) {
	in := filter.NewConn(readOnly{conn}, filter.ConnConfig{})
	hello, err := in.ReadPacket()
	if err != nil {
		return
	}
	side, isInput := strings.CutSuffix(string(hello), InputSuffix)
	if isInput {
		c.mu.Lock()
		c.inputs[side] = newInput(conn)
		c.mu.Unlock()
		io.Copy(io.Discard, conn) // to the end: nothing comes by it
		return
	}
	c.mu.Lock()
	c.opened[side]++
	c.mu.Unlock()
	for {
		p, err := in.ReadPacket()
		now := time.Now()
		c.mu.Lock()
		switch {
		case err != nil:
			c.ended[side]++
			if !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) && c.err == nil {
				c.err = err
			}
			c.mu.Unlock()
			return
		case string(p) == TookOver:
			c.waiting[side] = true
			c.guestAt = side
		default:
			p, err = c.vlan.Untag(p)
			if err == nil && announces(p) {
				break // where the guest is now: the side has said so
			}
			if c.waiting[side] {
				c.waiting[side] = false
				c.alone[side] = now
			}
			if err != nil {
				c.oracle.Note(&c.oracle.Corrupted, "%v", err)
				break
			}
			if c.oracle.Reply(p) {
				break
			}
			if f, ok := c.oracle.Frame(p); ok {
				c.frames[side] = append(c.frames[side], arrival{now, f.VCPU, f.N})
			}
		}
		c.mu.Unlock()
	}
}

// announces reports whether a frame is the RARP request by which a side that has
// taken over tells the network where the guest is.
func announces(frame []byte) bool {
	return len(frame) >= 14 && frame[12] == 0x80 && frame[13] == 0x35
}

// seen has what the client knows at some instant.
type seen struct {
	oracle.Verdict
	last     []uint64 // of each vCPU, the greatest round that has left
	answered []uint64 // and the last input that it has answered
}

func (c *client) now() seen {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := seen{Verdict: c.oracle.Verdict}
	for v := range c.oracle.VCPUs() {
		last, answered := c.oracle.Progress(v)
		s.last = append(s.last, last)
		s.answered = append(s.answered, answered)
	}
	return s
}

// hasEnded reports whether all that a side sent has been taken.
func (c *client) hasEnded(side string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.opened[side] > 0 && c.ended[side] == c.opened[side]
}

// expect forgets when frames came from a side that is to take over from the other: the next
// counts as the first.
func (c *client) expect(side string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.alone, side)
	c.waiting[side] = true
}

// count returns how many frames have come from a side.
func (c *client) count(side string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.frames[side])
}

// lastFrame returns when the last frame came from a side; zero if none has.
func (c *client) lastFrame(side string) time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f := c.frames[side]; len(f) > 0 {
		return f[len(f)-1].at
	}
	return time.Time{}
}

// firstAlone returns when the first frame came that side released after it had
// taken over, or since it is expected to; zero if none has.
func (c *client) firstAlone(side string) time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.alone[side]
}

// readOnly makes a ReadWriter of a reader.
type readOnly struct{ io.Reader }

func (readOnly) Write([]byte) (int, error) { return 0, errors.ErrUnsupported }
