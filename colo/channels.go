package colo

import (
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/gocolo/lockstep/internal/lanes"
	"github.com/gocolo/lockstep/vmstate/ram"
	"github.com/gocolo/lockstep/vmstate/ram/multifd"
)

// Channels are connections of their own for the memory of checkpoints, beside that
// of the session. Pages with contents go over whichever is free, in the packets of
// QEMU's multifd, plain or compressed; zeros, differences and all else stay in the
// session's connection, and so does the initial synchronisation.
//
// The hosts give both sides the ends of the same connections. The primary announces how
// many it has and how it compresses, and a secondary that has as many, and knows the
// method, says [UseChannels]; otherwise, and towards a QEMU, each side closes its ends, and
// all memory goes over the session's connection. A checkpoint is all or nothing as before:
// a channel that breaks, or brings what it may not, ends the session, as the end of the
// session's connection does.
type Channels struct {
	// Conns are the connections, at most 255, in any order. Run closes them; where
	// NewPrimary or NewSecondary fails they stay open, as conn does. None: there are no
	// channels.
	Conns []io.ReadWriteCloser
	// ID is the first thing sent on each channel. Both sides are given the same one, and
	// each session another, so that a side refuses a channel of another session. The network that the
	// connections cross is trusted as far as the session's is.
	ID [16]byte

	// Method is the compression that a primary applies to pages where it saves time. It
	// measures, as it sends, how fast the connections are, what compressing costs and how much
	// smaller pages get; now and then it tries the way that seemed slower. A page that did not
	// shrink goes as it is for a while. A checkpoint with less than 256 KiB for each connection
	// is too small to measure their speed.
	Method multifd.Method
	// Always makes a primary compress every page, whether that pays or not.
	Always bool
	// Compressor makes the compressors of a primary, one for each channel when the channel
	// begins. NewPrimary also calls it as many times, to find out whether it can. A compressor
	// that has a method Close is closed when its channel has ended. An error after NewPrimary
	// ends the session, as a broken channel does. Nil: multifd.CompressZlib. It is not called
	// for multifd.None.
	Compressor func(multifd.Method) (multifd.Compressor, error)
	// Decoder makes the decoders of a secondary, one for each channel, and one more
	// to find out whether it knows the method. A decoder that has a method Close, with or
	// without an error result, is closed when the session no longer needs it, at the latest
	// before Run returns. Nil: multifd.DecodeZlib.
	Decoder func(multifd.Method) (multifd.Decoder, error)
}

// PageSource is a PrimaryConfig.RAM whose pages can go over [Channels] (ram.Saver).
type PageSource interface{ SendPagesTo(ram.PageSender) }

// PageTarget is a SecondaryConfig.RAM that takes pages from [Channels] (ram.Cache).
// StagePage is called from several goroutines at a time, between the source's Begin
// and the end of its Sync.
type PageTarget interface {
	TakePagesFrom(ram.PageReceiver)
	StagePage(block string, offset uint64, page []byte) error
}

func (c *Channels) check(fits bool) error {
	switch n := len(c.Conns); {
	case n > lanes.Max:
		return fmt.Errorf("colo: %d channels, at most %d", n, lanes.Max)
	case n > 0 && !fits:
		return errors.New("colo: RAM can do nothing with Channels")
	}
	return nil
}

// errLinkClosed is the reason of channels that end because the session's connection is closed.
var errLinkClosed = errors.New("the session's connection is closed")

// beside holds the channels of a session, which run beside its connection. Its methods may
// be called from any goroutine unless they say otherwise.
type beside struct {
	lanes interface {
		Spoil(error) error
		Break(error) error
		Err() error
		Close()
		Bytes() uint64
	}
	start func() // starts the goroutines of the lanes
	halt  func() // ends staging: when it returns, no page is being staged; nil: nothing to end
	stop  func() // makes the RAM forget the channels
	count int    // the number of channels
	used  bool   // both sides have agreed to use them; only the goroutine in Run reads or writes it
}

// broken returns the error with which a channel broke by itself, nil if none has.
func (b *beside) broken() error {
	if b == nil {
		return nil
	}
	err := b.lanes.Err()
	if errors.Is(err, errInterrupted) || errors.Is(err, errLinkClosed) {
		return nil
	}
	return err
}

// interrupt ends all waits for the channels, which stay open.
func (b *beside) interrupt() {
	if b != nil {
		b.lanes.Spoil(errInterrupted)
	}
}

