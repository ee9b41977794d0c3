package device

import (
	"encoding/binary"
	"sync/atomic"
	"unsafe"
)

// Memory is the guest's memory as devices see it: one part begins at address 0, the
// other at 4 GiB, behind the hole.
type Memory struct {
	ram  []byte
	low  uint64 // bytes below the hole
	mark func(gpa, n uint64)

	ensure func(off, n uint64) // nil: all of it is there
}

// high is where memory goes on behind the hole.
const high = 1 << 32

// NewMemory returns the memory that ram is a view of, of which the first low bytes are at
// address 0 and the others at 4 GiB; it must be aligned to 4 bytes. mark is told of every
// write, after it.
func NewMemory(ram []byte, low int, mark func(gpa, n uint64)) *Memory {
	return &Memory{ram: ram, low: uint64(low), mark: mark}
}

// Ensure sets a function that is called before n bytes of ram from off on are touched,
// and that returns when they are there. Nil: all memory is there. No device may be at
// work when Ensure is called.
func (m *Memory) Ensure(f func(off, n uint64)) { m.ensure = f }

// has reports whether n bytes from address a on are memory, in one piece.
func (m *Memory) has(a, n uint64) bool {
	end := m.low
	if a >= high {
		a -= high
		end = uint64(len(m.ram)) - m.low
	}
	return n <= end && a <= end-n
}

// bytes returns n bytes from address a on, for which has was true.
func (m *Memory) bytes(a, n uint64) []byte {
	if a >= high {
		a += m.low - high
	}
	if m.ensure != nil && n > 0 {
		m.ensure(a, n)
	}
	return m.ram[a : a+n : a+n]
}

// write copies p to address a, for which has was true.
func (m *Memory) write(a uint64, p []byte) {
	copy(m.bytes(a, uint64(len(p))), p)
	m.mark(a, uint64(len(p)))
}

func (m *Memory) uint16(a uint64) uint16 { return binary.LittleEndian.Uint16(m.bytes(a, 2)) }

// word returns the aligned 32-bit word at address a for atomic access: guest and
// device share it, and neither may see the other's writes out of order.
func (m *Memory) word(a uint64) *uint32 { return (*uint32)(unsafe.Pointer(&m.bytes(a, 4)[0])) }

func (m *Memory) load(a uint64) uint32 { return atomic.LoadUint32(m.word(a)) }

func (m *Memory) store(a uint64, v uint32) {
	atomic.StoreUint32(m.word(a), v)
	m.mark(a, 4)
}
