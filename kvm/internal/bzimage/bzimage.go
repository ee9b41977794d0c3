// Package bzimage reads the header of a Linux bzImage, says where it and an initial
// RAM disk can be in a guest's memory, and fills the boot parameters with which it is
// entered in 32-bit protected mode.
package bzimage

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Fields of a bzImage's setup header, and of the boot parameters, which hold it at
// the same offsets. (Linux, Documentation/x86/boot.rst and zero-page.rst.)
const (
	bootRSDP         = 0x070 // 64 bits
	bootE820Entries  = 0x1e8 // 8 bits
	bootSetupSectors = 0x1f1
	bootSysSize      = 0x1f4 // 32 bits, in units of 16 bytes
	bootVideoMode    = 0x1fa // 16 bits
	bootFlag         = 0x1fe // 16 bits
	bootJump         = 0x201 // the header ends so many bytes behind bootMagic
	bootMagic        = 0x202
	bootVersion      = 0x206
	bootLoader       = 0x210
	bootLoadFlags    = 0x211
	bootImage        = 0x218 // 32 bits: address and size of the initial RAM disk
	bootImageSize    = 0x21c
	bootHeapEnd      = 0x224 // 16 bits
	bootCommand      = 0x228 // 32 bits: address of the command line
	bootImageMax     = 0x22c // last address that it may have
	bootCommandMax   = 0x238 // 32 bits: longest command line
	bootPreferred    = 0x258 // 64 bits: where the kernel unpacks itself
	bootInitSize     = 0x260 // 32 bits: what it needs there
	bootHeaderEnd    = 0x264 // of what is read of it here
	bootHeaderMost   = 0x290 // where the boot parameters go on with other things
	bootE820         = 0x2d0 // entries of 20 bytes: address, size, type
	bootSize         = 0x1000

	loadedHigh   = 1 << 0 // load flags
	keepSegments = 1 << 6
	canUseHeap   = 1 << 7
)

// Where a loader puts things in the guest's memory; gokvm's has the same places.
const (
	Parameters  = 0x10000
	commandLine = 0x20000
	lowMemory   = 0x9fc00 // the end of what is below the extended BIOS data
	Kernel      = 0x100000
	Tables      = 0xf0000 // of ACPI: not memory for the guest
)

// ErrKernel means that a file is no kernel that is known here, or does not fit into the
// guest's memory.
var ErrKernel = errors.New("pc: kernel cannot be loaded")

// Image has the fields of a kernel's header.
type Image struct {
	size       uint64 // of what is loaded at 1 MiB
	unpacked   uint64 // end of the memory that it unpacks itself to
	imageMax   uint64
	commandMax uint64
}

// Parse reads the header of a kernel. Versions from 2.12 on (Linux 3.8) are
// known.
func Parse(kernel io.ReaderAt) (b Image, err error) {
	var h [bootHeaderEnd]byte
	if _, err := kernel.ReadAt(h[:], 0); err != nil && !errors.Is(err, io.EOF) {
		return b, fmt.Errorf("%w: %w", ErrKernel, err)
	}
	le := binary.LittleEndian
	if le.Uint16(h[bootFlag:]) != 0xaa55 || string(h[bootMagic:][:4]) != "HdrS" {
		return b, fmt.Errorf("%w: no bzImage", ErrKernel)
	}
	if v := le.Uint16(h[bootVersion:]); v < 0x20c {
		return b, fmt.Errorf("%w: boot protocol %d.%d, want 2.12 or later", ErrKernel, v>>8, v&0xff)
	}
	// Loaders differ in what they make of these two: 0 is taken for 4 or for none, and
	// 255 overflows where the boot sector is added in a byte.
	if n := h[bootSetupSectors]; n == 0 || n == 0xff {
		return b, fmt.Errorf("%w: %d sectors of real-mode code", ErrKernel, n)
	}
	if h[bootLoadFlags]&1 == 0 {
		return b, fmt.Errorf("%w: not to be loaded at 1 MiB", ErrKernel)
	}
	b.size = uint64(le.Uint32(h[bootSysSize:])) * 16
	preferred := le.Uint64(h[bootPreferred:])
	if preferred > maxBoot {
		return b, fmt.Errorf("%w: it wants to be at %#x", ErrKernel, preferred)
	}
	b.unpacked = max(Kernel+b.size, max(preferred, Kernel)+uint64(le.Uint32(h[bootInitSize:])))
	b.imageMax = uint64(le.Uint32(h[bootImageMax:]))
	b.commandMax = uint64(le.Uint32(h[bootCommandMax:]))
	return b, nil
}

const maxBoot = 1 << 32

