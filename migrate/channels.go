package migrate

import (
	"bytes"
	"compress/zlib"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate/ram"
	"github.com/gocolo/lockstep/vmstate/ram/multifd"
)

// Channels are the connections that carry pages beside the main one (multifd).
//
// They are in step with the stream at the end of each section, as a QEMU up to 8.0
// has them. A later one, on either side, does so with
// -global migration.multifd-flush-after-each-section=on only (machine types up to
// 8.0 have it on); without, the two sides wait for each other until [ErrChannelStuck].
type Channels struct {
	// Conns are the connections, at most 255, opened after the main one. Run owns
	// and closes them. None: all pages are in the main stream.
	Conns []Conn
	// UUID is the guest's, as a QEMU with -uuid has it; zeros if it has none.
	UUID [16]byte

	// Method is how a source compresses what is in a packet. A QEMU wants its
	// parameter multifd-compression to be the same.
	Method multifd.Method
	// Compressor makes a source's compressors, one for each channel. Nil: zlib at
	// level 1, for multifd.Zlib only. A compressor for multifd.Zstd is the host's.
	Compressor func(multifd.Method) (Compressor, error)

	// Decoder makes a destination's decoders. Nil: zlib only.
	Decoder func(multifd.Method) (multifd.Decoder, error)
}

// channelPatience is how long a packet may take to leave, and how long a channel may
// bring none while the stream waits for it.
const channelPatience = time.Minute

// maxChannels is what a channel's number has room for.
const maxChannels = 255

func (c *Channels) check() error {
	if len(c.Conns) > maxChannels {
		return fmt.Errorf("migrate: %d channels, at most %d", len(c.Conns), maxChannels)
	}
	return nil
}

// A Compressor compresses what goes over one channel, as one stream. It belongs to
// one goroutine.
type Compressor interface {
	// Compress appends to dst what pages become: the next piece of the stream,
	// from which all of pages can be read (a flush at its end). It keeps neither.
	Compress(dst, pages []byte) ([]byte, error)
}

func defaultCompressor(m multifd.Method) (Compressor, error) {
	if m != multifd.Zlib {
		return nil, fmt.Errorf("migrate: %w: %v", multifd.ErrMethod, m)
	}
	c := new(zlibCompressor)
	var err error
	c.z, err = zlib.NewWriterLevel(&c.out, zlib.BestSpeed)
	return c, err
}

type zlibCompressor struct {
	z   *zlib.Writer
	out bytes.Buffer
}

func (c *zlibCompressor) Compress(dst, pages []byte) ([]byte, error) {
	c.out.Reset()
	_, err := c.z.Write(pages)
	if err == nil {
		err = c.z.Flush()
	}
	return append(dst, c.out.Bytes()...), err
}

// sender sends pages over channels: whoever sends memory fills packets, and
// whichever channel is free takes the next. It is a ram.PageSender.
type sender struct {
	method multifd.Method
	lanes  []*lane
	work   chan *packet   // full ones
	free   chan *packet   // empty ones
	fill   *packet        // is being filled; nil: none
	busy   sync.WaitGroup // packets that a channel has to send
	number uint64
	bytes  atomic.Int64 // of the packets, as sent
	group  sync.WaitGroup

	once sync.Once
	fail func() // ends the main connection
	bad  chan struct{}
	err  error // valid when bad is closed
}

// lane is one channel of a sender.
type lane struct {
	*wire
	id   int
	late *time.Timer // ends everything when a packet takes too long to leave
	z    Compressor
	sync chan uint64 // number of a packet that ends a section
	raw  []byte      // pages to compress
	out  []byte
}

// packet is a packet's pages, by reference to the guest's memory.
type packet struct {
	multifd.Packet
	pages [][]byte
}

// newSender starts the channels' goroutines, which close ends. fail is called once
// if one of them breaks.
func newSender(ctx context.Context, c *Channels, fail func()) (*sender, error) {
	s := &sender{
		method: c.Method, work: make(chan *packet), free: make(chan *packet, len(c.Conns)+1),
		bad: make(chan struct{}), fail: fail,
	}
	for range cap(s.free) {
		s.free <- &packet{Packet: multifd.Packet{Normal: make([]uint64, 0, multifd.MaxPages)}, pages: make([][]byte, 0, multifd.MaxPages)}
	}
	newCompressor := c.Compressor
	if newCompressor == nil {
		newCompressor = defaultCompressor
	}
	for i, conn := range c.Conns {
		l := &lane{wire: open(ctx, conn), id: i, sync: make(chan uint64)}
		s.lanes = append(s.lanes, l)
		if c.Method != multifd.None {
			var err error
			if l.z, err = newCompressor(c.Method); err != nil {
				s.close()
				for _, rest := range c.Conns[i+1:] {
					rest.Close()
				}
				return nil, err
			}
		}
	}
	for _, l := range s.lanes {
		l.late = time.AfterFunc(channelPatience, func() {
			s.broke(fmt.Errorf("migrate: channel %d: %w", l.id, ErrChannelStuck))
		})
		l.late.Stop()
		s.group.Go(func() {
			defer l.late.Stop()
			if err := s.run(l, c.UUID); err != nil {
				s.broke(fmt.Errorf("migrate: channel %d: %w", l.id, err))
			}
		})
	}
	return s, nil
}

