package guest

import (
	"encoding/binary"
	"fmt"
	"math/bits"
)

// SectorSize is the unit, in bytes, in which the guest writes its disk.
const SectorSize = 512

// maxSectors is the length of the longest write. It tells of one page.
const maxSectors = PageSize / SectorSize

// flushEvery is how many writes go before one that is flushed.
const flushEvery = 16

// A descriptor is in the page of the frame buffer, little-endian 64-bit words.
// The guest fills it in and writes its address to PortDisk, again and again
// until the device has put the round into descDone.
const (
	descOffset = 0x100

	descSector = 0x00
	descLength = 0x08 // length of a descriptor, bytes
	descFlush  = 0x10 // 1: stable before it is done
	descData   = 0x18 // address, one page
	descRound  = 0x20
	descDone   = 0x28

	descSize = 0x30
)

// descriptor returns the address of the descriptor of a vCPU.
func descriptor(vcpu int) int { return frameBuffer(vcpu) + descOffset }

// dataPage returns the address of the data that a vCPU writes to the disk.
func dataPage(vcpu int) int { return DataBase + vcpu*PageSize }

// region returns the part of the disk that a vCPU writes, in sectors.
func (p Params) region(vcpu int) (first, n uint64) {
	n = p.Disk / SectorSize / uint64(p.VCPUs)
	return uint64(vcpu) * n, n
}

// loadDisk writes into memory what a vCPU needs in order to use its disk.
func (p Params) loadDisk(mem []byte, vcpu int) {
	le := binary.LittleEndian
	first, n := p.region(vcpu)
	state := mem[StateBase+vcpu*PageSize:]
	le.PutUint64(state[stateEvery:], uint64(p.DiskEvery))
	le.PutUint64(state[stateFirst:], first)
	le.PutUint64(state[stateSectors:], n)
	le.PutUint64(state[stateDesc:], uint64(descriptor(vcpu)))
	le.PutUint64(mem[descriptor(vcpu)+descData:], uint64(dataPage(vcpu)))
}

// writesDisk reports whether round n writes the disk; flush is 1 if that write is
// flushed.
func writesDisk(n, every uint64) (writes bool, flush uint64) {
	if every == 0 || n%every != 0 {
		return false, 0
	}
	if n/every%flushEvery == 0 {
		flush = 1
	}
	return true, flush
}

// place returns which page a round with hash h tells the disk of, where its
// block goes within the region, and the running hash that the block starts from.
func place(n, h, pages, region uint64) (page, sector, sectors, y uint64) {
	page, _ = bits.Mul64(h, pages)
	y = mix(h, n)
	sector, _ = bits.Mul64(y, region)
	return page, sector, min(y%maxSectors+1, region-sector), y
}

// blockWord returns word i of a block: the round at the beginning of each
// sector, elsewhere the running hash y of the page so far.
func blockWord(i, n, y uint64) uint64 {
	if i%(SectorSize/8) == 0 {
		return n
	}
	return y
}

// SectorRound returns the round in which the guest wrote a sector, 0 for one
// that it never wrote.
func SectorRound(sector []byte) uint64 { return binary.LittleEndian.Uint64(sector) }

// Write is a request of a guest to its disk.
type Write struct {
	Off   int64  // in bytes
	Data  []byte // a view of the guest's memory, or of the Model's; valid until it goes on
	Flush bool   // the write, and all before it, must be stable before it is done

	Round uint64
	desc  uint64
}

// Requested returns the write whose descriptor is at an address that the guest
// wrote to PortDisk. The caller carries it out and then calls Done.
func Requested(mem []byte, addr uint64) (Write, error) {
	size := uint64(len(mem))
	if addr > size || size-addr < descSize {
		return Write{}, fmt.Errorf("guest: descriptor at %#x is outside %d bytes of memory", addr, size)
	}
	le := binary.LittleEndian
	d := mem[addr:]
	sector, n, data := le.Uint64(d[descSector:]), le.Uint64(d[descLength:]), le.Uint64(d[descData:])
	if sector > 1<<40 || n == 0 || n > PageSize || data > size || n > size-data {
		return Write{}, fmt.Errorf("guest: write of %d bytes at %#x to sector %d", n, data, sector)
	}
	return Write{
		Off: int64(sector) * SectorSize, Data: mem[data:][:n:n], Flush: le.Uint64(d[descFlush:]) != 0,
		Round: le.Uint64(d[descRound:]), desc: addr,
	}, nil
}

