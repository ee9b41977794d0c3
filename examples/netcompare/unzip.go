package main

import (
	"bufio"
	"compress/gzip"
	"io"
)

// An unzipper reads what gzip has compressed, in one part or in several (RFC 1952 section 2.2).
// Zeros behind the last part are padding, as of a device that is written in blocks.
type unzipper struct {
	src  *bufio.Reader
	part *gzip.Reader
}

func newUnzipper(src *bufio.Reader) (*unzipper, error) {
	z, err := gzip.NewReader(src)
	if err != nil {
		return nil, unexpected(err)
	}
	z.Multistream(false)
	return &unzipper{src, z}, nil
}

func (u *unzipper) Read(p []byte) (int, error) {
	for {
		n, err := u.part.Read(p)
		switch {
		case err != io.EOF:
			return n, err
		case n > 0:
			return n, nil // and the end comes with the next call
		}
		if err := u.next(); err != nil {
			return 0, err
		}
	}
}

// next begins the next part. The error is io.EOF behind the last one.
func (u *unzipper) next() error {
	padded := false
	for {
		b, err := u.src.Peek(1)
		if err != nil {
			return err
		}
		if b[0] != 0 {
			break
		}
		padded = true
		u.src.Discard(1) // it is there
	}
	if padded {
		return gzip.ErrHeader
	}
	if err := u.part.Reset(u.src); err != nil {
		return unexpected(err)
	}
	u.part.Multistream(false)
	return nil
}
