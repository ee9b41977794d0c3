// Package zstd compresses the multifd channels that carry a guest's memory with Zstandard,
// by the library github.com/klauspost/compress. It is a module of its own, so that only a
// host that wants it links that. A host gives [Compressor] and [Decoder] to its channels
// (migrate.Channels, colo.Channels) and asks for [multifd.Zstd]; a QEMU with
// multifd-compression zstd is the other side of either.
package zstd

import (
	"bytes"
	"errors"
	"io"

	"github.com/klauspost/compress/zstd"

	"github.com/gocolo/lockstep/vmstate/ram/multifd"
)

// maxWindow is how far back a stream may reach, in bytes: that of level 20.
const maxWindow = 32 << 20

// Compressor returns a compressor for one channel: Zstandard at level 1 for [multifd.Zstd],
// the one of [multifd.CompressZlib] for [multifd.Zlib], and [multifd.ErrMethod] for any other
// method. It belongs to one goroutine, and starts none.
func Compressor(m multifd.Method) (multifd.Compressor, error) {
	if m != multifd.Zstd {
		return multifd.CompressZlib(m)
	}
	c := new(compressor)
	var err error
	c.z, err = zstd.NewWriter(&c.out, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false))
	return c, err
}

// compressor writes the packets of a channel as pieces of one Zstandard stream.
type compressor struct {
	z   *zstd.Encoder
	out bytes.Buffer
}

// Close frees the compressor. (migrate.Channels and colo.Channels call it.)
func (c *compressor) Close() error { return c.z.Close() }

// Compress implements multifd.Compressor.
func (c *compressor) Compress(dst, pages []byte) ([]byte, error) {
	c.out.Reset()
	_, err := c.z.Write(pages)
	if err == nil {
		err = c.z.Flush()
	}
	return append(dst, c.out.Bytes()...), err
}

// Decoder returns a decoder for one channel: Zstandard for [multifd.Zstd], the one of
// [multifd.DecodeZlib] for [multifd.Zlib], and [multifd.ErrMethod] for any other method. It
// belongs to one goroutine, and starts none. It takes up to 64 MiB of memory if the stream
// refers far back.
func Decoder(m multifd.Method) (multifd.Decoder, error) {
	if m != multifd.Zstd {
		return multifd.DecodeZlib(m)
	}
	d := new(decoder)
	var err error
	d.z, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
	return d, err
}

// decoder decompresses one Zstandard stream, of which each packet carries the next piece.
type decoder struct {
	z     *zstd.Decoder
	in    packet
	begun bool
}

// errTooMuch means that a packet decompresses to more than its pages.
var errTooMuch = errors.New("zstd: more than the pages")

// Decode implements multifd.Decoder.
func (d *decoder) Decode(pages, data []byte) error {
	d.in.p = data
	defer func() { d.in.p = nil }()
	if !d.begun {
		if err := d.z.Reset(&d.in); err != nil {
			return err
		}
		d.begun = true
	}
	if _, err := io.ReadFull(d.z, pages); err != nil {
		return err
	}
	// The sender ends each packet with a block boundary, so no byte is left over.
	if len(d.in.p) > 0 {
		return errTooMuch
	}
	return nil
}

// Close frees the decoder. (migrate.Channels and colo.Channels call it.)
func (d *decoder) Close() { d.z.Close() }

// packet is the packet that is being read.
type packet struct{ p []byte }

// Read implements io.Reader. The stream goes on behind the packet's end, but the decoder may
// not read beyond it.
func (k *packet) Read(p []byte) (int, error) {
	if len(k.p) == 0 && len(p) > 0 {
		return 0, io.ErrUnexpectedEOF
	}
	n := copy(p, k.p)
	k.p = k.p[n:]
	return n, nil
}
