// Package zstd compresses what goes over the channels of a guest's memory with Zstandard,
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

// Compressor makes the compressor of one channel, for [multifd.Zstd] at level 1, for
// [multifd.Zlib] that of [multifd.CompressZlib]; and gives [multifd.ErrMethod] for any other
// method. The result belongs to one goroutine, and starts none.
func Compressor(m multifd.Method) (multifd.Compressor, error) {
	if m != multifd.Zstd {
		return multifd.CompressZlib(m)
	}
	c := new(compressor)
	var err error
	c.z, err = zstd.NewWriter(&c.out, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false))
	return c, err
}

// compressor compresses packets as pieces of one stream.
type compressor struct {
	z   *zstd.Encoder
	out bytes.Buffer
}

// Close gives back what the compressor has. (Channels close their compressors.)
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

// Decoder makes the decoder of one channel, for [multifd.Zstd]; for [multifd.Zlib] that of
// [multifd.DecodeZlib]; and gives [multifd.ErrMethod] for any other method. The result
// belongs to one goroutine, and starts none. It needs up to 64 MiB of memory, if the stream
// reaches far back.
func Decoder(m multifd.Method) (multifd.Decoder, error) {
	if m != multifd.Zstd {
		return multifd.DecodeZlib(m)
	}
	d := new(decoder)
	var err error
	d.z, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
	return d, err
}

// decoder decompresses the stream that a channel's packets are pieces of.
type decoder struct {
	z     *zstd.Decoder
	in    packet
	begun bool
}

// errTooMuch is of a packet that has more than its pages.
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
	// A sender flushes with a block, of which nothing is left.
	if len(d.in.p) > 0 {
		return errTooMuch
	}
	return nil
}

// Close gives back what the decoder has. (Channels close their decoders.)
func (d *decoder) Close() { d.z.Close() }

// packet is the packet that is being read.
type packet struct{ p []byte }

// Read implements io.Reader. The packet's end is no end of the stream, but nobody may
// read beyond it.
func (k *packet) Read(p []byte) (int, error) {
	if len(k.p) == 0 && len(p) > 0 {
		return 0, io.ErrUnexpectedEOF
	}
	n := copy(p, k.p)
	k.p = k.p[n:]
	return n, nil
}
