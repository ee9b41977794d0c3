package multifd

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// MaxPages is the most pages in a packet: 512 KiB (MULTIFD_PACKET_SIZE).
const MaxPages = 512 << 10 / ram.PageSize

// Lengths of what is on the wire.
const (
	prefixLen = 12               // magic, version, flags
	fixedLen  = 320              // of a packet before the offsets
	headerLen = fixedLen + 8*128 // MultiFDPacket_t with room for MaxPages offsets, always sent in full
	deviceLen = 12 + 256 + 4 + 4 // MultiFDPacketDeviceState_t
	nameLen   = 256              // of a block or device, padded with zeros
)

// Flags of a packet (MULTIFD_FLAG_*).
const (
	flagSync        = 1 << 0
	methodShift     = 1
	methodMask      = 0x1f
	flagDeviceState = 32 << 1
	knownFlags      = flagSync | methodMask<<methodShift | flagDeviceState
)

// Method is how the pages of a packet are compressed.
type Method uint8

// The methods, by their value in the flags. QEMU 7.2 has the first three.
const (
	None   Method = 0
	Zlib   Method = 1
	Zstd   Method = 2
	QPL    Method = 4
	UADK   Method = 8
	QATZip Method = 16
)

// String returns the method's name in QEMU's multifd-compression parameter, or
// its number.
func (m Method) String() string {
	switch m {
	case None:
		return "none"
	case Zlib:
		return "zlib"
	case Zstd:
		return "zstd"
	case QPL:
		return "qpl"
	case UADK:
		return "uadk"
	case QATZip:
		return "qatzip"
	}
	return fmt.Sprintf("method-%d", uint8(m))
}

// methods lists every Method that has a constant.
var methods = [...]Method{None, Zlib, Zstd, QPL, UADK, QATZip}

func (m Method) known() bool { return slices.Contains(methods[:], m) }

// ParseMethod returns the method that has this name, as [Method.String] writes it.
// The error for a name that no constant has is [ErrMethod].
func ParseMethod(name string) (Method, error) {
	for _, m := range methods {
		if m.String() == name {
			return m, nil
		}
	}
	return None, fmt.Errorf("multifd: %w: %q", ErrMethod, name)
}

// Packet is one packet of a channel.
type Packet struct {
	Sync   bool   // everything before it on this channel is complete
	Method Method // how Data is compressed
	Number uint64 // counted over all channels of a migration

	// Block is the RAM block of the pages; Normal are the offsets of those
	// with contents, Zero of those that are zero (QEMU 9.0 and later).
	// Together they are at most MaxPages, multiples of ram.PageSize.
	Block  string
	Normal []uint64
	Zero   []uint64

	// Data are the contents of the normal pages one after the other,
	// compressed by Method. In a packet that was read, the memory belongs
	// to the Reader.
	Data []byte

	// Device is not nil if the packet carries device state instead of pages
	// (QEMU 10.0 and later), in Data.
	Device *Device
}

// Device names the device whose state a packet carries.
type Device struct {
	Name     string // 1 to 255 bytes
	Instance uint32
}

// Page returns the contents of normal page i of a packet whose Method is None.
func (p *Packet) Page(i int) []byte {
	return p.Data[i*ram.PageSize : (i+1)*ram.PageSize]
}

// Put writes the packet; Data is queued by reference and must stay as it is
// until the writer is flushed. A packet that no receiver would accept makes the
// writer fail, with the errors that reading it would give.
func (p *Packet) Put(w *qemufile.Writer) {
	if err := p.check(uint32(len(p.Data))); err != nil {
		w.Fail(wrap(w.Transferred(), err))
		return
	}
	p.putHeader(w, uint32(len(p.Data)))
	w.WriteRef(p.Data)
}

