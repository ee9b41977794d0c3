package vmstate

import "fmt"

// Fields whose values are restricted, or have a meaning besides their width.

// Uint8Equal carries a value that the receiver must have too: it fails with
// [ErrValue] if the stream's differs.
func (f *Fields) Uint8Equal(name string, v uint8) {
	switch f.mode {
	case saving:
		f.w.PutByte(v)
	case loading:
		f.equal(name, uint64(f.r.Byte()), uint64(v))
	case describing:
		f.describe(name, "uint8 equal", 1, 1)
	}
}

// Uint16Equal carries a value that the receiver must have too: it fails with
// [ErrValue] if the stream's differs.
func (f *Fields) Uint16Equal(name string, v uint16) {
	switch f.mode {
	case saving:
		f.w.PutBE16(v)
	case loading:
		f.equal(name, uint64(f.r.BE16()), uint64(v))
	case describing:
		f.describe(name, "uint16 equal", 2, 1)
	}
}

// Uint32Equal carries a value that the receiver must have too: it fails with
// [ErrValue] if the stream's differs.
func (f *Fields) Uint32Equal(name string, v uint32) {
	switch f.mode {
	case saving:
		f.w.PutBE32(v)
	case loading:
		f.equal(name, uint64(f.r.BE32()), uint64(v))
	case describing:
		f.describe(name, "uint32 equal", 4, 1)
	}
}

// Uint64Equal carries a value that the receiver must have too: it fails with
// [ErrValue] if the stream's differs.
// (QEMU calls its type "int64 equal".)
func (f *Fields) Uint64Equal(name string, v uint64) {
	switch f.mode {
	case saving:
		f.w.PutBE64(v)
	case loading:
		f.equal(name, uint64(f.r.BE64()), uint64(v))
	case describing:
		f.describe(name, "int64 equal", 8, 1)
	}
}

// Int32Equal is Uint32Equal for a signed value.
func (f *Fields) Int32Equal(name string, v int32) {
	switch f.mode {
	case saving:
		f.w.PutBE32(uint32(v))
	case loading:
		f.equal(name, uint64(f.r.BE32()), uint64(uint32(v)))
	case describing:
		f.describe(name, "int32 equal", 4, 1)
	}
}

func (f *Fields) equal(name string, got, want uint64) {
	if f.Err() == nil && got != want {
		f.failField(name, fmt.Errorf("%#x, want %#x: %w", got, want, ErrValue))
	}
}

// Int32LE carries a value that may become smaller but not greater: the receiver
// stores it if it is at least 0 and at most what *p has, and otherwise fails
// with [ErrValue].
func (f *Fields) Int32LE(name string, p *int32) {
	switch f.mode {
	case saving:
		f.w.PutBE32(uint32(*p))
	case loading:
		v := int32(f.r.BE32())
		if f.Err() != nil {
			return
		}
		if v < 0 || v > *p {
			f.failField(name, fmt.Errorf("%d, want 0 to %d: %w", v, *p, ErrValue))
			return
		}
		f.undo.add(p, uint64(*p))
		*p = v
	case describing:
		f.describe(name, "int32 le", 4, 1)
	}
}

// TimerOff is the expiry of a timer that is not armed.
const TimerOff = -1

// Timer carries when a timer expires, in nanoseconds of its clock, or
// [TimerOff].
func (f *Fields) Timer(name string, p *int64) {
	if f.mode == describing {
		f.describe(name, "timer", 8, 1)
		return
	}
	f.Int64(name, p)
}

// CPUDouble carries the bits of a double as two halves, the high one first,
// which is the same as a 64-bit integer but for the name of its type.
func (f *Fields) CPUDouble(name string, p *uint64) {
	if f.mode == describing {
		f.describe(name, "CPU_Double_U", 8, 1)
		return
	}
	f.Uint64(name, p)
}

// Bitmap carries the first n bits of words: bit i is bit i mod 64 of word i/64.
// It fails with [ErrBounds] if there are fewer words than n needs.
func (f *Fields) Bitmap(name string, words []uint64, n uint64) {
	words = Elems(f, words, n/64+min(1, n%64))
	if f.mode == describing {
		f.describe(name, "bitmap", 8*len(words), 1)
		return
	}
	f.Uint64s(name, words)
}
