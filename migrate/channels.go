package migrate

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gocolo/lockstep/internal/lanes"
	"github.com/gocolo/lockstep/internal/wait"
	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate/ram"
	"github.com/gocolo/lockstep/vmstate/ram/multifd"
)

// Channels are the connections that carry pages beside the main one (multifd).
//
// At the end of each section of the stream all pages of the section have come over the
// channels, as with a QEMU up to 8.0. A later QEMU, on either side, does so only with
// -global migration.multifd-flush-after-each-section=on (machine types up to
// 8.0 have it on); without it the two sides wait for each other until [ErrChannelStuck].
type Channels struct {
	// Conns are the connections, at most 255, opened after the main one. Run owns
	// and closes them. None: all pages are in the main stream.
	Conns []Conn
	// UUID names the guest, as -uuid does with QEMU; zeros if it has none.
	UUID [16]byte

	// Method is how a source compresses what is in a packet. A QEMU wants its
	// parameter multifd-compression to be the same.
	Method multifd.Method
	// Compressor makes the compressors of a source, one for each channel. It is called as many
	// times before, to find out whether it can. A compressor that has a method Close is closed.
	// Nil: zlib at level 1, for multifd.Zlib only; for multifd.Zstd the host has to bring one.
	Compressor func(multifd.Method) (multifd.Compressor, error)

	// Decoder makes the decoders of a destination. Nil: zlib only.
	Decoder func(multifd.Method) (multifd.Decoder, error)
}

// channelPatience is how long a packet may take to leave, and how long a channel may
// bring none while the stream waits for it.
const channelPatience = time.Minute

// maxChannels is the number of channels that a channel's number, a byte, can tell apart.
const maxChannels = lanes.Max

func (c *Channels) check() error {
	if len(c.Conns) > maxChannels {
		return fmt.Errorf("migrate: %d channels, at most %d", len(c.Conns), maxChannels)
	}
	return nil
}

// close closes the connections of a Run that does not use them.
func (c *Channels) close() {
	for _, conn := range c.Conns {
		conn.Close()
	}
}

// A Compressor compresses what goes over one channel, as one stream. It belongs to
// one goroutine.
type Compressor = multifd.Compressor

// sender sends pages over channels. It is a ram.PageSender.
type sender struct {
	*lanes.Sender
	stop func() (called bool)
}

// newSender starts the channels' goroutines, which close ends, as the end of ctx does. It
// owns the channels, also where it fails. fail is called once if one of them breaks.
func newSender(ctx context.Context, c *Channels, fail func()) (*sender, error) {
	cfg := lanes.SenderConfig{ID: c.UUID, Method: c.Method, Compressor: c.Compressor, Patience: channelPatience}
	for _, conn := range c.Conns {
		cfg.Conns = append(cfg.Conns, conn)
	}
	if fail != nil {
		cfg.Fail = func(error) { fail() }
	}
	s, err := lanes.NewSender(cfg)
	if err != nil {
		for _, conn := range c.Conns {
			conn.Close()
		}
		return nil, fmt.Errorf("migrate: %w", err)
	}
	s.Start()
	return &sender{s, wait.AtEnd(ctx, func() { s.Break(context.Cause(ctx)) })}, nil
}

// close ends the channels and waits for their goroutines.
func (s *sender) close() {
	s.stop()
	s.Close()
}

// broken returns the error with which a channel broke, or err if none has.
func (s *sender) broken(err error) error {
	if why := s.Err(); why != nil {
		return stuck(why)
	}
	return err
}

// SendPage implements ram.PageSender.
func (s *sender) SendPage(block string, offset uint64, page []byte) error {
	return stuck(s.Sender.SendPage(block, offset, page))
}

// Sync implements ram.PageSender.
func (s *sender) Sync() error { return stuck(s.Sender.Sync()) }

// stuck turns the error of a channel into one of this package.
func stuck(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, lanes.ErrStuck):
		return fmt.Errorf("%w: %w", ErrChannelStuck, err)
	}
	return fmt.Errorf("migrate: %w", err)
}

// receiver takes pages from channels.
type receiver struct {
	memory  *ram.Lazy
	lanes   []*inbound
	group   sync.WaitGroup
	stopped atomic.Bool // the stream has come to its end

	mu   sync.Mutex
	seen [maxChannels + 1]bool // numbers of channels

	once sync.Once
	fail func(error) // ends the main connection
	bad  chan struct{}
	err  error // valid when bad is closed
}

// errGone means that the source has ended a channel while memory was still to come. Before
// the end of the stream, but after the last of the memory, it may.
var errGone = errors.New("migrate: a channel has ended within the stream")

