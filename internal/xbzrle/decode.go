package xbzrle

import "errors"

// ErrCorrupt is matched, with errors.Is, by every error of [Decode].
var ErrCorrupt = errors.New("xbzrle: corrupt delta")

// corrupt is one way in which a delta can be wrong.
type corrupt string

func (c corrupt) Error() string        { return "xbzrle: " + string(c) }
func (c corrupt) Is(target error) bool { return target == ErrCorrupt }

// The errors of Decode; fixed values, so that a hostile stream allocates
// nothing.
var (
	errShort     error = corrupt("delta ends inside a length or before its bytes")
	errLength    error = corrupt("length of more than two bytes")
	errEqualRun  error = corrupt("equal run of 0 inside the delta")
	errDiffRun   error = corrupt("changed run of 0")
	errBeyondEnd error = corrupt("run beyond the end of the page")
)

// Decode applies delta to page. It accepts what QEMU's decoder accepts; an
// empty delta changes nothing. On an error, which matches [ErrCorrupt], the
// runs before the wrong one have been applied.
func Decode(page, delta []byte) error {
	at, i := 0, 0
	for i < len(delta) {
		equal, n, err := length(delta[i:])
		if err != nil {
			return err
		}
		if equal == 0 && i != 0 {
			return errEqualRun
		}
		i += n
		at += equal
		if at > len(page) {
			return errBeyondEnd
		}
		diff, n, err := length(delta[i:])
		if err != nil {
			return err
		}
		i += n
		switch {
		case diff == 0:
			return errDiffRun
		case diff > len(page)-at:
			return errBeyondEnd
		case diff > len(delta)-i:
			return errShort
		}
		copy(page[at:], delta[i:i+diff])
		at += diff
		i += diff
	}
	return nil
}

// length reads a run length. Two bytes must be left even where the length
// takes one, since something follows every length.
func length(p []byte) (v, n int, err error) {
	if len(p) < 2 {
		return 0, 0, errShort
	}
	if p[0] < 0x80 {
		return int(p[0]), 1, nil
	}
	if p[1] >= 0x80 {
		return 0, 0, errLength
	}
	return int(p[0]&0x7f) | int(p[1])<<7, 2, nil
}
