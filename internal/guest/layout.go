package guest

import (
	_ "embed"
	"encoding/binary"
	"fmt"
	"math"
)

// Guest-physical addresses, which are also the virtual ones. The guest's memory
// is one range from address 0.
const (
	PageSize = 4096

	pml4Base    = 0x1000
	pdptBase    = 0x2000
	pdBase      = 0x3000  // four page directories: 4 GiB in 2 MiB pages
	tssBase     = 0x7000  // task state: which ports CPL3 may use
	ProgramBase = 0x8000  // guest.bin, one page; the entry point is its first byte
	StateBase   = 0x9000  // one state page per vCPU
	FrameBase   = 0x11000 // one frame buffer per vCPU, a page each
	DataBase    = 0x19000 // what each vCPU writes to its disk, a page each
	RingBase    = 1 << 20 // one ring per vCPU; the working sets follow the rings

	// lowMemory is the size of the part that every guest has: all that is below the rings.
	lowMemory = DataBase + MaxVCPUs*PageSize
)

// Limits of a guest.
const (
	MaxVCPUs    = 8
	MaxMemory   = min(3<<30, math.MaxInt/PageSize*PageSize) // below the APICs' addresses, and one slice
	MaxDisk     = 1 << 40
	RingEntries = 65536

	minRingEntries = PageSize / ringEntrySize
	ringEntrySize  = 16
)

// Ports of the paravirtual device. PortStatus is read one byte at a time; bit 0
// says that the device takes a frame, bit 1, which never comes without it, that
// an input is in the guest's buffer, see [PutInput]. PortEmit is written four bytes at a time,
// with the address of a frame buffer; see [Emitted]. PortDisk, four bytes too, is
// written with the address of a write's descriptor; see [Requested].
const (
	PortStatus  = 0x600
	PortDisk    = 0x600 // what PortStatus is when it is written
	PortEmit    = 0x604
	StatusReady = 1
	StatusInput = 2
)

// Offsets in a state page, little-endian 64-bit words.
const (
	stateVCPU  = 0x00
	stateSeed  = 0x08
	stateSet   = 0x10
	statePages = 0x18
	stateTouch = 0x20
	stateTSC   = 0x28
	stateDelay = 0x30
	stateRing  = 0x38
	stateFrame = 0x40

	stateEvery   = 0x48 // rounds from one write of the disk to the next, 0 for none
	stateFirst   = 0x50 // region of the disk: first sector
	stateSectors = 0x58 // region of the disk: how many sectors
	stateDesc    = 0x60 // address of the descriptor

	stateEntries = 0x68 // of the ring, 0 for RingEntries; the program does not read it
)

// program is guest.S, assembled; a test compares the two.
//
//go:embed guest.bin
var program []byte

// Params says what a guest does. The same Params give the same history, as far
// as TSCPerMille is 0.
type Params struct {
	VCPUs       int    // number of vCPUs; 0 means 1
	Pages       int    // working set of each vCPU, in pages; 0 means 256
	Touch       int    // pages touched per round, at most Pages
	TSCPerMille int    // share of the rounds that take in the time-stamp counter, 0 to 1000
	Delay       uint64 // iterations of an idle loop at the end of each round
	Seed        uint64 // what the running hashes and the working sets start from

	// Ring is how many rounds each vCPU's ring keeps: a power of two, 256 to
	// RingEntries. 0: RingEntries, from RingBase on, which is all that the assembled
	// program knows. A guest in Go can do with less memory: its ring follows what is
	// below it at once.
	Ring int

	// Disk is the size of the guest's disk in bytes; 0: none. Each vCPU writes
	// a part of its own.
	Disk      uint64
	DiskEvery int // rounds of a vCPU from one write to the next; 0: it writes nothing
}

func (p Params) withDefaults() Params {
	if p.VCPUs == 0 {
		p.VCPUs = 1
	}
	if p.Pages == 0 {
		p.Pages = 256
	}
	return p
}