// inbound is one channel of a receiver.
type inbound struct {
	*wire
	arrived chan struct{} // has sent all of a section
	resume  chan struct{} // and all other channels have, too
	gone    chan struct{} // closed when it has ended, between two sections
	end     error         // how it has; valid when gone is closed
	packets atomic.Uint64 // packets that have come on this channel
}

// newReceiver starts the channels' goroutines, which stop ends. fail is called once
// if one of them breaks, with how.
func newReceiver(ctx context.Context, c *Channels, memory *ram.Lazy, fail func(error)) *receiver {
	v := &receiver{memory: memory, bad: make(chan struct{}), fail: fail}
	for _, conn := range c.Conns {
		v.lanes = append(v.lanes, &inbound{wire: open(ctx, conn), arrived: make(chan struct{}), resume: make(chan struct{}), gone: make(chan struct{})})
	}
	for i, l := range v.lanes {
		v.group.Go(func() {
			if err := v.run(l, c); err != nil && !v.stopped.Load() {
				v.broke(fmt.Errorf("migrate: connection %d of channels: %w", i, err))
			}
		})
	}
	return v
}

// broke keeps the first error, and ends all channels and the main connection.
func (v *receiver) broke(err error) {
	v.once.Do(func() {
		v.err = err
		close(v.bad)
		for _, l := range v.lanes {
			l.conn.Close()
		}
		v.fail(err)
	})
}

// run takes packets from a channel until it ends, which it must not do before the stream
// has ended.
func (v *receiver) run(l *inbound, c *Channels) error {
	in, err := multifd.ReadInit(l.r, c.UUID, len(c.Conns))
	if err != nil {
		return err
	}
	v.mu.Lock()
	twice := v.seen[in.Channel]
	v.seen[in.Channel] = true
	v.mu.Unlock()
	if twice {
		return fmt.Errorf("%w: a second channel %d", multifd.ErrChannel, in.Channel)
	}
	r := multifd.NewReader(l.r)
	r.Decoder = c.Decoder
	for whole := false; ; {
		p, err := r.Read()
		if err != nil && whole && l.r.Err() != nil {
			// It does not matter how it has ended: TLS may end without a close_notify,
			// and a QEMU shuts its channels when it is done, even in the middle of an
			// empty packet. If there is another section, its barrier finds the channel
			// gone.
			l.end = qemufile.NoEOF(err)
			close(l.gone)
			return nil
		}
		if err != nil {
			return qemufile.NoEOF(err)
		}
		l.packets.Add(1)
		if p.Device != nil {
			return fmt.Errorf("migrate: state of device %q in a channel", p.Device.Name)
		}
		data, err := r.Pages()
		if err != nil {
			return err
		}
		for i, off := range p.Normal {
			if err := v.memory.StagePage(p.Block, off, data[i*ram.PageSize:][:ram.PageSize]); err != nil {
				return err
			}
		}
		for _, off := range p.Zero {
			if err := v.memory.StagePage(p.Block, off, nil); err != nil {
				return err
			}
		}
		if !p.Sync {
			// QEMU may put the flag of a section's end on the last pages, and
			// then sends the packet that was to carry it, empty.
			whole = whole && len(p.Normal)+len(p.Zero) == 0
			continue
		}
		whole = true
		for _, step := range []chan struct{}{l.arrived, l.resume} {
			select {
			case step <- struct{}{}:
			case <-v.bad:
				return nil
			}
		}
	}
}

// barrier returns when every channel has sent all of a section.
func (v *receiver) barrier() error {
	for step := range 2 {
		for _, l := range v.lanes {
			c := l.arrived
			if step == 1 {
				c = l.resume
			}
			select {
			case <-c:
				continue
			default:
			}
			if err := v.await(l, c); err != nil {
				return err
			}
		}
	}
	return nil
}

// await waits for one step of a channel, as long as packets come.
func (v *receiver) await(l *inbound, step chan struct{}) error {
	seen := l.packets.Load()
	late := time.NewTimer(channelPatience)
	defer late.Stop()
	for {
		select {
		case <-step:
			return nil
		case <-l.gone:
			return fmt.Errorf("%w: %w", errGone, l.end)
		case <-v.bad:
			return v.err
		case <-late.C:
			now := l.packets.Load()
			if now == seen {
				return ErrChannelStuck
			}
			seen = now
			late.Reset(channelPatience)
		}
	}
}

// stop ends the channels: when it has returned no more pages are placed. It returns the
// error with which one broke.
func (v *receiver) stop() error {
	v.stopped.Store(true)
	for _, l := range v.lanes {
		l.close()
	}
	select {
	case <-v.bad:
		v.group.Wait()
		return v.err
	default:
	}
	// Channels that wait for the others at the end of a section that does not come.
	v.once.Do(func() { close(v.bad) })
	v.group.Wait()
	return v.err
}
