package main

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"time"
)

// A capture is a pcap file of Ethernet frames, of either byte order and either
// resolution.
type capture struct {
	f     io.Closer
	r     *bufio.Reader
	order binary.ByteOrder
	unit  time.Duration
	buf   []byte
}

type captured struct {
	at   time.Time
	data []byte // valid until the next one
}

const maxCaptured = 4096 + 65536

func openCapture(name string) (*capture, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	c, err := newCapture(f)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return c, nil
}

func newCapture(f io.ReadCloser) (*capture, error) {
	c := &capture{f: f, r: bufio.NewReader(f)}
	var head [24]byte
	if _, err := io.ReadFull(c.r, head[:]); err != nil {
		return nil, fmt.Errorf("head of the capture: %w", err)
	}
	for _, order := range []binary.ByteOrder{binary.LittleEndian, binary.BigEndian} {
		switch order.Uint32(head[:]) {
		case 0xa1b2c3d4:
			c.order, c.unit = order, time.Microsecond
		case 0xa1b23c4d:
			c.order, c.unit = order, time.Nanosecond
		}
	}
	if c.order == nil {
		return nil, errors.New("not a pcap file")
	}
	if link := c.order.Uint32(head[20:]) & 0xffff; link != 1 {
		return nil, fmt.Errorf("link type %d, not Ethernet", link)
	}
	return c, nil
}

// next returns the next frame. The error is io.EOF at the end of the file.
func (c *capture) next() (captured, error) {
	var head [16]byte
	if _, err := io.ReadFull(c.r, head[:]); err != nil {
		return captured{}, err
	}
	n, whole := c.order.Uint32(head[8:]), c.order.Uint32(head[12:])
	if n > maxCaptured {
		return captured{}, fmt.Errorf("a packet of %d bytes", n)
	}
	if n < whole {
		return captured{}, fmt.Errorf("a packet of which %d of %d bytes were captured", n, whole)
	}
	c.buf = append(c.buf[:0], make([]byte, n)...)
	if _, err := io.ReadFull(c.r, c.buf); err != nil {
		return captured{}, io.ErrUnexpectedEOF
	}
	at := time.Unix(int64(c.order.Uint32(head[0:])), int64(time.Duration(c.order.Uint32(head[4:]))*c.unit))
	return captured{at, c.buf}, nil
}

func (c *capture) Close() error { return c.f.Close() }
