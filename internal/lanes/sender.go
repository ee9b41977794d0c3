package lanes

import (
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate/ram/multifd"
)

// SenderConfig is how a [Sender] works.
type SenderConfig struct {
	// Conns are the lanes, at most Max. Close closes them; it must make a Write
	// that waits return.
	Conns []io.WriteCloser
	ID    [16]byte // of the guest, or of the session: the receiver's is the same

	Method multifd.Method
	// Compressor makes a compressor for each lane when the lane begins. NewSender also calls
	// it as many times, to find out whether it can. A compressor that has a Close method is
	// closed. Nil: multifd.CompressZlib. It is not called for multifd.None.
	Compressor func(multifd.Method) (multifd.Compressor, error)
	// Choose compresses only the pages for which that pays at the measured rate of the
	// lanes; the others go as they are, in packets of multifd.None. A QEMU takes packets of
	// one method only.
	Choose bool

	// Limit bounds the waits of SendPage and Sync. Nil: nothing does.
	Limit Limit
	// Patience is how long one packet may take to leave ([ErrStuck]). 0: for ever.
	Patience time.Duration
	// Fail is called at most once, from the goroutine of a lane that breaks, with
	// Err; not by Break or Spoil, and not after Close has returned. It must not call Close.
	// Nil: SendPage and Sync say so.
	Fail func(error)
}

// Sender sends pages over lanes. It is a ram.PageSender: SendPage and Sync are called
// by one goroutine at a time, the other methods by any.
type Sender struct {
	cfg   SenderConfig
	lanes []*outward
	work  chan *packet  // full ones
	free  chan *packet  // empty ones, with the outcome of their last use
	fill  [ways]*packet // are being filled; nil: none
	wait  wait
	pick  *chooser // nil: all pages go the same way

	busy   atomic.Int64  // packets that a lane has to send
	idle   chan struct{} // capacity one: busy has come to 0
	number uint64
	moved  atomic.Uint64  // bytes that have left
	making sync.Mutex     // held while a compressor is made
	group  sync.WaitGroup // lanes, and their timers that run

	breaking
}

// outward is one lane of a Sender.
type outward struct {
	id    int
	conn  io.WriteCloser
	w     *qemufile.Writer
	moved *atomic.Uint64
	late  *time.Timer        // nil: a packet may take for ever
	z     multifd.Compressor // made when the lane begins; nil: there is none
	sync  chan uint64        // number of a packet that ends a section
	raw   []byte             // pages
	out   []byte             // compressed
	load  load               // since its last packet
}

// Write implements io.Writer: it counts.
func (l *outward) Write(p []byte) (int, error) {
	n, err := l.conn.Write(p)
	l.moved.Add(uint64(n))
	return n, err
}

// packet has the pages of a packet, by reference to the guest's memory.
type packet struct {
	multifd.Packet
	pages   [][]byte
	outcome outcome // of its last use
}

// NewSender makes a Sender, which owns its lanes from now on; if NewSender fails they stay
// open and belong to the caller. Start starts it.
func NewSender(cfg SenderConfig) (*Sender, error) {
	s := &Sender{
		cfg: cfg, work: make(chan *packet), free: make(chan *packet, len(cfg.Conns)+ways),
		idle: make(chan struct{}, 1),
	}
	closers := make([]io.Closer, len(cfg.Conns))
	for i, c := range cfg.Conns {
		closers[i] = c
	}
	s.breaking.init(closers, cfg.Fail)
	s.wait = wait{limit: cfg.Limit, moved: s.moved.Load}
	for range cap(s.free) {
		s.free <- &packet{Packet: multifd.Packet{Normal: make([]uint64, 0, multifd.MaxPages)}, pages: make([][]byte, 0, multifd.MaxPages)}
	}
	if cfg.Choose && cfg.Method != multifd.None {
		s.pick = newChooser(len(cfg.Conns))
	}
	if s.cfg.Compressor == nil {
		s.cfg.Compressor = multifd.CompressZlib
	}
	for i, conn := range cfg.Conns {
		if s.pick != nil {
			boundUnsent(conn)
		}
		l := &outward{id: i, conn: conn, moved: &s.moved, sync: make(chan uint64)}
		l.w = qemufile.NewWriter(l)
		if cfg.Method != multifd.None {
			z, err := s.cfg.Compressor(cfg.Method)
			if err != nil {
				return nil, err
			}
			defer CloseCompressor(z)
		}
		s.lanes = append(s.lanes, l)
	}
	return s, nil
}

// Start starts the goroutines of the lanes, each of which first sends its Init. They have
// ended when Close returns.
func (s *Sender) Start() {
	for _, l := range s.lanes {
		if s.cfg.Patience > 0 {
			s.group.Add(1)
			l.late = time.AfterFunc(s.cfg.Patience, func() {
				defer s.group.Done()
				s.laneBroke(l, ErrStuck)
			})
			s.inTime(l)
		}
		s.group.Go(func() {
			if err := s.run(l); err != nil {
				s.laneBroke(l, err)
			}
		})
	}
}

func (s *Sender) laneBroke(l *outward, err error) { s.broke(fmt.Errorf("channel %d: %w", l.id, err)) }

// Close closes the lanes and waits for their goroutines: nothing refers to the
// guest's memory then. What has not left is lost. It may be called again.
func (s *Sender) Close() {
	s.Break(errClosed)
	s.group.Wait()
}

// Bytes returns how many bytes have left.
func (s *Sender) Bytes() uint64 { return s.moved.Load() }