// cut closes the channels.
func (b *beside) cut() {
	if b != nil {
		b.lanes.Break(errLinkClosed)
	}
}

// settle ends the staging of pages from the channels: when it returns, no page of theirs
// is being staged. It sends nothing to the other side.
func (b *beside) settle() {
	if b != nil && b.halt != nil {
		b.halt()
	}
}

// bytes returns how many bytes have crossed the channels.
func (b *beside) bytes() uint64 {
	if b == nil {
		return 0
	}
	return b.lanes.Bytes()
}

// agree begins to use the channels, or ends them if use is false. Called by the goroutine in
// Run.
func (b *beside) agree(use bool) {
	switch {
	case b == nil:
	case use:
		b.used = true
		b.start()
	default:
		b.lanes.Close()
	}
}

// end ends the channels: when it returns, none of their goroutines reads or changes guest
// memory. Called by the goroutine in Run.
func (b *beside) end() {
	if b == nil {
		return
	}
	b.lanes.Close()
	if b.used {
		b.stop()
	}
}

// limit makes a wait for the channels end when a wait for the session's connection
// would: at the same deadline, with the same error.
type limit struct{ t *timedConn }

// Deadline implements lanes.Limit.
func (l limit) Deadline() time.Time {
	at, _ := l.t.deadline()
	return at
}

// Late implements lanes.Limit.
func (l limit) Late(moved bool) error {
	err := l.t.late(time.Duration(l.t.timeout.Load()), os.ErrDeadlineExceeded)
	if l.t.again(err) && (moved || l.t.lives()) {
		return nil
	}
	return err
}

// openChannels prepares a primary's channels.
func (p *Primary) openChannels() error {
	c := &p.cfg.Channels
	source, ok := p.cfg.RAM.(PageSource)
	if err := c.check(ok); err != nil || len(c.Conns) == 0 {
		return err
	}
	cfg := lanes.SenderConfig{ID: c.ID, Method: c.Method, Compressor: c.Compressor, Choose: !c.Always, Limit: limit{p.link.conn}}
	for _, conn := range c.Conns {
		cfg.Conns = append(cfg.Conns, conn)
	}
	s, err := lanes.NewSender(cfg)
	if err != nil {
		return fmt.Errorf("colo: channels: %w", err)
	}
	p.use(&beside{
		lanes: s, count: len(c.Conns),
		start: func() { s.Start(); source.SendPagesTo(s) },
		stop:  func() { source.SendPagesTo(nil) },
	})
	return nil
}

// openChannels prepares a secondary's channels.
func (s *Secondary) openChannels() error {
	c := &s.cfg.Channels
	target, ok := s.cfg.RAM.(PageTarget)
	if err := c.check(ok); err != nil || len(c.Conns) == 0 {
		return err
	}
	cfg := lanes.ReceiverConfig{
		ID: c.ID, Decoder: c.Decoder, Place: target.StagePage, Limit: limit{s.link.conn},
		// A broken channel interrupts the link: otherwise the goroutine in Run would
		// go on waiting there.
		Fail: func(error) { s.link.interrupt() },
	}
	for _, conn := range c.Conns {
		cfg.Conns = append(cfg.Conns, conn)
	}
	v := lanes.NewReceiver(cfg)
	s.use(&beside{
		lanes: v, count: len(c.Conns),
		halt:  v.Halt,
		start: func() { v.Start(); target.TakePagesFrom(v) },
		stop:  func() { target.TakePagesFrom(nil) },
	})
	return nil
}

// use tells the link which channels run beside the session's connection.
func (s *session) use(b *beside) {
	s.beside = b
	s.link.conn.beside = b
}

// takesChannels reports whether this side has the channels that the primary offers and knows
// their method.
func (s *Secondary) takesChannels(o *offer) bool {
	c := &s.cfg.Channels
	if o == nil || s.beside == nil || o.Channels != len(c.Conns) {
		return false
	}
	m, err := multifd.ParseMethod(o.Compression)
	if err != nil {
		return false
	}
	if m == multifd.None {
		return true
	}
	decoder := c.Decoder
	if decoder == nil {
		decoder = multifd.DecodeZlib
	}
	d, err := decoder(m)
	if err != nil {
		return false
	}
	lanes.CloseDecoder(d)
	return true
}

// agreeOnChannels begins to use the channels, or ends them if use is false.
func (s *session) agreeOnChannels(use bool) {
	s.beside.agree(use)
	if use {
		s.mu.Lock()
		s.info.Channels = s.beside.count
		s.mu.Unlock()
	}
}
