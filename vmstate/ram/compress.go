package ram

import (
	"bytes"
	"compress/zlib"
	"fmt"
	"io"

	"github.com/gocolo/lockstep/qemufile"
)

// maxCompressed is the longest that zlib makes of one page (compressBound),
// and the longest that QEMU accepts.
const maxCompressed = PageSize + PageSize>>12 + PageSize>>14 + PageSize>>25 + 13

// readCompressed returns the zlib stream of a compressed page as a view of r's
// buffer.
func readCompressed(r *qemufile.Reader) ([]byte, error) {
	n := r.BE32()
	if err := r.Err(); err != nil {
		return nil, qemufile.NoEOF(err)
	}
	if n > maxCompressed {
		return nil, fmt.Errorf("%w: %d bytes", ErrCompressed, n)
	}
	z := r.Next(int(n))
	return z, qemufile.NoEOF(r.Err())
}

// inflater decompresses pages one after the other and reuses its memory.
type inflater struct {
	src bytes.Reader
	z   io.ReadCloser
	buf [PageSize + 1]byte // one byte more than allowed, to see it
}

// page returns the page that z holds, valid until the next call. Anything but
// exactly one page is an error, and so is a wrong checksum.
func (f *inflater) page(z []byte) ([]byte, error) {
	f.src.Reset(z)
	var err error
	if f.z == nil {
		f.z, err = zlib.NewReader(&f.src)
	} else {
		err = f.z.(zlib.Resetter).Reset(&f.src, nil)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %v", ErrCompressed, err)
	}
	n := 0
	for err == nil && n < len(f.buf) {
		var m int
		m, err = f.z.Read(f.buf[n:])
		n += m
	}
	switch {
	case n > PageSize:
		return nil, fmt.Errorf("%w: more than a page", ErrCompressed)
	case err != io.EOF:
		return nil, fmt.Errorf("%w: %v", ErrCompressed, err)
	case n < PageSize:
		return nil, fmt.Errorf("%w: %d bytes", ErrCompressed, n)
	}
	return f.buf[:PageSize], nil
}

// inflate makes page what z holds, which has to be exactly one page.
func inflate(page, z []byte) error {
	if len(page) == PageSize {
		var f inflater
		p, err := f.page(z)
		copy(page, p)
		return err
	}
	r, err := zlib.NewReader(bytes.NewReader(z))
	if err != nil {
		return fmt.Errorf("%w: %v", ErrCompressed, err)
	}
	got := make([]byte, len(page)+1)
	n, err := io.ReadFull(r, got)
	if err != io.ErrUnexpectedEOF || n != len(page) {
		return fmt.Errorf("%w: not one page (%v)", ErrCompressed, err)
	}
	copy(page, got)
	return nil
}
