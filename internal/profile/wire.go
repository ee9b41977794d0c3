package profile

import (
	"encoding/binary"
	"fmt"
)

// A field is a number, or bytes, in an encoded message of protocol buffers.
type field struct {
	number int
	value  uint64
	bytes  []byte
}

// A message holds the fields of an encoded message by their numbers, each as often as it came.
type message map[int][]field

// fields calls fn with each field of a message, in order.
func fields(b []byte, fn func(field) error) error {
	for len(b) > 0 {
		key, n := binary.Uvarint(b)
		if n <= 0 {
			return fmt.Errorf("profile: the key of a field is cut")
		}
		b = b[n:]
		f := field{number: int(key >> 3)}
		if f.value, n = binary.Uvarint(b); n <= 0 {
			return fmt.Errorf("profile: field %d is cut", f.number)
		}
		b = b[n:]
		switch key & 7 {
		case 0:
		case 2:
			if f.value > uint64(len(b)) {
				return fmt.Errorf("profile: field %d has %d bytes of %d", f.number, len(b), f.value)
			}
			f.bytes, b = b[:f.value], b[f.value:]
		default:
			return fmt.Errorf("profile: field %d is of type %d", f.number, key&7)
		}
		if err := fn(f); err != nil {
			return err
		}
	}
	return nil
}

func parse(b []byte) (message, error) {
	m := message{}
	return m, fields(b, func(f field) error {
		m[f.number] = append(m[f.number], f)
		return nil
	})
}

// number returns the value of a field, or 0 if there is none.
func (m message) number(n int) uint64 {
	if f := m[n]; len(f) > 0 {
		return f[0].value
	}
	return 0
}

// numbers returns the values of a repeated field, in either of the two forms that it may
// have.
func (m message) numbers(n int) (all []uint64, err error) {
	for _, f := range m[n] {
		if f.bytes == nil {
			all = append(all, f.value)
			continue
		}
		for b := f.bytes; len(b) > 0; {
			v, n := binary.Uvarint(b)
			if n <= 0 {
				return nil, fmt.Errorf("profile: a number is cut")
			}
			all = append(all, v)
			b = b[n:]
		}
	}
	return all, nil
}