// Done tells the guest that the write is done, and returns which bytes of mem
// that has changed.
func (w *Write) Done(mem []byte) (off, n uint64) {
	binary.LittleEndian.PutUint64(mem[w.desc+descDone:], w.Round)
	return w.desc + descDone, 8
}

// Asked returns the write that a vCPU has asked for and that is not done, which
// is after a Round that writes. It is for the guest in Go, which has no port.
func Asked(mem []byte, vcpu int) (w Write, asked bool, err error) {
	if vcpu < 0 || vcpu >= MaxVCPUs || len(mem) < lowMemory {
		return Write{}, false, fmt.Errorf("guest: no vCPU %d in %d bytes of memory", vcpu, len(mem))
	}
	d := mem[descriptor(vcpu):]
	if binary.LittleEndian.Uint64(d[descRound:]) == binary.LittleEndian.Uint64(d[descDone:]) {
		return Write{}, false, nil
	}
	w, err = Requested(mem, uint64(descriptor(vcpu)))
	return w, err == nil, err
}

// LastWrite returns the round of a vCPU's last write that is done, 0 for none.
func LastWrite(mem []byte, vcpu int) (uint64, error) {
	if vcpu < 0 || vcpu >= MaxVCPUs || len(mem) < lowMemory {
		return 0, fmt.Errorf("guest: no vCPU %d in %d bytes of memory", vcpu, len(mem))
	}
	return binary.LittleEndian.Uint64(mem[descriptor(vcpu)+descDone:]), nil
}

// LastFrame returns the frame in a vCPU's buffer, which may not have left yet.
// The vCPU must not run, and must have done a round.
func LastFrame(mem []byte, vcpu int) (Frame, error) {
	if vcpu < 0 || vcpu >= MaxVCPUs || len(mem) < lowMemory {
		return Frame{}, fmt.Errorf("guest: no vCPU %d in %d bytes of memory", vcpu, len(mem))
	}
	b, err := Emitted(mem, uint64(frameBuffer(vcpu)))
	if err != nil {
		return Frame{}, err
	}
	return ParseFrame(b)
}

// disk is the disk as the state page describes it.
type disk struct{ every, first, sectors, desc, data uint64 }

// diskOf reads a state page. The error is one of a page that leads outside mem.
func diskOf(mem, state []byte, pages uint64) (d disk, err error) {
	le := binary.LittleEndian
	if d.every = le.Uint64(state[stateEvery:]); d.every == 0 {
		return d, nil
	}
	size := uint64(len(mem))
	d.first, d.sectors, d.desc = le.Uint64(state[stateFirst:]), le.Uint64(state[stateSectors:]), le.Uint64(state[stateDesc:])
	if d.desc <= size && size-d.desc >= descSize {
		d.data = le.Uint64(mem[d.desc+descData:])
		if pages > 0 && d.sectors > 0 && d.data <= size && size-d.data >= PageSize {
			return d, nil
		}
	}
	return d, fmt.Errorf("guest: the state page's disk leads outside %d bytes of memory", size)
}

// ask composes the block of round n, which has hash h, and its descriptor.
func (d disk) ask(mem []byte, n, h, set, pages uint64, write func(off, v uint64)) {
	writes, flush := writesDisk(n, d.every)
	if !writes {
		return
	}
	page, sector, sectors, y := place(n, h, pages, d.sectors)
	for i := range sectors * (SectorSize / 8) {
		y = mix(y, binary.LittleEndian.Uint64(mem[set+page*PageSize+i*8:]))
		write(d.data+i*8, blockWord(i, n, y))
	}
	write(d.desc+descSector, d.first+sector)
	write(d.desc+descLength, sectors*SectorSize)
	write(d.desc+descFlush, flush)
	write(d.desc+descRound, n)
}

// Write returns what the last round wrote to the disk, if it did. The data is
// valid until the next call.
func (m *Model) Write() (w Write, ok bool) {
	writes, flush := writesDisk(m.n, m.every)
	if !writes {
		return Write{}, false
	}
	page, sector, sectors, y := place(m.n, m.x, uint64(len(m.set)), m.sectors)
	if m.block == nil {
		m.block = make([]byte, PageSize)
	}
	words := m.page(page)
	for i := range sectors * (SectorSize / 8) {
		y = mix(y, words[i])
		binary.LittleEndian.PutUint64(m.block[i*8:], blockWord(i, m.n, y))
	}
	return Write{Off: int64(m.first+sector) * SectorSize, Data: m.block[:sectors*SectorSize], Flush: flush != 0, Round: m.n}, true
}
