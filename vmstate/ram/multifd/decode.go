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
	// Decode fills pages with what data is the compressed form of: the next
	// piece of the channel's stream, at whose end the sender has flushed. It
	// keeps neither. Data that is not exactly as much is an error.
	Decode(pages, data []byte) error
}

// DecodeZlib is the default of [Reader.Decoder]: a decoder for Zlib, and
// [ErrMethod] for any other method.
func DecodeZlib(m Method) (Decoder, error) {
	if m != Zlib {
		return nil, fmt.Errorf("multifd: %w: %v", ErrMethod, m)
	}
	return new(zlibDecoder), nil
}

// zlibDecoder decompresses the stream that a channel's packets are pieces of.
type zlibDecoder struct {
	left  pieces
	z     io.ReadCloser
	end   []byte // of the packet before, which d keeps
	carry []byte // memory for it and the next
}

// Decode implements [Decoder].
func (d *zlibDecoder) Decode(pages, data []byte) error {
	if len(d.left.p) > 0 {
		// The end of the packet before was not needed for its pages.
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
	// What is left is the end of a block, and an empty one by which the sender
	// has flushed.
	if len(d.left.p) > maxFlush {
		return errors.New("more than the pages")
	}
	d.end = append(d.end[:0], d.left.p...)
	d.left.p = d.end
	return nil
}

// maxFlush bounds what may be left of a packet when its pages are complete.
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
