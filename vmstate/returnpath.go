package vmstate

import (
	"fmt"
	"io"
	"math/bits"
	"sync/atomic"

	"github.com/gocolo/lockstep/qemufile"
)

// ReturnType is the number of a message on the return path (MIG_RP_MSG_* in
// migration/migration.h), which goes from the destination to the source on the
// same connection.
type ReturnType uint16

// The messages.
const (
	ReturnInvalid       ReturnType = 0
	ReturnShut          ReturnType = 1 // the last one; 0 is success
	ReturnPong          ReturnType = 2
	ReturnRequestBlock  ReturnType = 3 // REQ_PAGES_ID: pages of a block named here
	ReturnRequestPages  ReturnType = 4 // REQ_PAGES: pages of the block named last
	ReturnRecvBitmap    ReturnType = 5 // with a bitmap outside the message's length
	ReturnResumeAck     ReturnType = 6
	ReturnSwitchoverAck ReturnType = 7 // QEMU 8.1 and later
)

// returns gives each message its name and length; -1 where it varies.
var returns = [...]struct {
	name string
	size int
}{
	ReturnInvalid:       {"invalid", -1},
	ReturnShut:          {"shut", 4},
	ReturnPong:          {"pong", 4},
	ReturnRequestBlock:  {"req-pages-id", -1},
	ReturnRequestPages:  {"req-pages", 12},
	ReturnRecvBitmap:    {"recv-bitmap", -1},
	ReturnResumeAck:     {"resume-ack", 4},
	ReturnSwitchoverAck: {"switchover-ack", 0},
}

// String returns the message's name in lower case, such as "pong" or "req-pages".
func (t ReturnType) String() string {
	if int(t) < len(returns) {
		return returns[t].name
	}
	return fmt.Sprintf("message %d", uint16(t))
}

const (
	maxReturn       = 512                // bytes, as in QEMU
	bitmapEnd       = 0x0123456789abcdef // RAMBLOCK_RECV_BITMAP_ENDING
	maxBitmapBytes  = 64 << 20           // default: 2 TiB of 4 KiB pages
	resumeAckAgreed = 1
)

// A Return is one message of the return path. Only the fields that its type
// uses are set.
type Return struct {
	Type   ReturnType
	Value  uint32   // SHUT: 0 is success; PONG: the PING's; RESUME_ACK: 1
	Block  string   // REQ_PAGES_ID, RECV_BITMAP; REQ_PAGES when read by a ReturnReader
	Start  uint64   // REQ_PAGES*: bytes from the start of the block
	Length uint32   // REQ_PAGES*: bytes
	Bitmap []uint64 // RECV_BITMAP: page i has arrived if bit i%64 of word i/64 is set
}

// PutReturn writes m. It does not flush. A name or a message that is too long
// fails the Writer with [qemufile.ErrTooLong].
func PutReturn(w *qemufile.Writer, m Return) {
	if len(m.Block) > 255 {
		w.Fail(fmt.Errorf("vmstate: RAM block name of %d bytes: %w", len(m.Block), qemufile.ErrTooLong))
		return
	}
	w.PutBE16(uint16(m.Type))
	switch m.Type {
	case ReturnShut, ReturnPong, ReturnResumeAck:
		w.PutBE16(4)
		w.PutBE32(m.Value)
	case ReturnRequestBlock:
		w.PutBE16(uint16(13 + len(m.Block)))
		w.PutBE64(m.Start)
		w.PutBE32(m.Length)
		w.PutCountedString(m.Block)
	case ReturnRequestPages:
		w.PutBE16(12)
		w.PutBE64(m.Start)
		w.PutBE32(m.Length)
	case ReturnRecvBitmap:
		w.PutBE16(uint16(1 + len(m.Block)))
		w.PutCountedString(m.Block)
		w.PutBE64(8 * uint64(len(m.Bitmap)))
		for _, word := range m.Bitmap {
			putLE64(w, word)
		}
		w.PutBE64(bitmapEnd)
	default:
		w.PutBE16(0)
	}
}

// putLE64 puts the only little-endian value of the whole protocol.
func putLE64(w *qemufile.Writer, v uint64) { w.PutBE64(bits.ReverseBytes64(v)) }

// ReadReturn reads one message; it has no memory of earlier ones (a
// [ReturnReader] has). A bitmap may have at most maxBitmap bytes (0: 64 MiB). Its
// error wraps [ErrReturnPath], or is io.EOF if the stream ends before the
// message and io.ErrUnexpectedEOF if it ends inside.
func ReadReturn(r *qemufile.Reader, maxBitmap uint64) (Return, error) {
	return readReturn(r, func(Return) (uint64, error) { return maxBitmap, nil })
}

