package filter

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
)

const (
	// MaxFrame is the greatest length of a frame in bytes, its virtio-net
	// header included: 64 KiB of packet and 4 KiB on top (NET_BUFSIZE of
	// QEMU's include/net/net.h).
	MaxFrame = 4096 + 65536

	// MaxVNetHdr is the greatest length of a virtio-net header in bytes (struct
	// virtio_net_hdr_v1_hash_tunnel). Lengths in use are 10, 12 with mergeable
	// buffers, 20 with a hash report and 24; what lies between the last two is
	// refused, as QEMU 7.2 refuses all that is greater than 20.
	MaxVNetHdr = 24

	// markMagic stands in the place of a length and announces an epoch marker:
	// be64 epoch follows. It is greater than any length, so that a reader that
	// knows no markers refuses it as a frame that is too big. ("COLO")
	markMagic = 0x434f4c4f
	markLen   = 4 + 8
)

// A PacketReader is where frames come from. What ReadPacket returns is valid
// until the next call.
type PacketReader interface {
	ReadPacket() ([]byte, error)
}

// A PacketWriter is where frames go. WritePacket does not keep p.
type PacketWriter interface {
	WritePacket(p []byte) error
}

// ConnConfig says what the two ends of a connection have agreed upon; nothing
// on the wire tells it. The zero ConnConfig is QEMU's default: no virtio-net
// headers, no markers.
type ConnConfig struct {
	// VNetHdr adds the length of the virtio-net header to each frame. (QEMU's
	// property vnet_hdr_support.)
	VNetHdr bool

	// VNetHdrLen is the length, in bytes, of the virtio-net header that frames
	// given to WritePacket begin with. It is written only with VNetHdr.
	VNetHdrLen int

	// Marks allows epoch markers between the frames. A QEMU knows none.
	Marks bool

	// OnMark is called for each marker, from within ReadPacket, after the
	// frames before it were returned and before any after it. Nil ignores
	// markers.
	OnMark func(epoch uint64) error
}

// A Conn carries frames over a stream, in the framing that QEMU's filters and
// colo-compare use (net_fill_rstate in net/net.c):
//
//	be32 length | be32 virtio-net header length, with VNetHdr | length bytes
//
// The length counts the virtio-net header, which is the beginning of the
// frame's bytes, and not the length words.
//
// A Conn is for one connection: a new connection has a new Conn, so that half
// a frame of the old one cannot confuse it. Either Close ends it, or the caller
// closes the connection itself and forgets the Conn, which holds nothing else.
// ReadPacket belongs to one goroutine; writes may come from several others, and
// Close from any.
type Conn struct {
	cfg    ConnConfig
	closer io.Closer   // the connection, nil if it cannot be closed
	closed atomic.Bool // Close was called

	r      io.Reader
	buf    []byte // read and not yet returned: buf[lo:hi]
	lo, hi int
	off    int64 // stream offset of buf[lo]
	vnet   int   // of the last frame
	rerr   error // the first error of a read, which sticks

	wmu  sync.Mutex // serialises whole frames
	w    io.Writer
	wbuf []byte
	woff int64 // stream offset of the next byte to be written
	werr error // sticky: after a partial write the peer cannot find the next frame
}

// NewConn returns a Conn on rw. It reads nothing yet. If rw is an io.Closer, Close
// closes it.
func NewConn(rw io.ReadWriter, cfg ConnConfig) *Conn {
	closer, _ := rw.(io.Closer)
	return &Conn{cfg: cfg, r: rw, w: rw, closer: closer}
}

// Close ends the Conn and closes the connection, so that calls that are blocked return. They,
// and all later ones, return an [*Error] with net.ErrClosed; a frame that was read ahead is lost.
// Close returns the connection's error. It may be called at any time, also by OnMark, and does
// nothing when it is called again. Where the connection is no io.Closer, calls that are blocked
// return when its own do.
func (c *Conn) Close() error {
	if c.closed.Swap(true) || c.closer == nil {
		return nil
	}
	return c.closer.Close()
}

