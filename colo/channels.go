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
// Both sides are given the ends of the same connections. The primary announces how
// many, and how they are compressed, and a secondary that has as many, and knows the
// method, says [UseChannels]; otherwise, and towards a QEMU, both close theirs, and all
// memory is in the session's connection. A checkpoint is all or nothing as before: a
// channel that breaks, or brings what it may not, ends the session like its own
// connection does.
type Channels struct {
	// Conns are the connections, at most 255, in any order. Run closes them; where
	// NewPrimary or NewSecondary fails they stay open, as conn does. None: there are no
	// channels.
	Conns []io.ReadWriteCloser
	// ID begins each channel, and is the same on both sides: of the session, so
	// that no channel of another one is taken for one of this. The network that the
	// connections cross is trusted as far as the session's is.
	ID [16]byte

	// Method is how a primary compresses pages: those for which it pays. It measures, as
	// it sends, how fast the connections are, what compressing costs and how much is left,
	// and has whatever is not the cheaper way tried now and then. A page that did not shrink
	// goes as it is for a while. A checkpoint of less than 256 KiB a connection says nothing
	// of how fast that is.
	Method multifd.Method
	// Always has a primary compress every page, whether it pays or not.
	Always bool
	// Compressor makes a primary's compressors, one for each channel when that begins, and
	// as many when the Primary is made, to see whether it can. One that has a method Close is
	// closed when its channel has ended. An error later ends the session, as a channel does
	// that breaks. Nil: multifd.CompressZlib. It is not called for multifd.None.
	Compressor func(multifd.Method) (multifd.Compressor, error)
	// Decoder makes a secondary's decoders, one for each channel, and one besides
	// to learn whether the method is known. One that has a Close method, with or without
	// an error to return, is closed when it is done with, at the latest before Run
	// returns. Nil: multifd.DecodeZlib.
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

// errLinkClosed is how channels end with the session's connection.
var errLinkClosed = errors.New("the session's connection is closed")

// beside is what a session has of Channels. Its methods may be called from any
// goroutine unless they say otherwise.
type beside struct {
	lanes interface {
		Spoil(error) error
		Break(error) error
		Err() error
		Close()
		Bytes() uint64
	}
	start func()
	halt  func() // nothing is staged any more when it has returned; nil: nothing is
	stop  func() // the RAM forgets them
	count int
	used  bool // agreed on; of the goroutine in Run
}

// broken returns what the channels have broken with by themselves, nil if they have
// not.
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

// settle has them change nothing more of what is staged. The other side does not hear
// of it.
func (b *beside) settle() {
	if b != nil && b.halt != nil {
		b.halt()
	}
}

// bytes returns how much has crossed them.
func (b *beside) bytes() uint64 {
	if b == nil {
		return 0
	}
	return b.lanes.Bytes()
}

// agree begins to use the channels, or ends them. Called by the goroutine in Run.
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

// end ends them: nothing of them refers to memory, or changes it, when it has
// returned. Called by the goroutine in Run.
func (b *beside) end() {
	if b == nil {
		return
	}
	b.lanes.Close()
	if b.used {
		b.stop()
	}
}

// limit has a wait for the channels last as long as one for the session's connection.
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
		// Whoever reads the stream does not wait for what depends on a channel.
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

// use has the link know of the channels.
func (s *session) use(b *beside) {
	s.beside = b
	s.link.conn.beside = b
}

// takesChannels reports whether a primary offers channels that are to be had here.
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

// agreeOnChannels begins to use the channels, or gives them up.
func (s *session) agreeOnChannels(use bool) {
	s.beside.agree(use)
	if use {
		s.mu.Lock()
		s.info.Channels = s.beside.count
		s.mu.Unlock()
	}
}
