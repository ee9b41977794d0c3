package qmp

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/gocolo/lockstep/event"
)

// The bounds of a Client.
const (
	// MaxLine is how much a monitor may say at once, in bytes; the answer of a
	// QEMU to query-qmp-schema is some 200 KB.
	MaxLine = 16 << 20
	// MaxPending is how many events a Client keeps for Wait, and MaxPendingBytes how
	// long the lines may be, together, in which they came. Of more the oldest are
	// dropped, and counted.
	MaxPending      = 4096
	MaxPendingBytes = 16 << 20
)

// ErrProtocol means that a monitor cannot have sent what came over the connection. The
// Client cannot be used any more.
var ErrProtocol = errors.New("qmp: not what a monitor says")

// Client is a connection to a monitor. Its methods may be called from any
// goroutine, several at a time: commands are sent in the order of the calls. It
// has no goroutine of its own: the callers that wait for something read what the
// monitor says.
type Client struct {
	// Version is the version of the emulator, as in "7.2.22". It does not change.
	Version             string
	Major, Minor, Micro int
	// OOB is whether out-of-band execution is enabled: see [Client.DoOOB].
	OOB bool

	conn    net.Conn
	decoder *event.Decoder
	writing chan struct{} // capacity 1: a lock; the goroutine that has put a value in may write
	reading chan struct{} // capacity 1: a lock; the goroutine that has put a value in may read

	partial []byte // what has come of a line that is not whole yet; for the holder of reading
	buf     []byte // for the holder of reading

	mu      sync.Mutex
	id      int
	waiting map[int]chan reply // capacity 1, by the command's id
	owed    []unanswered       // in the order in which they were sent
	paid    chan struct{}      // closed when there are less of owed
	events  []pending
	bytes   int           // of events
	news    chan struct{} // closed when there is another event, or err
	missed  uint64
	mute    error // why no command can be sent any more; earlier answers and events are still read
	err     error // why nothing more can be heard, or sent
}

// A pending event has come, and nobody has waited for it yet.
type pending struct {
	event.Record
	bytes int // the length of its line
}

// reply is the answer of a monitor to a command.
type reply struct {
	ID     *int            `json:"id"`
	Return json.RawMessage `json:"return"`
	Error  *Error          `json:"error"`
}

// Dial connects to a monitor and makes it ready for commands. The address is as
// [Split] takes it. A QEMU serves one client at a time: while it has another,
// Dial waits until ctx ends.
func Dial(ctx context.Context, addr string) (*Client, error) {
	network, address := Split(addr)
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	c, err := NewClient(ctx, conn)
	if err != nil {
		return nil, fmt.Errorf("qmp %s: %w", addr, err)
	}
	return c, nil
}

// NewClient does what [Dial] does over a connection that exists already. The Client owns
// it: if NewClient fails, it closes it.
func NewClient(ctx context.Context, conn net.Conn) (*Client, error) {
	return newClient(ctx, conn, false)
}

// NewClientOOB does what [NewClient] does, and enables out-of-band execution if the monitor
// offers it: the field OOB of the Client tells.
func NewClientOOB(ctx context.Context, conn net.Conn) (*Client, error) {
	return newClient(ctx, conn, true)
}

func newClient(ctx context.Context, conn net.Conn, oob bool) (*Client, error) {
	c := &Client{
		conn: conn, decoder: new(event.Decoder), buf: make([]byte, 4<<10), waiting: make(map[int]chan reply),
		writing: make(chan struct{}, 1), reading: make(chan struct{}, 1), news: make(chan struct{}),
		paid: make(chan struct{}),
	}
	if err := c.negotiate(ctx, oob); err != nil {
		conn.Close()
		return nil, err
	}
	return c, nil
}

// maxLeftover is how many lines may come before the greeting.
const maxLeftover = 256

// leftover reports whether a line may have been meant for the client before this one. A QEMU
// that could not send everything to that client sends the rest to the next one, before
// its greeting: events and answers, of which the first may lack its beginning.
func leftover(line []byte, first bool) bool {
	var said map[string]json.RawMessage
	if json.Unmarshal(line, &said) != nil {
		return first && bytes.HasSuffix(bytes.TrimSpace(line), []byte("}"))
	}
	return said["event"] != nil || said["return"] != nil || said["error"] != nil
}