// readReturn does what ReadReturn does. It asks most, before it reads a bitmap, how many bytes
// that may have.
func readReturn(r *qemufile.Reader, most func(Return) (uint64, error)) (Return, error) {
	m := Return{Type: ReturnType(r.BE16())}
	if err := r.Err(); err != nil {
		return m, err
	}
	n := int(r.BE16())
	if err := r.Err(); err != nil {
		return m, qemufile.NoEOF(err)
	}
	if m.Type == ReturnInvalid || int(m.Type) >= len(returns) {
		return m, fmt.Errorf("vmstate: %w: invalid message %#04x of length %#04x", ErrReturnPath, uint16(m.Type), n)
	}
	if want := returns[m.Type].size; want >= 0 && n != want || n > maxReturn {
		return m, m.malformed(n)
	}
	switch m.Type {
	case ReturnShut, ReturnPong, ReturnResumeAck:
		m.Value = r.BE32()
	case ReturnRequestPages:
		m.Start, m.Length = r.BE64(), r.BE32()
	case ReturnRequestBlock:
		if n < 14 {
			return m, m.malformed(n)
		}
		m.Start, m.Length = r.BE64(), r.BE32()
		m.Block = r.CountedString()
		if r.Err() == nil && 13+len(m.Block) != n {
			return m, m.malformed(n)
		}
	case ReturnRecvBitmap:
		if n < 2 {
			return m, m.malformed(n)
		}
		m.Block = r.CountedString()
		if r.Err() == nil && 1+len(m.Block) != n {
			return m, m.malformed(n)
		}
		if err := r.Err(); err != nil {
			return m, qemufile.NoEOF(err)
		}
		limit, err := most(m)
		if err == nil {
			err = m.readBitmap(r, limit)
		}
		if err != nil {
			return m, err
		}
	}
	return m, qemufile.NoEOF(r.Err())
}

// readBitmap reads what follows a RECV_BITMAP: size, words, end mark.
func (m *Return) readBitmap(r *qemufile.Reader, limit uint64) error {
	if limit == 0 {
		limit = maxBitmapBytes
	}
	size := r.BE64()
	if r.Err() == nil && (size%8 != 0 || size == 0) {
		return fmt.Errorf("vmstate: %w: bitmap of %d bytes for block %q", ErrReturnPath, size, m.Block)
	}
	if r.Err() == nil && size > limit {
		return fmt.Errorf("vmstate: %w: bitmap of %d bytes for block %q, at most %d: %w", ErrReturnPath, size, m.Block, limit, qemufile.ErrTooLong)
	}
	p := r.Bytes(size, limit)
	if end := r.BE64(); r.Err() == nil && end != bitmapEnd {
		return fmt.Errorf("vmstate: %w: bitmap of block %q ends with %#x", ErrReturnPath, m.Block, end)
	}
	if r.Err() != nil {
		return qemufile.NoEOF(r.Err())
	}
	m.Bitmap = make([]uint64, size/8)
	for i := range p {
		m.Bitmap[i/8] |= uint64(p[i]) << (i % 8 * 8)
	}
	return nil
}

func (m Return) malformed(n int) error {
	return fmt.Errorf("vmstate: %w: %v with length %d", ErrReturnPath, m.Type, n)
}

// A ReturnReader is the source's end of the return path: it reads messages and
// applies QEMU's rules for each (source_return_path_thread in
// migration/migration.c). It belongs to one goroutine.
type ReturnReader struct {
	// R is the reverse direction of the connection.
	R *qemufile.Reader
	// Block returns the length of a RAM block in bytes, if there is one of that
	// name. Nil accepts any name and range.
	Block func(name string) (length uint64, ok bool)
	// PageSize is the page size of this host, to which requests are aligned. 0: 4096.
	PageSize uint64
	// MaxBitmap bounds a bitmap where Block is nil, in bytes. 0: 64 MiB. Otherwise the length of
	// the block does.
	MaxBitmap uint64
	// Recovering says that an interrupted postcopy is being resumed: only then
	// are RECV_BITMAP and RESUME_ACK in order.
	Recovering bool

	block string      // that the last request has named
	shut  bool        // SHUT has come
	acked atomic.Bool // SWITCHOVER_ACK has come
}

// SwitchoverAcked reports whether the destination has agreed to the switch. A
// source with the capability switchover-ack may not stop the guest before: it
// gives this function to [Registry].SwitchoverAcked. Any goroutine may call it.
func (rr *ReturnReader) SwitchoverAcked() bool { return rr.acked.Load() }

// Next returns the next message. A REQ_PAGES has its Block filled in. After SHUT
// with success it returns io.EOF. Everything else that ends the path is an error
// that fails the migration: it wraps [ErrReturnPath] (a SHUT that reports an
// error among them), or is io.ErrUnexpectedEOF if the stream ends without SHUT.
func (rr *ReturnReader) Next() (Return, error) {
	if rr.shut {
		return Return{}, io.EOF
	}
	m, err := readReturn(rr.R, rr.mostBitmap)
	if err != nil {
		return m, qemufile.NoEOF(err)
	}
	switch m.Type {
	case ReturnShut:
		rr.shut = true
		if m.Value != 0 {
			return m, fmt.Errorf("vmstate: %w: the destination reports error %d", ErrReturnPath, int32(m.Value))
		}
	case ReturnRequestBlock:
		rr.block = m.Block
		err = rr.request(m)
	case ReturnRequestPages:
		if m.Block = rr.block; m.Block == "" {
			return m, fmt.Errorf("vmstate: %w: %v before any %v", ErrReturnPath, m.Type, ReturnRequestBlock)
		}
		err = rr.request(m)
	case ReturnRecvBitmap:
		err = rr.bitmap(m)
	case ReturnResumeAck:
		switch {
		case !rr.Recovering:
			err = rr.untimely(m)
		case m.Value != resumeAckAgreed:
			err = fmt.Errorf("vmstate: %w: %v with value %d", ErrReturnPath, m.Type, m.Value)
		}
	case ReturnSwitchoverAck:
		rr.acked.Store(true)
	}
	return m, err
}