// PutFrom writes the packet with the normal pages' contents taken from the
// block's memory, by reference, instead of Data. The method is None. A page
// beyond the end of the memory makes the writer fail with [ErrOffset].
func (p *Packet) PutFrom(w *qemufile.Writer, block []byte) {
	size := uint32(len(p.Normal)) * ram.PageSize
	err := p.check(size)
	if err == nil && (p.Method != None || p.Device != nil) {
		err = fmt.Errorf("%w: pages of a block, and compressed or device state", ErrFlags)
	}
	for _, off := range p.Normal {
		if err == nil && (uint64(len(block)) < ram.PageSize || off > uint64(len(block))-ram.PageSize) {
			err = fmt.Errorf("%w or not in the block: %#x", ErrOffset, off)
		}
	}
	if err != nil {
		w.Fail(wrap(w.Transferred(), err))
		return
	}
	p.putHeader(w, size)
	for _, off := range p.Normal {
		w.WriteRef(block[off : off+ram.PageSize])
	}
}

// check reports what is wrong with the packet. size is the length of Data.
func (p *Packet) check(size uint32) error {
	if !p.Method.known() {
		return fmt.Errorf("%w: compression %v", ErrFlags, p.Method)
	}
	if p.Device != nil {
		switch {
		case p.Sync || p.Method != None || len(p.Normal)+len(p.Zero) > 0:
			return fmt.Errorf("%w: device state, and more", ErrFlags)
		case len(p.Device.Name) == 0:
			return fmt.Errorf("%w: no device", ErrBlock)
		}
		return checkName(p.Device.Name)
	}
	if len(p.Normal) > MaxPages || len(p.Zero) > MaxPages-len(p.Normal) {
		return fmt.Errorf("%w: %d normal and %d zero pages", ErrCount, len(p.Normal), len(p.Zero))
	}
	if len(p.Normal)+len(p.Zero) > 0 && len(p.Block) == 0 {
		return fmt.Errorf("%w: pages of no block", ErrBlock)
	}
	for _, list := range [][]uint64{p.Normal, p.Zero} {
		for _, off := range list {
			if off%ram.PageSize != 0 {
				return fmt.Errorf("%w: %#x", ErrOffset, off)
			}
		}
	}
	switch {
	case len(p.Normal) == 0 && size > 0,
		p.Method == None && int(size) != len(p.Normal)*ram.PageSize:
		return fmt.Errorf("%w: %d bytes for %d pages", ErrSize, size, len(p.Normal))
	}
	return checkName(p.Block)
}

func checkName(name string) error {
	if len(name) >= nameLen || bytes.IndexByte([]byte(name), 0) >= 0 {
		return fmt.Errorf("%w: %q", ErrBlock, name)
	}
	return nil
}

func (p *Packet) putHeader(w *qemufile.Writer, size uint32) {
	flags := uint32(p.Method) << methodShift
	if p.Sync {
		flags |= flagSync
	}
	if p.Device != nil {
		flags |= flagDeviceState
	}
	w.PutBE32(Magic)
	w.PutBE32(Version)
	w.PutBE32(flags)
	if p.Device != nil {
		putName(w, p.Device.Name)
		w.PutBE32(p.Device.Instance)
		w.PutBE32(size)
		return
	}
	w.PutBE32(MaxPages)
	w.PutBE32(uint32(len(p.Normal)))
	w.PutBE32(size)
	w.PutBE64(p.Number)
	w.PutBE32(uint32(len(p.Zero)))
	w.PutBE32(0) // reserved, to
	for range 3 {
		w.PutBE64(0) // here
	}
	putName(w, p.Block)
	for _, off := range p.Normal {
		w.PutBE64(off)
	}
	for _, off := range p.Zero {
		w.PutBE64(off)
	}
	for range MaxPages - len(p.Normal) - len(p.Zero) {
		w.PutBE64(0)
	}
}

// zeros pads names.
const zeros = "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

func putName(w *qemufile.Writer, name string) {
	w.WriteString(name)
	for n := nameLen - len(name); n > 0; n -= min(n, len(zeros)) {
		w.WriteString(zeros[:min(n, len(zeros))])
	}
}
