package trial

import (
	"errors"
	"math"
	"strconv"
	"strings"
)

// A Size is a number of bytes that people write as 64M.
type Size uint64

// String writes the number with the greatest unit that it is a multiple of.
func (s Size) String() string {
	for _, u := range []struct {
		name  string
		shift uint
	}{{"G", 30}, {"M", 20}, {"K", 10}} {
		if s != 0 && s%(1<<u.shift) == 0 {
			return strconv.FormatUint(uint64(s)>>u.shift, 10) + u.name
		}
	}
	return strconv.FormatUint(uint64(s), 10)
}

// Set parses a number with an optional unit.
func (s *Size) Set(v string) error {
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
	*s = Size(n << shift)
	return nil
}
