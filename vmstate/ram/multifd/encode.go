package multifd

import (
	"bytes"
	"compress/zlib"
	"fmt"
)

// A Compressor compresses the packets of one channel, one after the other, as one
// stream. It belongs to one goroutine.
type Compressor interface {
	// Compress appends pages to dst in compressed form, as the next piece of the
	// stream, and flushes: the receiver can read all of pages from it. It keeps
	// neither slice.
	Compress(dst, pages []byte) ([]byte, error)
}

// CompressZlib returns a compressor for the method Zlib at level 1, and [ErrMethod] for
// any other method: a host brings its own compressor for those.
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
