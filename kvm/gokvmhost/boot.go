package gokvmhost

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
	bootSetupSectors = 0x1f1
	bootSysSize      = 0x1f4 // 32 bits, in units of 16 bytes
	bootFlag         = 0x1fe // 16 bits
	bootMagic        = 0x202
	bootVersion      = 0x206
	bootLoadFlags    = 0x211
	bootImage        = 0x218 // 32 bits: address and size of the initial RAM disk
	bootImageSize    = 0x21c
	bootImageMax     = 0x22c // last address that it may have
	bootCommandMax   = 0x238 // 32 bits: longest command line
	bootPreferred    = 0x258 // 64 bits: where the kernel unpacks itself
	bootInitSize     = 0x260 // 32 bits: what it needs there

	bootHeaderEnd = 0x264
)

// Where gokvm's loader puts things.
const (
	bootParameters  = 0x10000
	bootCommandLine = 0x20000
	bootLowMemory   = 0x9fc00 // the end of what is below the MP table
	bootKernel      = 0x100000
	bootTables      = 0xf0000 // not memory in gokvm's memory map; ours
)

// bzImage is what a kernel's header says.
type bzImage struct {
	size       uint64 // of what is loaded at 1 MiB
	unpacked   uint64 // end of the memory that it unpacks itself to
	imageMax   uint64
	commandMax uint64
}

// parseKernel reads the header of a kernel. Versions from 2.12 on (Linux 3.8) are
// known.
func parseKernel(kernel io.ReaderAt) (b bzImage, err error) {
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
	// gokvm counts sectors in a byte, and takes none for none.
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
	b.unpacked = max(bootKernel+b.size, max(preferred, bootKernel)+uint64(le.Uint32(h[bootInitSize:])))
	b.imageMax = uint64(le.Uint32(h[bootImageMax:]))
	b.commandMax = uint64(le.Uint32(h[bootCommandMax:]))
	return b, nil
}

const maxBoot = 1 << 32

// fit checks what gokvm's loader does not, and returns where the initial RAM disk
// goes: behind all that the kernel touches before it looks for it.
func (b bzImage) fit(memory uint64, cmdline string) (image uint64, err error) {
	const align = 2 << 20
	switch {
	case b.unpacked > memory:
		return 0, fmt.Errorf("%w: it needs %d bytes of memory, the guest has %d", ErrKernel, b.unpacked, memory)
	case uint64(len(cmdline)) > min(b.commandMax, bootLowMemory-bootCommandLine-1):
		return 0, fmt.Errorf("%w: a command line of %d bytes, at most %d", ErrKernel, len(cmdline), b.commandMax)
	}
	for i := range len(cmdline) {
		if cmdline[i] == 0 {
			return 0, fmt.Errorf("%w: a zero in the command line", ErrKernel)
		}
	}
	return (b.unpacked + align - 1) / align * align, nil
}

// placeImage reads an initial RAM disk into memory and notes it in the boot
// parameters.
func (b bzImage) placeImage(mem []byte, at uint64, initrd io.ReaderAt) error {
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
		return fmt.Errorf("gokvmhost: initial RAM disk: %w", err)
	}
	params := mem[bootParameters:]
	binary.LittleEndian.PutUint32(params[bootImage:], uint32(at))
	binary.LittleEndian.PutUint32(params[bootImageSize:], uint32(n))
	return nil
}
