package lanes

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate/ram"
	"github.com/gocolo/lockstep/vmstate/ram/multifd"
)

// ReceiverConfig is how a [Receiver] works.
type ReceiverConfig struct {
	// Conns are the lanes, at most Max, in any order. Close closes them; it must make a
	// Read that waits return.
	Conns []io.ReadCloser
	ID    [16]byte // as the sender's

	// Decoder makes the decoder of a lane, which is closed with CloseDecoder at the end of
	// the lane. Nil: multifd.DecodeZlib.
	Decoder func(multifd.Method) (multifd.Decoder, error)

	// Place takes a page, of ram.PageSize bytes, or nil for zeros. It is called
	// from the goroutines of the lanes, between Begin and the end of Sync.
	Place func(block string, offset uint64, page []byte) error

	// Limit bounds the wait of Sync. Nil: nothing does.
	Limit Limit
	// Fail is called at most once, from the goroutine of a lane that breaks, with
	// Err; not by Break or Spoil. The stream is not to be waited for then.
	Fail func(error)
}

// Receiver takes pages from lanes, within the sections of the stream and at no other
// time. It is a ram.PageReceiver: Begin and Sync are called by one goroutine at a
// time, the other methods by any.
type Receiver struct {
	cfg   ReceiverConfig
	lanes []*inward
	wait  wait
	moved atomic.Uint64 // bytes that have come
	group sync.WaitGroup

	placing sync.RWMutex // held by a lane that places pages

	mu   sync.Mutex
	seen [Max + 1]bool // numbers of lanes

	breaking
}

// inward is one lane of a Receiver.
type inward struct {
	conn    io.ReadCloser
	moved   *atomic.Uint64
	open    chan struct{} // capacity one: a section has begun
	arrived chan struct{} // capacity one: all of it has come
}

// Read implements io.Reader: it counts.
func (l *inward) Read(p []byte) (int, error) {
	n, err := l.conn.Read(p)
	l.moved.Add(uint64(n))
	return n, err
}

// NewReceiver makes a Receiver, which owns its lanes from now on. Start starts it.
func NewReceiver(cfg ReceiverConfig) *Receiver {
	v := &Receiver{cfg: cfg}
	closers := make([]io.Closer, len(cfg.Conns))
	for i, c := range cfg.Conns {
		closers[i] = c
		v.lanes = append(v.lanes, &inward{conn: c, moved: &v.moved, open: make(chan struct{}, 1), arrived: make(chan struct{}, 1)})
	}
	v.breaking.init(closers, cfg.Fail)
	v.wait = wait{limit: cfg.Limit, moved: v.moved.Load}
	return v
}

// Start starts the lanes' goroutines. They have ended when Close returns.
func (v *Receiver) Start() {
	for i, l := range v.lanes {
		v.group.Go(func() {
			if err := v.run(l); err != nil {
				v.broke(fmt.Errorf("connection %d of channels: %w", i, err))
			}
		})
	}
}

// Close closes the lanes and waits for their goroutines: no page is placed any more.
// It may be called again.
func (v *Receiver) Close() {
	v.Break(errClosed)
	v.group.Wait()
}

// Halt returns when no page is placed any more, and leaves the connections open.
func (v *Receiver) Halt() {
	v.Spoil(errClosed)
	v.placing.Lock()
	defer v.placing.Unlock()
}

// Bytes returns how many bytes have come.
func (v *Receiver) Bytes() uint64 { return v.moved.Load() }

// CloseDecoder closes a decoder that has a Close method.
func CloseDecoder(d multifd.Decoder) { closeCodec(d) }

// CloseCompressor closes a compressor that has a Close method.
func CloseCompressor(z multifd.Compressor) { closeCodec(z) }

func closeCodec(c any) {
	switch c := c.(type) {
	case io.Closer:
		c.Close() // nothing can be lost with it
	case interface{ Close() }:
		c.Close()
	}
}

// run takes packets from a lane until it ends.
func (v *Receiver) run(l *inward) error {
	var decoders []multifd.Decoder
	defer func() {
		for _, d := range decoders {
			CloseDecoder(d)
		}
	}()
	r := qemufile.NewReader(l)
	in, err := multifd.ReadInit(r, v.cfg.ID, len(v.lanes))
	if err != nil {
		return qemufile.NoEOF(err)
	}
	v.mu.Lock()
	twice := v.seen[in.Channel]
	v.seen[in.Channel] = true
	v.mu.Unlock()
	if twice {
		return fmt.Errorf("%w: a second channel %d", multifd.ErrChannel, in.Channel)
	}
	packets := multifd.NewReader(r)
	if newDecoder := v.cfg.Decoder; newDecoder != nil {
		packets.Decoder = func(m multifd.Method) (multifd.Decoder, error) {
			d, err := newDecoder(m)
			if err == nil {
				decoders = append(decoders, d)
			}
			return d, err
		}
	}
	for {
		select {
		case <-l.open:
		case <-v.bad:
			return nil
		}
		for synced := false; !synced; {
			if synced, err = v.packet(packets); err != nil {
				if v.ended() != nil {
					return nil // another lane, or Close, has ended them
				}
				return err
			}
		}
		select {
		case l.arrived <- struct{}{}:
		case <-v.bad:
			return nil
		}
	}
}

// packet takes one packet, and reports whether it ends a section.
func (v *Receiver) packet(r *multifd.Reader) (sync bool, err error) {
	p, err := r.Read()
	if err != nil {
		return false, qemufile.NoEOF(err)
	}
	if p.Device != nil {
		return false, fmt.Errorf("state of device %q in a channel", p.Device.Name)
	}
	data, err := r.Pages()
	if err != nil {
		return false, err
	}
	v.placing.RLock()
	defer v.placing.RUnlock()
	if err := v.ended(); err != nil {
		return false, err
	}
	for i, off := range p.Normal {
		if err := v.cfg.Place(p.Block, off, data[i*ram.PageSize:][:ram.PageSize]); err != nil {
			return false, err
		}
	}
	for _, off := range p.Zero {
		if err := v.cfg.Place(p.Block, off, nil); err != nil {
			return false, err
		}
	}
	return p.Sync, nil
}

// errOpen means that a section begins before the one before it has ended.
var errOpen = errors.New("a section within a section")

// Begin implements ram.PageReceiver: the lanes take what comes, up to the end of the
// section.
func (v *Receiver) Begin() error {
	for _, l := range v.lanes {
		select {
		case <-v.bad:
			return v.err
		case l.open <- struct{}{}:
		default:
			return v.Break(errOpen)
		}
	}
	return v.ended()
}

// Sync implements ram.PageReceiver: it returns when all lanes have brought all of the
// section.
func (v *Receiver) Sync() error {
	late := v.wait.begin()
	defer v.wait.end()
	for _, l := range v.lanes {
		for came := false; !came; {
			select {
			case <-l.arrived:
				came = true
			case <-v.bad:
				return v.err
			case <-late:
				var err error
				if late, err = v.wait.late(); err != nil {
					return v.Spoil(err)
				}
			}
		}
	}
	return v.ended()
}