// Validate reports what is wrong with p.
func (p Params) Validate() error {
	p = p.withDefaults()
	switch {
	case p.VCPUs < 1 || p.VCPUs > MaxVCPUs:
		return fmt.Errorf("guest: %d vCPUs, want 1 to %d", p.VCPUs, MaxVCPUs)
	case p.Pages < 1 || p.Pages > MaxMemory/PageSize || p.MemSize() > MaxMemory:
		return fmt.Errorf("guest: a working set of %d pages for each of %d vCPUs is beyond %d bytes of memory", p.Pages, p.VCPUs, MaxMemory)
	case p.Touch < 0 || p.Touch > p.Pages:
		return fmt.Errorf("guest: %d pages touched per round, want 0 to %d", p.Touch, p.Pages)
	case p.TSCPerMille < 0 || p.TSCPerMille > 1000:
		return fmt.Errorf("guest: share of rounds with the TSC is %d per mille", p.TSCPerMille)
	case p.Ring != 0 && (p.Ring < minRingEntries || p.Ring > RingEntries || p.Ring&(p.Ring-1) != 0):
		return fmt.Errorf("guest: a ring of %d rounds, want a power of two, %d to %d", p.Ring, minRingEntries, RingEntries)
	case p.Disk%SectorSize != 0 || p.Disk > MaxDisk:
		return fmt.Errorf("guest: a disk of %d bytes, want sectors of %d, at most %d bytes", p.Disk, SectorSize, uint64(MaxDisk))
	case p.DiskEvery < 0 || p.DiskEvery > 0 && p.Disk < uint64(p.VCPUs)*PageSize:
		return fmt.Errorf("guest: a write every %d rounds of %d vCPUs to a disk of %d bytes", p.DiskEvery, p.VCPUs, p.Disk)
	}
	return nil
}

// MemSize returns the least number of bytes of memory that the guest needs.
func (p Params) MemSize() uint64 {
	p = p.withDefaults()
	return p.setBase(p.VCPUs)
}

// setBase returns the address of a vCPU's working set.
func (p Params) setBase(vcpu int) uint64 {
	return p.ring(p.VCPUs) + uint64(vcpu)*uint64(p.Pages)*PageSize
}

// ring returns the address of a vCPU's ring, which follows that of the one before.
func (p Params) ring(vcpu int) uint64 {
	if p.Ring == 0 {
		return RingBase + uint64(vcpu)*RingEntries*ringEntrySize
	}
	return lowMemory + uint64(vcpu)*uint64(p.Ring)*ringEntrySize
}

// seed returns the running hash that a vCPU starts with.
func (p Params) seed(vcpu int) uint64 { return spread(p.Seed ^ uint64(vcpu)<<56) }

// word returns what word i of a vCPU's working set holds at first.
func (p Params) word(vcpu int, i uint64) uint64 {
	return spread(p.Seed ^ uint64(vcpu)<<56 ^ (i + 1))
}

// spread is a bijection that spreads every bit of v over the result (the
// finaliser of SplitMix64, by Sebastiano Vigna, public domain).
func spread(v uint64) uint64 {
	v += golden
	v = (v ^ v>>30) * 0xbf58476d1ce4e5b9
	v = (v ^ v>>27) * 0x94d049bb133111eb
	return v ^ v>>31
}

// Load writes the program, its page tables, state pages, frame templates, empty
// rings and working sets into mem, which is all of the guest's memory from
// address 0. Memory that the guest does not use is not written.
func Load(mem []byte, p Params) error { return put(mem, p, false) }

// LoadZeroed is Load into memory that is all zero, of which most then stays
// untouched: a mapping that is new need not get its pages yet.
func LoadZeroed(mem []byte, p Params) error { return put(mem, p, true) }

func put(mem []byte, p Params, zeroed bool) error {
	if err := p.Validate(); err != nil {
		return err
	}
	p = p.withDefaults()
	if uint64(len(mem)) < p.MemSize() || len(mem) > MaxMemory {
		return fmt.Errorf("guest: %d bytes of memory, want %d to %d", len(mem), p.MemSize(), MaxMemory)
	}
	le := binary.LittleEndian
	if !zeroed {
		clear(mem[:p.ring(p.VCPUs)])
	}
	loadPageTables(mem)
	loadTSS(mem)
	copy(mem[ProgramBase:], program)
	for v := range p.VCPUs {
		state := mem[StateBase+v*PageSize:]
		set := p.setBase(v)
		le.PutUint64(state[stateVCPU:], uint64(v))
		le.PutUint64(state[stateSeed:], p.seed(v))
		le.PutUint64(state[stateSet:], set)
		le.PutUint64(state[statePages:], uint64(p.Pages))
		le.PutUint64(state[stateTouch:], uint64(p.Touch))
		le.PutUint64(state[stateTSC:], uint64(p.TSCPerMille))
		le.PutUint64(state[stateDelay:], p.Delay)
		le.PutUint64(state[stateRing:], p.ring(v))
		le.PutUint64(state[stateEntries:], uint64(p.Ring))
		le.PutUint64(state[stateFrame:], uint64(frameBuffer(v)))
		putTemplate(mem[frameBuffer(v):], v)
		putReplyTemplate(mem[frameBuffer(v)+replyOffset:], v)
		if p.DiskEvery > 0 {
			p.loadDisk(mem, v)
		}
		for i := range uint64(p.Pages) * (PageSize / 8) {
			le.PutUint64(mem[set+i*8:], p.word(v, i))
		}
	}
	return nil
}