// Fit checks that a kernel fits into so many bytes of memory from address 0 on, with
// its command line, and returns where the initial RAM disk
// goes: behind all that the kernel touches before it looks for it.
func (b Image) Fit(memory uint64, cmdline string) (image uint64, err error) {
	const align = 2 << 20
	switch {
	case b.unpacked > memory:
		return 0, fmt.Errorf("%w: it needs %d bytes of memory, the guest has %d", ErrKernel, b.unpacked, memory)
	case uint64(len(cmdline)) > min(b.commandMax, lowMemory-commandLine-1):
		return 0, fmt.Errorf("%w: a command line of %d bytes, at most %d", ErrKernel, len(cmdline), b.commandMax)
	}
	for i := range len(cmdline) {
		if cmdline[i] == 0 {
			return 0, fmt.Errorf("%w: a zero in the command line", ErrKernel)
		}
	}
	return (b.unpacked + align - 1) / align * align, nil
}

// PlaceRAMDisk reads an initial RAM disk into memory and notes it in the boot
// parameters.
func (b Image) PlaceRAMDisk(mem []byte, at uint64, initrd io.ReaderAt) error {
	end := min(uint64(len(mem)), b.imageMax+1)
	if at >= end {
		return fmt.Errorf("%w: no room for the initial RAM disk in %d bytes of memory", ErrKernel, len(mem))
	}
	n, err := initrd.ReadAt(mem[at:end], 0)
	if err == nil { // it may go on
		var more [1]byte
		if k, _ := initrd.ReadAt(more[:], int64(n)); k > 0 {
			return fmt.Errorf("%w: the initial RAM disk is larger than the %d bytes that there are for it", ErrKernel, n)
		}
	} else if !errors.Is(err, io.EOF) {
		return fmt.Errorf("pc: initial RAM disk: %w", err)
	}
	params := mem[Parameters:]
	binary.LittleEndian.PutUint32(params[bootImage:], uint32(at))
	binary.LittleEndian.PutUint32(params[bootImageSize:], uint32(n))
	return nil
}

// Region is a part of the guest's memory map: usable, or reserved.
type Region struct {
	Start, Size uint64
	Reserved    bool
}

// MaxRegions is how many regions the boot parameters have room for.
const MaxRegions = 128

// Map returns the memory map of a PC with so many bytes of memory below 4 GiB and, from there
// on, high more.
func Map(low, high uint64) []Region {
	list := []Region{
		{Start: 0, Size: lowMemory},
		{Start: lowMemory, Size: 0xa0000 - lowMemory, Reserved: true},
		{Start: Tables, Size: Kernel - Tables, Reserved: true},
		{Start: Kernel, Size: low - Kernel},
	}
	if high > 0 {
		list = append(list, Region{Start: 1 << 32, Size: high})
	}
	return list
}

// Load reads the kernel that was parsed into memory at Kernel, which Fit has allowed, and writes the
// boot parameters and the command line, without an initial RAM disk. rsdp is the address
// of the ACPI tables.
func (b Image) Load(mem []byte, kernel io.ReaderAt, cmdline string, regions []Region, rsdp uint64) error {
	if len(regions) > MaxRegions || len(mem) < Kernel {
		return fmt.Errorf("%w: a memory map of %d regions, %d bytes of memory", ErrKernel, len(regions), len(mem))
	}
	params := mem[Parameters:][:bootSize]
	clear(params)
	// The header has the length that it says itself; what a newer kernel's has beyond
	// the room for it is not the loader's.
	var header [bootHeaderMost]byte
	if _, err := kernel.ReadAt(header[:], 0); err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: %w", ErrKernel, err)
	}
	end := min(bootMagic+int(header[bootJump]), bootHeaderMost)
	copy(params[bootSetupSectors:end], header[bootSetupSectors:])

	le := binary.LittleEndian
	le.PutUint16(params[bootVideoMode:], 0xffff) // as it is
	params[bootLoader] = 0xff                    // none that has a number
	params[bootLoadFlags] |= loadedHigh | keepSegments | canUseHeap
	le.PutUint16(params[bootHeapEnd:], 0xfe00)
	le.PutUint32(params[bootImage:], 0)
	le.PutUint32(params[bootImageSize:], 0)
	le.PutUint32(params[bootCommand:], commandLine)
	le.PutUint64(params[bootRSDP:], rsdp)
	params[bootE820Entries] = uint8(len(regions))
	for i, r := range regions {
		e := params[bootE820+20*i:]
		le.PutUint64(e, r.Start)
		le.PutUint64(e[8:], r.Size)
		le.PutUint32(e[16:], 1)
		if r.Reserved {
			le.PutUint32(e[16:], 2)
		}
	}
	copy(mem[commandLine:], cmdline)
	mem[commandLine+len(cmdline)] = 0

	setup := int64(header[bootSetupSectors]+1) * 512
	n, err := kernel.ReadAt(mem[Kernel:][:b.size], setup)
	if n == 0 || uint64(n)+16 <= b.size { // the header counts in units of 16
		if err == nil { // of nothing at all
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("%w: it ends after %d bytes of %d: %w", ErrKernel, n, b.size, err)
	}
	return nil
}

// SetRSDP notes the address of the ACPI tables in boot parameters that another loader has
// written.
func SetRSDP(mem []byte, rsdp uint64) {
	binary.LittleEndian.PutUint64(mem[Parameters+bootRSDP:], rsdp)
}