func (c *Client) negotiate(ctx context.Context, oob bool) error {
	var hello struct {
		QMP *struct {
			Version struct {
				QEMU struct{ Major, Minor, Micro int } `json:"qemu"`
			} `json:"version"`
			Capabilities []string `json:"capabilities"`
		}
	}
	began := time.Now()
	for skipped := 0; ; skipped++ {
		line, err := c.line(ctx)
		if err != nil {
			return fmt.Errorf("no greeting after %v (is another client connected, or does the emulator hang?): %w", since(began), err)
		}
		if err := json.Unmarshal(line, &hello); err == nil && hello.QMP != nil {
			break
		}
		if skipped == maxLeftover || !leftover(line, skipped == 0) {
			return fmt.Errorf("%w: %.60q", ErrProtocol, line)
		}
	}
	v := hello.QMP.Version.QEMU
	c.Major, c.Minor, c.Micro = v.Major, v.Minor, v.Micro
	c.Version = fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Micro)
	if oob && slices.Contains(hello.QMP.Capabilities, "oob") {
		c.OOB = true
		return c.Do(ctx, "qmp_capabilities", map[string][]string{"enable": {"oob"}}, nil)
	}
	return c.Do(ctx, "qmp_capabilities", nil, nil)
}

// Do executes a command and decodes its result into out, unless that is nil. args
// is a value that encoding/json encodes as an object, or nil. If the monitor refuses the
// command, Do returns an [*Error]. If ctx ends, it returns an error that matches that of ctx, and
// says for how long there was no answer; the monitor may execute the command all the same.
func (c *Client) Do(ctx context.Context, command string, args, out any) error {
	return c.do(ctx, "execute", command, args, out)
}

// DoOOB does what [Client.Do] does, out of band: the monitor executes the command before it
// has answered earlier ones. The field OOB must be true, and the command must allow it. So that
// a QEMU goes on reading them, a Client with OOB sends at most 7 of the other commands before
// they are answered; one more waits in Do.
func (c *Client) DoOOB(ctx context.Context, command string, args, out any) error {
	return c.do(ctx, "exec-oob", command, args, out)
}

func (c *Client) do(ctx context.Context, verb, command string, args, out any) error {
	began := time.Now()
	answer, err := c.ask(ctx, verb, command, args)
	if err != nil {
		if ctx.Err() != nil && (errors.Is(err, context.DeadlineExceeded) || time.Since(began) >= time.Second) {
			return fmt.Errorf("%s: %s: %w", command, c.silence(began), err)
		}
		return fmt.Errorf("%s: %w", command, err)
	}
	if answer.Error != nil {
		answer.Error.Command = command
		return answer.Error
	}
	if out != nil {
		if err := json.Unmarshal(answer.Return, out); err != nil {
			return fmt.Errorf("%s: %w", command, err)
		}
	}
	return nil
}

func (c *Client) ask(ctx context.Context, verb, command string, args any) (reply, error) {
	answer := make(chan reply, 1)
	c.mu.Lock()
	c.id++
	id, err := c.id, c.err
	if err == nil {
		err = c.mute
	}
	c.waiting[id] = answer
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		delete(c.waiting, id)
		c.mu.Unlock()
	}()
	if err != nil {
		return reply{}, err
	}
	request := map[string]any{verb: command, "id": id}
	if args != nil {
		request["arguments"] = args
	}
	text, err := json.Marshal(request)
	if err != nil {
		return reply{}, err
	}
	if err := c.write(ctx, unanswered{id: id, command: command, oob: verb == "exec-oob"}, append(text, '\n')); err != nil {
		return reply{}, err
	}
	for {
		select {
		case a := <-answer:
			return a, nil
		default:
		}
		select {
		case a := <-answer:
			return a, nil
		case <-ctx.Done():
			return reply{}, ctx.Err()
		case c.reading <- struct{}{}:
			var err error
			select {
			case a := <-answer: // it came while this one waited for its turn
				<-c.reading
				return a, nil
			default:
				err = c.read(ctx)
			}
			<-c.reading
			if err != nil {
				return reply{}, err
			}
		}
	}
}

// write sends a whole command. If it cannot, no later command is sent, but reading goes on: a
// monitor that has ended may have said why.
func (c *Client) write(ctx context.Context, u unanswered, text []byte) error {
	if err := c.turn(ctx, u); err != nil {
		return err
	}
	defer func() { <-c.writing }()
	stop := bound(ctx, c.conn.SetWriteDeadline)
	n, err := c.conn.Write(text)
	stop()
	if err == nil {
		return nil
	}
	if n == 0 {
		c.withdraw(u.id)
	}
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	if n > 0 || ctx.Err() == nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.mute == nil {
			c.mute = err
		}
	}
	return err
}