// frameBuffer returns the address of a vCPU's frame buffer.
func frameBuffer(vcpu int) int { return FrameBase + vcpu*PageSize }

// loadPageTables maps the first 4 GiB one to one, for CPL3 too. The accessed
// and dirty bits are set, so that the CPU has no reason to write the tables.
// (Intel SDM volume 3, 4.5: P, R/W, U/S, A, D and PS are bits 0, 1, 2, 5, 6, 7.)
func loadPageTables(mem []byte) {
	const table, large = 0x27, 0xe7
	le := binary.LittleEndian
	le.PutUint64(mem[pml4Base:], pdptBase|table)
	for g := range 4 {
		pd := pdBase + g*PageSize
		le.PutUint64(mem[pdptBase+g*8:], uint64(pd|table))
		for i := range 512 {
			le.PutUint64(mem[pd+i*8:], uint64(g)<<30|uint64(i)<<21|large)
		}
	}
}

// The I/O permission bitmap follows the 104 bytes of a 64-bit TSS. A clear bit
// allows a port; the CPU reads two bytes at a time. (Intel SDM volume 3, 8.7;
// volume 1, 19.5.2.)
const (
	tssSize     = 104
	tssMapField = 102
	tssLimit    = tssSize + PortEmit/8 + 1
)

// loadTSS allows CPL3 the device's ports, see SetBootState.
func loadTSS(mem []byte) {
	tss := mem[tssBase:][:tssLimit+1]
	for i := range tss[tssSize:] {
		tss[tssSize+i] = 0xff
	}
	tss[tssSize+PortStatus/8] = 0 // both ports are among these eight
	binary.LittleEndian.PutUint16(tss[tssMapField:], tssSize)
}

// Entry is the entry of one round in the ring of a vCPU.
type Entry struct{ N, H uint64 }

// A ring is the ring of a vCPU, as its state page describes it.
type ring struct{ base, entries uint64 }

// ringOf reads a state page. The error is one of a page that leads outside mem.
func ringOf(mem, state []byte) (r ring, err error) {
	le, size := binary.LittleEndian, uint64(len(mem))
	r.base, r.entries = le.Uint64(state[stateRing:]), le.Uint64(state[stateEntries:])
	if r.entries == 0 {
		r.entries = RingEntries
	}
	if r.entries > RingEntries || r.entries&(r.entries-1) != 0 || r.base > size || r.entries*ringEntrySize > size-r.base {
		return r, fmt.Errorf("guest: the state page's ring leads outside %d bytes of memory", size)
	}
	return r, nil
}

// at returns the address of the entry of round n.
func (r ring) at(n uint64) uint64 { return r.base + n&(r.entries-1)*ringEntrySize }

// ReadRing returns the last rounds of a vCPU, as many as its ring keeps, in order,
// the last one last. The vCPU must not run meanwhile, or the newest entries may be
// torn.
func ReadRing(mem []byte, vcpu int) ([]Entry, error) {
	if vcpu < 0 || vcpu >= MaxVCPUs || len(mem) < lowMemory {
		return nil, fmt.Errorf("guest: no ring of vCPU %d in %d bytes of memory", vcpu, len(mem))
	}
	r, err := ringOf(mem, mem[StateBase+vcpu*PageSize:][:PageSize])
	if err != nil || r.base < lowMemory {
		return nil, fmt.Errorf("guest: no ring of vCPU %d in %d bytes of memory", vcpu, len(mem))
	}
	at := func(n uint64) Entry {
		e := mem[r.at(n):]
		return Entry{binary.LittleEndian.Uint64(e), binary.LittleEndian.Uint64(e[8:])}
	}
	var last uint64
	for i := range r.entries {
		last = max(last, at(i).N)
	}
	first := uint64(1)
	if last > r.entries {
		first = last - r.entries + 1
	}
	var entries []Entry
	for n := first; n <= last; n++ {
		e := at(n)
		if e.N != n {
			return nil, fmt.Errorf("guest: ring of vCPU %d has round %d in the place of %d, last round %d", vcpu, e.N, n, last)
		}
		entries = append(entries, e)
	}
	return entries, nil
}
