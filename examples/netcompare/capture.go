package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"
)

// A recording is a capture file, which is read more than once.
type recording struct {
	name string
	open func() (io.ReadCloser, error)
}

// maxPiped bounds what is kept of a capture that is no file, in bytes.
const maxPiped = 1 << 30

func newRecording(ctx context.Context, name string) (*recording, error) {
	if name == "-" {
		name = os.Stdin.Name()
	}
	info, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if info.Mode().IsRegular() {
		return &recording{name, func() (io.ReadCloser, error) { return os.Open(name) }}, nil
	}
	b, err := readPiped(ctx, name)
	if err != nil {
		return nil, err
	}
	return &recording{name, func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }}, nil
}

// readPiped reads a capture that is no file to its end, or until ctx ends: a FIFO waits for somebody
// who writes it, and a terminal for somebody who types. A call that the kernel holds is left behind
// then, and ends with the program.
func readPiped(ctx context.Context, name string) ([]byte, error) {
	type result struct {
		b   []byte
		err error
	}
	read := make(chan result, 1)
	go func() {
		f, err := os.Open(name)
		if err != nil {
			read <- result{nil, err}
			return
		}
		defer f.Close()
		b, err := io.ReadAll(io.LimitReader(f, maxPiped+1))
		if err == nil && len(b) > maxPiped {
			err = fmt.Errorf("%s: more than %d bytes that are no file", name, maxPiped)
		}
		read <- result{b, err}
	}()
	select {
	case r := <-read:
		return r.b, r.err
	case <-ctx.Done():
		return nil, fmt.Errorf("%s: %w", name, context.Cause(ctx))
	}
}

// A shot is one packet of a capture, as an Ethernet frame.
type shot struct {
	at      time.Time
	n       int    // counted from 1 in its capture
	data    []byte // its own memory
	missing int    // bytes that were on the wire behind data and were not captured
}

// A capture is a recording that is being read.
type capture struct {
	f    io.Closer
	read func() ([]byte, gopacket.CaptureInfo, error)
	link func(gopacket.CaptureInfo) layers.LinkType
	n    int
	at   time.Time // of the packet before, since a simple packet block of pcapng has no time

	// cut says that the file ends within a packet. It is set when next has returned
	// io.EOF.
	cut bool

	foreign int   // packets of links that are not read, such as those of USB, of which a file of several interfaces may have some
	strange error // of the first of these
}

// begin opens the recording: a pcap or pcapng file, as it is or compressed by gzip.
func (r *recording) begin() (*capture, error) {
	f, err := r.open()
	if err != nil {
		return nil, err
	}
	c, err := newCapture(f)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: %w", r.name, err)
	}
	return c, nil
}

func newCapture(f io.ReadCloser) (*capture, error) {
	c := &capture{f: f, at: time.Unix(0, 0)}
	b := bufio.NewReaderSize(f, 1<<16)
	if magic, _ := b.Peek(2); len(magic) == 2 && magic[0] == 0x1f && magic[1] == 0x8b {
		z, err := newUnzipper(b)
		if err != nil {
			return nil, err
		}
		b = bufio.NewReaderSize(z, 1<<16) // both readers take it as it is
	}
	magic, err := b.Peek(4)
	if err != nil {
		return nil, fmt.Errorf("head of the capture: %w", unexpected(err))
	}
	if binary.BigEndian.Uint32(magic) == ngMagic {
		blocks := &ngBlocks{src: b}
		r, err := pcapgo.NewNgReader(blocks, pcapgo.NgReaderOptions{WantMixedLinkType: true})
		if err != nil {
			return nil, fmt.Errorf("head of the capture: %w", unexpected(err))
		}
		c.read = func() ([]byte, gopacket.CaptureInfo, error) {
			data, ci, err := r.ReadPacketData()
			if err != nil && blocks.cut {
				err = io.ErrUnexpectedEOF
			}
			return data, ci, err
		}
		c.link = func(ci gopacket.CaptureInfo) layers.LinkType { return ci.AncillaryData[0].(layers.LinkType) }
		return c, nil
	}
	r, err := pcapgo.NewReader(b)
	if err != nil {
		return nil, fmt.Errorf("no pcap or pcapng file: %w", unexpected(err))
	}
	c.read = r.ReadPacketData
	c.link = func(gopacket.CaptureInfo) layers.LinkType { return r.LinkType() & 0xffff }
	return c, nil
}

