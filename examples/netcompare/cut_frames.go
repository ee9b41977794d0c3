package main

import (
	"slices"

	"github.com/gocolo/lockstep/internal/packet"
)

// Of a frame that was cut, what was captured is compared. The rest is filled: a
// piece of a stream with what the other capture has there, otherwise with zeros on
// both sides.

// A place is one connection of a flow.
type place struct {
	key packet.Key
	i   int
}

// A span is bytes of a stream, from a position on that counts from its initial
// number.
type span struct {
	at   uint32
	data []byte
}

// A memory has the parts of the streams that a capture holds.
type memory struct {
	spans map[place][]span
	bytes int
	full  bool // there is more than maxMemory, and it is not kept
}

// maxMemory bounds a memory, in bytes.
const maxMemory = 256 << 20

func (m *memory) add(w place, at uint32, data []byte) {
	if m.bytes+len(data) > maxMemory {
		m.full = true
		return
	}
	m.bytes += len(data)
	m.spans[w] = append(m.spans[w], span{at, slices.Clone(data)})
}

func (m *memory) sort() {
	for _, l := range m.spans {
		slices.SortStableFunc(l, func(a, b span) int { return int(int32(a.at - b.at)) })
	}
}

// fill sets what m knows of the bytes from a position on, and returns how many.
func (m *memory) fill(w place, at uint32, b []byte) (known int) {
	l := m.spans[w]
	end := at + uint32(len(b))
	// Spans are short, but for a few: 64 KiB before is early enough.
	i, _ := slices.BinarySearchFunc(l, at-1<<16, func(s span, at uint32) int { return int(int32(s.at - at)) })
	if at < 1<<16 {
		i = 0
	}
	for ; i < len(l) && int32(l[i].at-end) < 0; i++ {
		s := l[i]
		if d := int32(at - s.at); d > 0 {
			if int(d) < len(s.data) {
				known += copy(b, s.data[d:])
			}
		} else {
			known += copy(b[-d:], s.data)
		}
	}
	return min(known, len(b))
}