func (rr *ReturnReader) untimely(m Return) error {
	return fmt.Errorf("vmstate: %w: %v outside recovery", ErrReturnPath, m.Type)
}

func (rr *ReturnReader) length(m Return) (n uint64, known bool, err error) {
	if rr.Block == nil {
		return 0, false, nil
	}
	n, ok := rr.Block(m.Block)
	if !ok {
		return 0, false, fmt.Errorf("vmstate: %w: %v: no block %q", ErrReturnPath, m.Type, m.Block)
	}
	return n, true, nil
}

func (rr *ReturnReader) pageSize() uint64 {
	if rr.PageSize == 0 {
		return 4096
	}
	return rr.PageSize
}

func (rr *ReturnReader) request(m Return) error {
	n, known, err := rr.length(m)
	if err != nil {
		return err
	}
	page := rr.pageSize()
	if m.Start%page != 0 || uint64(m.Length)%page != 0 {
		return fmt.Errorf("vmstate: %w: misaligned request %#x+%#x", ErrReturnPath, m.Start, m.Length)
	}
	if known && (m.Start > n || uint64(m.Length) > n-m.Start) {
		return fmt.Errorf("vmstate: %w: request %#x+%#x in block %q of %#x: %w", ErrReturnPath, m.Start, m.Length, m.Block, n, ErrBounds)
	}
	return nil
}

// mostBitmap returns how many bytes a bitmap may have, 0 for the default, or why none may come.
func (rr *ReturnReader) mostBitmap(m Return) (uint64, error) {
	if !rr.Recovering {
		return 0, rr.untimely(m)
	}
	n, known, err := rr.length(m)
	if err != nil || !known {
		return rr.MaxBitmap, err
	}
	return 8 * max(rr.words(n), 1), nil
}

// words returns how many words the bitmap of a block of n bytes has.
func (rr *ReturnReader) words(n uint64) uint64 { return (n/rr.pageSize() + 63) / 64 }

// bitmap checks a bitmap that mostBitmap has let in.
func (rr *ReturnReader) bitmap(m Return) error {
	n, known, err := rr.length(m)
	if err != nil {
		return err
	}
	if words := rr.words(n); known && uint64(len(m.Bitmap)) != words {
		return fmt.Errorf("vmstate: %w: bitmap of %d words for block %q, want %d", ErrReturnPath, len(m.Bitmap), m.Block, words)
	}
	return nil
}

// A ReturnWriter is the destination's end of the return path. Each method
// flushes and returns the Writer's sticky error; after Shut they fail with
// [ErrReturnPath]. It belongs to one goroutine at a time.
type ReturnWriter struct {
	// W is the reverse direction of the connection.
	W *qemufile.Writer

	block string
	shut  bool
}

func (rw *ReturnWriter) send(m Return) error {
	if rw.shut {
		return fmt.Errorf("vmstate: %w: %v after %v", ErrReturnPath, m.Type, ReturnShut)
	}
	PutReturn(rw.W, m)
	return rw.W.Flush()
}

// Pong answers a PING.
func (rw *ReturnWriter) Pong(value uint32) error {
	return rw.send(Return{Type: ReturnPong, Value: value})
}

// RequestPages asks for pages of a block; start and length are in bytes. The
// block is named on the wire only if it is not the last one asked for.
func (rw *ReturnWriter) RequestPages(block string, start uint64, length uint32) error {
	m := Return{Type: ReturnRequestPages, Start: start, Length: length}
	if block != rw.block || block == "" {
		m.Type, m.Block = ReturnRequestBlock, block
	}
	if err := rw.send(m); err != nil {
		return err
	}
	rw.block = block
	return nil
}

// RecvBitmap tells which pages of a block have arrived.
func (rw *ReturnWriter) RecvBitmap(block string, received []uint64) error {
	return rw.send(Return{Type: ReturnRecvBitmap, Block: block, Bitmap: received})
}

// ResumeAck agrees to go on after an interrupted postcopy.
func (rw *ReturnWriter) ResumeAck() error {
	return rw.send(Return{Type: ReturnResumeAck, Value: resumeAckAgreed})
}

// SwitchoverAck agrees that the source stops the guest now.
func (rw *ReturnWriter) SwitchoverAck() error { return rw.send(Return{Type: ReturnSwitchoverAck}) }

// Shut ends the return path; ok says that the migration has arrived.
func (rw *ReturnWriter) Shut(ok bool) error {
	m := Return{Type: ReturnShut}
	if !ok {
		m.Value = 1
	}
	err := rw.send(m)
	rw.shut = true
	return err
}
