package multifd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// maxData bounds the contents of a packet of pages: no compression method makes
// pages twice as long.
const maxData = 2 * MaxPages * ram.PageSize

// defaultDevice is the default of Reader.MaxDevice. QEMU's VFIO sends device
// state in pieces of 1 MiB.
const defaultDevice = 4 << 20

// Reader reads the packets of one channel. It belongs to one goroutine, and a
// migration has one for each channel.
type Reader struct {
	// MaxDevice bounds the contents of a packet of device state, in bytes;
	// 0 means 4 MiB.
	MaxDevice uint32

	// Decoder returns a decoder for a method other than None; [Reader.Pages]
	// calls it. Nil means [DecodeZlib], which knows only Zlib.
	Decoder func(Method) (Decoder, error)

	decoders map[Method]Decoder
	pages    []byte // the pages of the packet, decompressed

	r       *qemufile.Reader
	at      int64 // offset at which the packet begins
	packet  Packet
	device  Device
	block   string // of the last packet that had one
	offsets [MaxPages]uint64
	data    []byte
}

// NewReader returns a Reader of the channel r, whose [Init] has been read.
func NewReader(r *qemufile.Reader) *Reader { return &Reader{r: r} }

// Pages returns the contents of the normal pages of the packet that Read has
// returned last, one after the other: Data, decompressed if Method is not None.
// They are valid until the next call. One compressed stream runs through all packets
// of a channel, so the caller calls Pages for each packet that has contents, in
// order. Its errors are [*Error] with [ErrMethod] or [ErrDecode]; after one of them
// no later packet can be decompressed.
func (c *Reader) Pages() ([]byte, error) {
	p := &c.packet
	if p.Method == None || len(p.Normal) == 0 || p.Device != nil {
		return p.Data, nil
	}
	d := c.decoders[p.Method]
	if d == nil {
		make := c.Decoder
		if make == nil {
			make = DecodeZlib
		}
		var err error
		if d, err = make(p.Method); err != nil {
			return nil, wrap(c.at, err)
		}
		if c.decoders == nil {
			c.decoders = map[Method]Decoder{}
		}
		c.decoders[p.Method] = d
	}
	n := len(p.Normal) * ram.PageSize
	c.pages = slices.Grow(c.pages[:0], n)[:n]
	if err := d.Decode(c.pages, p.Data); err != nil {
		return nil, wrap(c.at, fmt.Errorf("%w: %v: %w", ErrDecode, p.Method, err))
	}
	return c.pages, nil
}

// Read returns the next packet, which is valid until the next call. The end of
// the channel between two packets is io.EOF. Every other error is an [*Error], and
// nothing more can be read from the channel.
//
// Read does not know the guest: the caller checks that it has the block and that
// the pages lie within it.
func (c *Reader) Read() (*Packet, error) {
	at := c.r.Offset()
	c.at = at
	if err := c.read(); err != nil {
		if c.r.Offset() == at && errors.Is(err, io.EOF) {
			return nil, io.EOF
		}
		return nil, wrap(at, qemufile.NoEOF(err))
	}
	return &c.packet, nil
}

func (c *Reader) read() error {
	h := c.r.Next(prefixLen)
	if err := c.r.Err(); err != nil {
		return err
	}
	if err := checkMagic(h); err != nil {
		return err
	}
	flags := binary.BigEndian.Uint32(h[8:])
	c.packet = Packet{
		Sync:   flags&flagSync != 0,
		Method: Method(flags >> methodShift & methodMask),
	}
	if flags&^knownFlags != 0 {
		return fmt.Errorf("%w: %#x", ErrFlags, flags)
	}
	var size uint32
	var err error
	if flags&flagDeviceState != 0 {
		size, err = c.readDevice()
	} else {
		size, err = c.readPages()
	}
	if err == nil {
		err = c.packet.check(size)
	}
	if err != nil {
		return err
	}
	// The length has been bounded above; the memory is reused by the next packet.
	c.data = slices.Grow(c.data[:0], int(size))[:size]
	c.packet.Data = c.data
	return c.r.ReadFull(c.data)
}

// readPages reads the rest of a header of pages and returns the length of what
// follows it.
func (c *Reader) readPages() (size uint32, err error) {
	h := c.r.Next(headerLen - prefixLen)
	if err := c.r.Err(); err != nil {
		return 0, qemufile.NoEOF(err)
	}
	p := &c.packet
	alloc := binary.BigEndian.Uint32(h)
	normal := binary.BigEndian.Uint32(h[4:])
	size = binary.BigEndian.Uint32(h[8:])
	p.Number = binary.BigEndian.Uint64(h[12:])
	zero := binary.BigEndian.Uint32(h[20:])
	if alloc > MaxPages || normal > alloc || zero > alloc-normal {
		return 0, fmt.Errorf("%w: %d normal and %d zero of %d pages", ErrCount, normal, zero, alloc)
	}
	if normal == 0 {
		// QEMU up to 8 leaves the length of the packet before in a packet
		// without contents.
		size = 0
	}
	if size > maxData {
		return 0, fmt.Errorf("%w: %d bytes for %d pages", ErrSize, size, normal)
	}
	if normal+zero > 0 {
		c.block, err = name(h[fixedLen-nameLen-prefixLen:], c.block)
		p.Block = c.block
	}
	offsets := h[fixedLen-prefixLen:]
	for i := range normal + zero {
		c.offsets[i] = binary.BigEndian.Uint64(offsets[8*i:])
	}
	p.Normal = c.offsets[:normal:normal]
	p.Zero = c.offsets[normal : normal+zero : normal+zero]
	return size, err
}

func (c *Reader) readDevice() (size uint32, err error) {
	h := c.r.Next(deviceLen - prefixLen)
	if err := c.r.Err(); err != nil {
		return 0, qemufile.NoEOF(err)
	}
	c.device.Instance = binary.BigEndian.Uint32(h[nameLen:])
	size = binary.BigEndian.Uint32(h[nameLen+4:])
	limit := c.MaxDevice
	if limit == 0 {
		limit = defaultDevice
	}
	if size > limit {
		return 0, fmt.Errorf("%w: %d bytes of device state, at most %d", ErrSize, size, limit)
	}
	c.device.Name, err = name(h, c.device.Name)
	c.packet.Device = &c.device
	return size, err
}

// name returns the name in the first 256 bytes of p, up to the zero that ends
// it. If it equals was, the name of the packet before, it returns was and allocates nothing.
func name(p []byte, was string) (string, error) {
	n := bytes.IndexByte(p[:nameLen], 0)
	if n < 0 {
		return "", fmt.Errorf("%w: no end", ErrBlock)
	}
	if string(p[:n]) == was {
		return was, nil
	}
	return string(p[:n]), nil
}