// broke keeps the first error, and ends everything.
func (s *sender) broke(err error) {
	s.once.Do(func() {
		s.err = err
		close(s.bad)
		for _, l := range s.lanes {
			l.conn.Close()
		}
		if s.fail != nil {
			s.fail()
		}
	})
}

// close ends the channels and waits for their goroutines.
func (s *sender) close() {
	close(s.work)
	for _, l := range s.lanes {
		l.close()
	}
	s.group.Wait()
}

// broken returns what a channel has broken with, or err if none has.
func (s *sender) broken(err error) error {
	select {
	case <-s.bad:
		return s.err
	default:
		return err
	}
}

// run sends packets over a channel until there are no more.
func (s *sender) run(l *lane, uuid [16]byte) error {
	multifd.Init{UUID: uuid, Channel: uint8(l.id)}.Put(l.w)
	if err := l.flush(); err != nil {
		return err
	}
	for {
		select {
		case p, more := <-s.work:
			if !more {
				return nil
			}
			before := l.w.Transferred()
			err := s.send(l, p)
			s.bytes.Add(l.w.Transferred() - before)
			p.Normal, p.pages = p.Normal[:0], p.pages[:0]
			s.free <- p // there is room for all
			if s.done(l, err) != nil {
				return err
			}
		case n := <-l.sync:
			(&multifd.Packet{Sync: true, Number: n}).Put(l.w)
			if err := l.flush(); s.done(l, err) != nil {
				return err
			}
		}
	}
}

// done ends what a channel had to send: whoever waits for it finds its error.
func (s *sender) done(l *lane, err error) error {
	if err != nil {
		s.broke(fmt.Errorf("migrate: channel %d: %w", l.id, err))
	}
	s.busy.Done()
	return err
}

// send sends a packet; the guest's memory is not needed any more when it returns.
func (s *sender) send(l *lane, p *packet) error {
	p.Method, p.Data = s.method, nil
	// The guest may be writing: what is compressed must not change meanwhile, and
	// what is not must be one packet's pages, however many parts it leaves in.
	l.raw = l.raw[:0]
	for _, page := range p.pages {
		l.raw = append(l.raw, page...)
	}
	p.Data = l.raw
	if l.z != nil {
		var err error
		if l.out, err = l.z.Compress(l.out[:0], l.raw); err != nil {
			return err
		}
		p.Data = l.out
	}
	p.Packet.Put(l.w)
	return l.flush()
}

// flush sends what was put, for as long as a packet may take.
func (l *lane) flush() error {
	l.late.Reset(channelPatience)
	defer l.late.Stop()
	return l.w.Flush()
}

// SendPage implements ram.PageSender.
func (s *sender) SendPage(block string, offset uint64, page []byte) error {
	if s.fill != nil && s.fill.Block != block {
		if err := s.hand(); err != nil {
			return err
		}
	}
	if s.fill == nil {
		select {
		case s.fill = <-s.free:
		case <-s.bad:
			return s.err
		}
		s.fill.Block = block
	}
	s.fill.Normal = append(s.fill.Normal, offset)
	s.fill.pages = append(s.fill.pages, page)
	if len(s.fill.Normal) == multifd.MaxPages {
		return s.hand()
	}
	return nil
}

// hand hands the packet that was filled to a channel.
func (s *sender) hand() error {
	p := s.fill
	s.fill = nil
	p.Number = s.number
	s.number++
	s.busy.Add(1)
	select {
	case s.work <- p:
		return nil
	case <-s.bad:
		s.busy.Done()
		return s.err
	}
}

// Sync implements ram.PageSender: each channel says that the section has ended, and
// has said so before it takes a packet of the next one.
func (s *sender) Sync() error {
	if s.fill != nil {
		if err := s.hand(); err != nil {
			return err
		}
	}
	s.busy.Wait()
	for _, l := range s.lanes {
		n := s.number
		s.number++
		s.busy.Add(1)
		select {
		case l.sync <- n:
		case <-s.bad:
			s.busy.Done()
			return s.err
		}
	}
	s.busy.Wait()
	return s.broken(nil)
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

// errGone: a source may end its channels before the stream, but not while there is
// memory in it.
var errGone = errors.New("migrate: a channel has ended within the stream")

// inbound is one channel of a receiver.
type inbound struct {
	*wire
	arrived chan struct{} // has sent all of a section
	resume  chan struct{} // and all others have
	gone    chan struct{} // closed when it has ended, between two sections
	end     error         // how it has; valid when gone is closed
	packets atomic.Uint64 // that have come
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

// broke keeps the first error, and ends everything.
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

// run takes packets from a channel until it ends, which it must not do before the
// stream has.
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
			// However it has ended: a TLS may go without a word, and a QEMU that
			// has done shuts its channels, within an empty packet if it must. If
			// there is another section, its barrier finds the channel gone.
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

// stop ends the channels: no page is placed when it has returned. It returns what
// one has broken with.
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
	// Those that wait for the others of a section that does not end.
	v.once.Do(func() { close(v.bad) })
	v.group.Wait()
	return v.err
}
