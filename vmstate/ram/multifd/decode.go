package multifd

import (
	"compress/zlib"
	"errors"
	"fmt"
	"io"
)

// A Decoder decompresses the packets of one channel, one after the other. It
// belongs to the Reader's goroutine.
type Decoder interface {
	// Decode decompresses data into pages. data is the next piece of the
	// channel's compressed stream, up to a point at which the sender has
	// flushed; it is an error if it does not fill pages exactly. Decode
	// keeps neither slice.
	Decode(pages, data []byte) error
}

// DecodeZlib returns a decoder for the method Zlib, and [ErrMethod] for any
// other method. It is the default of [Reader.Decoder].
func DecodeZlib(m Method) (Decoder, error) {
	if m != Zlib {
		return nil, fmt.Errorf("multifd: %w: %v", ErrMethod, m)
	}
	return new(zlibDecoder), nil
}

// zlibDecoder decompresses one zlib stream, of which each packet of a channel
// carries the next piece.
type zlibDecoder struct {
	left  pieces
	z     io.ReadCloser
	end   []byte // what the decoder has not consumed of the packet before
	carry []byte // reused memory: end and the next packet, joined
}

// Decode implements [Decoder].
func (d *zlibDecoder) Decode(pages, data []byte) error {
	if len(d.left.p) > 0 {
		// The last bytes of the packet before were not needed for its pages.
		data = append(append(d.carry[:0], d.left.p...), data...)
		d.carry = data
	}
	d.left.p = data
	if d.z == nil {
		z, err := zlib.NewReader(&d.left)
		if err != nil {
			return err
		}
		d.z = z
	}
	if _, err := io.ReadFull(d.z, pages); err != nil {
		return err
	}
	// What may be left over is the end of a deflate block and the empty block
	// that the sender's flush wrote.
	if len(d.left.p) > maxFlush {
		return errors.New("more than the pages")
	}
	d.end = append(d.end[:0], d.left.p...)
	d.left.p = d.end
	return nil
}

// maxFlush bounds the bytes of a packet that may be left over when its pages
// are complete.
const maxFlush = 64

// pieces is the packet that is being read. It implements io.ByteReader, so that
// nothing is read ahead.
type pieces struct{ p []byte }

func (s *pieces) Read(p []byte) (int, error) {
	if len(s.p) == 0 {
		return 0, io.ErrUnexpectedEOF
	}
	n := copy(p, s.p)
	s.p = s.p[n:]
	return n, nil
}

func (s *pieces) ReadByte() (byte, error) {
	if len(s.p) == 0 {
		return 0, io.ErrUnexpectedEOF
	}
	c := s.p[0]
	s.p = s.p[1:]
	return c, nil
}
