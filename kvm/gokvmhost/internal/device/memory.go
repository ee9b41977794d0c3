package device

import (
	"encoding/binary"
	"sync/atomic"
	"unsafe"
)

// Memory is the guest's memory from address 0, as devices see it.
type Memory struct {
	ram  []byte
	mark func(gpa, n uint64)
}

// NewMemory returns the memory that ram is a view of; it must be aligned to 4
// bytes. mark is told of every write, after it.
func NewMemory(ram []byte, mark func(gpa, n uint64)) *Memory {
	return &Memory{ram: ram, mark: mark}
}

// has reports whether n bytes from address a on are memory.
func (m *Memory) has(a, n uint64) bool {
	return n <= uint64(len(m.ram)) && a <= uint64(len(m.ram))-n
}

// bytes returns n bytes from address a on, which has has allowed.
func (m *Memory) bytes(a, n uint64) []byte { return m.ram[a : a+n : a+n] }

// write copies p to address a, which has has allowed.
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