// read takes one line and gives it to the caller that waits for it. Only the holder of
// reading may call it.
func (c *Client) read(ctx context.Context) error {
	line, err := c.line(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		c.fail(err)
		return err
	}
	rec, err := c.decoder.Decode(line)
	if err == nil {
		c.keep(pending{rec, len(line)})
		return nil
	}
	var a reply
	if errors.Is(err, event.ErrNotEvent) {
		err = json.Unmarshal(line, &a)
	}
	if err != nil {
		if !json.Valid(line) {
			err = fmt.Errorf("%w: %.60q", ErrProtocol, line)
			c.fail(err)
			return err
		}
		return nil // an event or an answer that cannot be decoded is dropped; the Client goes on
	}
	if a.ID != nil {
		c.mu.Lock()
		c.answered(*a.ID)
		if to := c.waiting[*a.ID]; to != nil {
			select {
			case to <- a:
			default: // a second answer
			}
		} // else its caller has given up
		c.mu.Unlock()
	}
	return nil
}

// line returns a whole line. What has come of one when ctx ends is kept.
func (c *Client) line(ctx context.Context) ([]byte, error) {
	defer bound(ctx, c.conn.SetReadDeadline)()
	searched := 0
	for {
		if i := bytes.IndexByte(c.partial[searched:], '\n'); i >= 0 {
			line := bytes.Clone(c.partial[:searched+i+1])
			if c.partial = c.partial[searched+i+1:]; len(c.partial) == 0 {
				c.partial = nil
			}
			return line, nil
		}
		if searched = len(c.partial); searched > MaxLine {
			return nil, fmt.Errorf("%w: a line of more than %d bytes", ErrProtocol, MaxLine)
		}
		n, err := c.conn.Read(c.buf)
		c.partial = append(c.partial, c.buf[:n]...)
		if err != nil && n == 0 {
			if ctx.Err() != nil {
				err = ctx.Err()
			}
			return nil, err
		}
	}
}

func (c *Client) keep(p pending) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.events = append(c.events, p)
	for c.bytes += p.bytes; len(c.events) > MaxPending || c.bytes > MaxPendingBytes && len(c.events) > 1; c.missed++ {
		c.next()
	}
	close(c.news)
	c.news = make(chan struct{})
}

// next takes the oldest event. c.mu is held.
func (c *Client) next() event.Record {
	p := c.events[0]
	c.events[0] = pending{} // what it holds is not kept by the array
	c.events = c.events[1:]
	c.bytes -= p.bytes
	return p.Record
}

// fail makes all present and later calls return err.
func (c *Client) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.err = err
		close(c.news)
		c.news = make(chan struct{})
	}
}

// Wait returns the next event for which match returns true. It looks at those that have
// come since the last Wait, in their order, and then waits for more; events before the
// one that it returns are dropped. What the monitor said before its end is found too,
// even if a command could not be sent any more. match is called with a lock held, and
// must not call the Client.
func (c *Client) Wait(ctx context.Context, match func(event.Record) bool) (event.Record, error) {
	for {
		c.mu.Lock()
		for len(c.events) > 0 {
			if e := c.next(); match(e) {
				c.mu.Unlock()
				return e, nil
			}
		}
		news, err := c.news, c.err
		c.mu.Unlock()
		if err != nil {
			return event.Record{}, err
		}
		select {
		case <-news:
			continue
		case <-ctx.Done():
			return event.Record{}, ctx.Err()
		case c.reading <- struct{}{}:
		}
		select {
		case <-news:
		default:
			err = c.read(ctx)
		}
		<-c.reading
		if err != nil {
			return event.Record{}, err
		}
	}
}

// Pending reports whether match returns true for an event that came with the answers to
// commands, and that Wait has neither returned nor dropped yet. match is called as Wait
// calls it.
func (c *Client) Pending(match func(event.Record) bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.ContainsFunc(c.events, func(p pending) bool { return match(p.Record) })
}

// Missed returns how many events were dropped because nobody waited for them.
func (c *Client) Missed() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.missed
}

// bound ends reads or writes when ctx does, until the function that it returns is
// called.
func bound(ctx context.Context, set func(time.Time) error) (release func()) {
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(done)
		set(time.Unix(1, 0))
	})
	return func() {
		if !stop() {
			<-done
			set(time.Time{})
		}
	}
}

// Close ends the connection; the emulator goes on. What waits for something gets
// an error.
func (c *Client) Close() error { return c.conn.Close() }
