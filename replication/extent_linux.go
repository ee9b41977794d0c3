package replication

import (
	"errors"
	"io"
	"os"
	"syscall"
)

// Values of whence, lseek(2).
const (
	seekData = 3
	seekHole = 4
)

// fileExtent returns where the extent of f that begins at off ends, at most
// end, and whether it is a hole.
func fileExtent(f *os.File, off, end int64) (next int64, hole bool, err error) {
	data, err := f.Seek(off, seekData)
	switch {
	case errors.Is(err, syscall.ENXIO): // no data from here on
		size, err := f.Seek(0, io.SeekEnd)
		return end, size >= end, err // where the file has become shorter, reading tells
	case errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.EOPNOTSUPP):
		return end, false, nil
	case err != nil:
		return 0, false, err
	case data > off:
		return min(data, end), true, nil
	}
	next, err = f.Seek(off, seekHole)
	if errors.Is(err, syscall.ENXIO) {
		return end, false, nil // the file has become shorter meanwhile: reading tells
	}
	if err != nil {
		return 0, false, err
	}
	if next <= off {
		// A hole was made here since: its end is for the next call to find.
		next = min(off+BlockSize-off%BlockSize, end)
	}
	return min(next, end), false, nil
}