// run sends packets over a lane until the lanes break.
func (s *Sender) run(l *outward) (err error) {
	if s.cfg.Method != multifd.None {
		s.making.Lock() // Compressor is the host's, and is called by one goroutine at a time
		l.z, err = s.cfg.Compressor(s.cfg.Method)
		s.making.Unlock()
		if err != nil {
			return err
		}
		defer CloseCompressor(l.z)
	}
	multifd.Init{UUID: s.cfg.ID, Channel: uint8(l.id)}.Put(l.w)
	if err := s.flush(l); err != nil {
		return err
	}
	for {
		var err error
		select {
		case p := <-s.work:
			err = s.send(l, p)
			p.pages = p.pages[:0]
			s.free <- p // there is room for all
		case n := <-l.sync:
			(&multifd.Packet{Sync: true, Number: n}).Put(l.w)
			err = s.flush(l)
			l.load = idle
		case <-s.bad:
			return nil
		}
		if err != nil {
			s.laneBroke(l, err) // whoever waits for it finds its error
		}
		if s.busy.Add(-1) == 0 {
			select {
			case s.idle <- struct{}{}:
			default:
			}
		}
		if err != nil {
			return err
		}
	}
}

// send sends a packet; the guest's memory is not needed any more when it returns.
func (s *Sender) send(l *outward, p *packet) error {
	begun := time.Now()
	// The guest may be writing: what is compressed must not change meanwhile, and
	// what is not must be one packet's pages, however many parts it leaves in.
	l.raw = l.raw[:0]
	for _, page := range p.pages {
		l.raw = append(l.raw, page...)
	}
	p.Data = l.raw
	if p.Method != multifd.None {
		var err error
		if l.out, err = l.z.Compress(l.out[:0], l.raw); err != nil {
			return err
		}
		p.Data = l.out
	}
	made := time.Now()
	p.Packet.Put(l.w)
	if err := s.flush(l); err != nil {
		return err
	}
	o := &p.outcome
	o.pages, o.wire, o.before = len(p.pages), len(p.Data), l.load
	o.made, o.wrote = made.Sub(begun), time.Since(made)
	l.load = o.load()
	return nil
}

// flush sends what was put, for as long as a packet may take.
func (s *Sender) flush(l *outward) error {
	if l.late != nil {
		s.group.Add(1)
		l.late.Reset(s.cfg.Patience)
		defer s.inTime(l)
	}
	return l.w.Flush()
}

// inTime stops a lane's timer. If its function runs already, Close waits for it, as for
// the lanes.
func (s *Sender) inTime(l *outward) {
	if l.late.Stop() {
		s.group.Done()
	}
}

// SendPage implements ram.PageSender.
func (s *Sender) SendPage(block string, offset uint64, page []byte) error {
	for w, p := range s.fill {
		if p != nil && p.Block != block {
			if err := s.hand(way(w)); err != nil {
				return err
			}
		}
	}
	w := plain
	switch {
	case s.pick != nil:
		w = s.pick.way(block, offset, page)
	case s.cfg.Method != multifd.None:
		w = packed
	}
	if s.fill[w] == nil {
		p, err := s.take()
		if err != nil {
			return err
		}
		p.Block, p.Method, p.outcome.way = block, multifd.None, w
		if w == packed {
			p.Method = s.cfg.Method
		}
		s.fill[w] = p
	}
	p := s.fill[w]
	p.Normal = append(p.Normal, offset)
	p.pages = append(p.pages, page)
	if len(p.Normal) == multifd.MaxPages {
		return s.hand(w)
	}
	return nil
}

// take takes an empty packet, and gives its last outcome to the chooser.
func (s *Sender) take() (p *packet, err error) {
	late := s.wait.begin()
	defer s.wait.end()
	for p == nil {
		select {
		case p = <-s.free:
		case <-s.bad:
			return nil, s.err
		case <-late:
			if late, err = s.wait.late(); err != nil {
				return nil, s.Spoil(err)
			}
		}
	}
	if s.pick != nil {
		s.pick.saw(p.outcome, p.Block, p.Normal)
	}
	p.Normal, p.outcome = p.Normal[:0], outcome{}
	return p, nil
}

// hand hands a packet that was filled to a lane.
func (s *Sender) hand(w way) error {
	p := s.fill[w]
	s.fill[w] = nil
	p.Number = s.number
	s.number++
	return s.give(s.work, p, nil, 0)
}

// give hands a packet, or the end of a section, to a lane.
func (s *Sender) give(work chan<- *packet, p *packet, sync chan<- uint64, n uint64) error {
	s.busy.Add(1)
	late := s.wait.begin()
	defer s.wait.end()
	for {
		select {
		case work <- p:
			return nil
		case sync <- n:
			return nil
		case <-s.bad:
			s.busy.Add(-1)
			return s.err
		case <-late:
			var err error
			if late, err = s.wait.late(); err != nil {
				s.busy.Add(-1)
				return s.Spoil(err)
			}
		}
	}
}

// settle waits until the lanes have sent all that they were given.
func (s *Sender) settle() error {
	late := s.wait.begin()
	defer s.wait.end()
	for s.busy.Load() > 0 {
		select {
		case <-s.idle: // or it was, some time ago
		case <-s.bad:
			return s.err
		case <-late:
			var err error
			if late, err = s.wait.late(); err != nil {
				return s.Spoil(err)
			}
		}
	}
	return s.ended()
}

// Sync implements ram.PageSender: each lane says that the section has ended, and
// has said so before it takes a packet of the next one.
func (s *Sender) Sync() error {
	for w, p := range s.fill {
		if p != nil {
			if err := s.hand(way(w)); err != nil {
				return err
			}
		}
	}
	if err := s.settle(); err != nil {
		return err
	}
	for _, l := range s.lanes {
		n := s.number
		s.number++
		if err := s.give(nil, nil, l.sync, n); err != nil {
			return err
		}
	}
	return s.settle()
}