// over returns what a call that failed with err, or nil before it began, returns after Close: its
// cause is then that. Otherwise it returns err.
func (c *Conn) over(op string, at int64, err error) error {
	if c.closed.Load() {
		return &Error{Op: op, Offset: at, Err: net.ErrClosed}
	}
	return err
}

// readBuffer holds one frame of any length, and otherwise many small ones for
// one read.
const readBuffer = MaxFrame + 8 + 64<<10

// ReadPacket returns the next frame, with its virtio-net header if it has one.
// The slice is valid until the next call. At the end of the stream the error
// is io.EOF; inside a frame it is an [*Error] with io.ErrUnexpectedEOF. A frame
// that is too long or malformed is an [*Error] with [ErrFrameTooBig] or
// [ErrFrame]. All errors stick.
func (c *Conn) ReadPacket() ([]byte, error) {
	if err := c.over("read", c.off, c.rerr); err != nil {
		return nil, err
	}
	for {
		p, mark, err := c.next()
		if err = c.over("read", c.off, err); err != nil {
			c.rerr = err
			return nil, err
		}
		if p != nil {
			return p, nil
		}
		if c.cfg.OnMark != nil {
			if err := c.cfg.OnMark(mark); err != nil {
				c.rerr = err
				return nil, err
			}
		}
	}
}

// VNetHdrLen returns the length of the virtio-net header of the frame that
// ReadPacket returned last: what the peer said if VNetHdr is set, otherwise 0.
func (c *Conn) VNetHdrLen() int { return c.vnet }

// next consumes one frame or one marker (then p is nil).
func (c *Conn) next() (p []byte, mark uint64, err error) {
	head := 4
	if c.cfg.VNetHdr {
		head = 8
	}
	if err := c.fill(4); err != nil {
		return nil, 0, err
	}
	n := binary.BigEndian.Uint32(c.buf[c.lo:])
	switch {
	case n == markMagic && c.cfg.Marks:
		if err := c.fill(markLen); err != nil {
			return nil, 0, err
		}
		mark = binary.BigEndian.Uint64(c.buf[c.lo+4:])
		c.skip(markLen)
		return nil, mark, nil
	case n > MaxFrame:
		return nil, 0, c.fail(fmt.Errorf("%w: %d bytes, %d at most", ErrFrameTooBig, n, MaxFrame))
	case n == 0:
		return nil, 0, c.fail(fmt.Errorf("%w: length zero", ErrFrame))
	}
	c.vnet = 0
	if c.cfg.VNetHdr {
		if err := c.fill(head); err != nil {
			return nil, 0, err
		}
		v := binary.BigEndian.Uint32(c.buf[c.lo+4:])
		if v > n || !validVNet(int(v)) {
			return nil, 0, c.fail(fmt.Errorf("%w: virtio-net header of %d bytes in a frame of %d", ErrFrame, v, n))
		}
		c.vnet = int(v)
	}
	if err := c.fill(head + int(n)); err != nil {
		return nil, 0, err
	}
	p = c.buf[c.lo+head : c.lo+head+int(n) : c.lo+head+int(n)]
	c.skip(head + int(n))
	return p, 0, nil
}

// validVNet reports whether a virtio-net header may have n bytes.
func validVNet(n int) bool { return n >= 0 && n <= 20 || n == MaxVNetHdr }

func (c *Conn) skip(n int) { c.lo += n; c.off += int64(n) }

// fill makes buf[lo:] hold at least n bytes, n <= readBuffer.
func (c *Conn) fill(n int) error {
	if c.hi-c.lo >= n {
		return nil
	}
	if c.buf == nil {
		c.buf = make([]byte, readBuffer)
	}
	if len(c.buf)-c.lo < n || c.lo == c.hi {
		c.hi = copy(c.buf, c.buf[c.lo:c.hi])
		c.lo = 0
	}
	for idle := 0; c.hi-c.lo < n; {
		k, err := c.r.Read(c.buf[c.hi:])
		c.hi += k
		switch {
		case c.hi-c.lo >= n:
			return nil
		case err == io.EOF && c.hi == c.lo:
			return io.EOF
		case err == io.EOF:
			return c.fail(io.ErrUnexpectedEOF)
		case err != nil:
			return c.fail(err)
		case k > 0:
			idle = 0
		default:
			if idle++; idle == 100 {
				return c.fail(io.ErrNoProgress)
			}
		}
	}
	return nil
}

