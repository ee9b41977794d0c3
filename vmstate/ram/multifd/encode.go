package multifd

import (
	"bytes"
	"compress/zlib"
	"fmt"
)

// A Compressor compresses the packets of one channel, one after the other, as one
// stream. It belongs to one goroutine.
type Compressor interface {
	// Compress appends to dst what pages become: the next piece of the stream,
	// from which all of pages can be read (a flush at its end). It keeps neither.
	Compress(dst, pages []byte) ([]byte, error)
}

// CompressZlib makes a compressor for Zlib, at level 1, and gives [ErrMethod] for any
// other method, for which a host brings its own.
func CompressZlib(m Method) (Compressor, error) {
	if m != Zlib {
		return nil, fmt.Errorf("multifd: %w: %v", ErrMethod, m)
	}
	c := new(zlibCompressor)
	var err error
	c.z, err = zlib.NewWriterLevel(&c.out, zlib.BestSpeed)
	return c, err
}

// zlibCompressor compresses packets as pieces of one stream.
type zlibCompressor struct {
	z   *zlib.Writer
	out bytes.Buffer
}

// Compress implements [Compressor].
func (c *zlibCompressor) Compress(dst, pages []byte) ([]byte, error) {
	c.out.Reset()
	_, err := c.z.Write(pages)
	if err == nil {
		err = c.z.Flush()
	}
	return append(dst, c.out.Bytes()...), err
}