func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// next returns the next packet of a link that is read. The error is io.EOF at the end of the
// file, wherever that is, unless there are packets of other links only.
func (c *capture) next() (s shot, err error) {
	for {
		s, err = c.any()
		switch {
		case err == errForeign:
			continue
		case err == io.EOF && c.foreign == c.n && c.strange != nil:
			return s, c.strange
		}
		return s, err
	}
}

// errForeign says that a packet was captured on a link that is not read.
var errForeign = errors.New("packet of another link")

// any returns the next packet, or errForeign for it.
func (c *capture) any() (shot, error) {
	data, ci, err := c.read()
	switch {
	case err == nil:
	case err == io.EOF && len(data) == 0 && ci.CaptureLength == 0:
		return shot{}, io.EOF
	case err == io.EOF, errors.Is(err, io.ErrUnexpectedEOF):
		c.cut = true
		return shot{}, io.EOF
	default:
		return shot{}, fmt.Errorf("packet %d: %w", c.n+1, err)
	}
	c.n++
	frame, err := ethernet(c.link(ci), data)
	if err != nil {
		if c.foreign++; c.strange == nil {
			c.strange = fmt.Errorf("packet %d: %w", c.n, err)
		}
		return shot{}, errForeign
	}
	if ci.Timestamp.IsZero() {
		ci.Timestamp = c.at
	}
	c.at = ci.Timestamp
	return shot{at: ci.Timestamp, n: c.n, data: frame, missing: max(ci.Length-len(data), 0)}, nil
}

func (c *capture) Close() error { return c.f.Close() }

// Numbers of bare IP on the systems that captured it, which some programs write into files.
const linkRaw, linkRawBSD layers.LinkType = 12, 14

// ethernet makes an Ethernet frame of what was captured on some link. Addresses
// that the link does not have are zero.
func ethernet(link layers.LinkType, b []byte) ([]byte, error) {
	head := func(src []byte, proto uint16, rest []byte) []byte {
		f := make([]byte, 14, 14+len(rest))
		copy(f[6:12], src)
		binary.BigEndian.PutUint16(f[12:], proto)
		return append(f, rest...)
	}
	short := func(n int) bool { return len(b) < n }
	switch link {
	case layers.LinkTypeEthernet:
		return b, nil
	case layers.LinkTypeLinuxSLL: // type, ARPHRD, length of the address, address, protocol
		if short(16) {
			return head(nil, 0, nil), nil
		}
		return head(b[6:12], binary.BigEndian.Uint16(b[14:]), b[16:]), nil
	case layers.LinkTypeLinuxSLL2: // protocol, reserved, interface, ARPHRD, type, length of the address, address
		if short(20) {
			return head(nil, 0, nil), nil
		}
		return head(b[12:18], binary.BigEndian.Uint16(b), b[20:]), nil
	case layers.LinkTypePPP, layers.LinkTypePPP_HDLC: // perhaps an address and a control field, the protocol
		b = bytes.TrimPrefix(b, []byte{0xff, 3})
		proto := uint16(0)
		switch {
		case bytes.HasPrefix(b, []byte{0, 0x21}):
			proto = 0x0800
		case bytes.HasPrefix(b, []byte{0, 0x57}):
			proto = 0x86dd
		}
		return head(nil, proto, b[min(2, len(b)):]), nil
	case layers.LinkTypeRaw, linkRaw, linkRawBSD, layers.LinkTypeIPv4, layers.LinkTypeIPv6:
		proto := uint16(0x0800)
		if !short(1) && b[0]>>4 == 6 {
			proto = 0x86dd
		}
		return head(nil, proto, b), nil
	case layers.LinkTypeNull, layers.LinkTypeLoop: // the family, as the system that captured it numbers it
		proto := uint16(0)
		switch {
		case short(5):
		case b[4]>>4 == 4:
			proto = 0x0800
		case b[4]>>4 == 6:
			proto = 0x86dd
		}
		return head(nil, proto, b[min(4, len(b)):]), nil
	}
	return nil, fmt.Errorf("link type %d, which is neither Ethernet, SLL, SLL2, PPP, a loopback nor bare IP", uint32(link))
}