func (c *Conn) fail(err error) error { return &Error{Op: "read", Offset: c.off, Err: err} }

// WritePacket sends one frame as one write to the connection. The frame begins
// with a virtio-net header of the configuration's VNetHdrLen bytes. A frame
// that cannot be sent is an [*Error] with [ErrFrame] or [ErrFrameTooBig], and
// harms nothing; an error of the connection sticks.
func (c *Conn) WritePacket(p []byte) error { return c.WriteVNetPacket(p, c.cfg.VNetHdrLen) }

// WriteVNetPacket is WritePacket for a frame that begins with a virtio-net
// header of hdrLen bytes.
func (c *Conn) WriteVNetPacket(p []byte, hdrLen int) error {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	var bad error
	if err := c.over("write", c.woff, c.werr); err != nil {
		return err
	}
	switch {
	case len(p) > MaxFrame:
		bad = ErrFrameTooBig
	case len(p) == 0, c.cfg.VNetHdr && (!validVNet(hdrLen) || hdrLen > len(p)):
		bad = ErrFrame
	}
	if bad != nil {
		return &Error{Op: "write", Offset: c.woff, Err: bad}
	}
	return c.send(c.appendFrame(c.wbuf[:0], p, hdrLen))
}

func (c *Conn) appendFrame(b, p []byte, hdrLen int) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(p)))
	if c.cfg.VNetHdr {
		b = binary.BigEndian.AppendUint32(b, uint32(hdrLen))
	}
	return append(b, p...)
}

// framed returns the bytes to write for a frame that stands behind both of its lengths. If the
// connection has only the first length, that is moved to the place of the second.
func (c *Conn) framed(p []byte) []byte {
	if c.cfg.VNetHdr {
		return p
	}
	copy(p[4:8], p[:4])
	return p[4:]
}

// whole sends what framed has returned.
func (c *Conn) whole(b []byte) error {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	if err := c.over("write", c.woff, c.werr); err != nil {
		return err
	}
	return c.write(b)
}

func (c *Conn) appendMark(b []byte, epoch uint64) []byte {
	if !c.cfg.Marks {
		return b
	}
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint32(b, markMagic), epoch)
}

// batch sends what fill appends, frames and markers, as one write. It returns
// false if that is nothing.
func (c *Conn) batch(fill func(b []byte) []byte) (sent bool, err error) {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	if err := c.over("write", c.woff, c.werr); err != nil {
		return false, err
	}
	b := fill(c.wbuf[:0])
	if len(b) == 0 {
		return false, nil
	}
	return true, c.send(b)
}

// WriteMark sends an epoch marker: the frames before it belong to epoch, the
// frames after it to the next one. Without Marks in the configuration it does
// nothing, because the peer would not understand.
func (c *Conn) WriteMark(epoch uint64) error {
	if !c.cfg.Marks {
		return nil
	}
	c.wmu.Lock()
	defer c.wmu.Unlock()
	if err := c.over("write", c.woff, c.werr); err != nil {
		return err
	}
	return c.send(c.appendMark(c.wbuf[:0], epoch))
}

// send writes b, which is in wbuf's memory or replaces it.
func (c *Conn) send(b []byte) error {
	c.wbuf = b
	return c.write(b)
}

func (c *Conn) write(b []byte) error {
	n, err := c.w.Write(b)
	if err == nil && n < len(b) {
		err = io.ErrShortWrite
	}
	if err != nil {
		c.werr = c.over("write", c.woff, &Error{Op: "write", Offset: c.woff, Err: err})
		return c.werr
	}
	c.woff += int64(n)
	return nil
}
