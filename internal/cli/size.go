package cli

import (
	"errors"
	"math"
	"strconv"
	"strings"
)

// Bytes is a number of bytes that people write as 64M. It is a flag.Value.
type Bytes uint64

// String writes the number with the greatest unit that it is a multiple of.
func (b Bytes) String() string {
	for _, u := range []struct {
		name  string
		shift uint
	}{{"G", 30}, {"M", 20}, {"K", 10}} {
		if b != 0 && b%(1<<u.shift) == 0 {
			return strconv.FormatUint(uint64(b)>>u.shift, 10) + u.name
		}
	}
	return strconv.FormatUint(uint64(b), 10)
}

// Set parses a number with an optional unit: K, M or G, in either case, and iB or B after it.
func (b *Bytes) Set(v string) error {
	shift := uint(0)
	digits := strings.ToUpper(strings.TrimSuffix(strings.TrimSuffix(strings.ToUpper(v), "B"), "I"))
	for unit, sh := range map[string]uint{"K": 10, "M": 20, "G": 30} {
		if d, ok := strings.CutSuffix(digits, unit); ok {
			digits, shift = d, sh
			break
		}
	}
	n, err := strconv.ParseUint(digits, 10, 64)
	if err != nil || n > math.MaxUint64>>shift {
		return errors.New("want a number of bytes such as 64M")
	}
	*b = Bytes(n << shift)
	return nil
}
