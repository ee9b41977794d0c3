package replication

import (
	"bytes"
	"fmt"
)

func (m *model) someRange() (off, n int64) {
	off = m.rng.Int64N(m.size)
	n = 1 + m.rng.Int64N(min(3*BlockSize, m.size-off))
	if !m.chance(4) { // as most guests do
		off &^= SectorSize - 1
		n = min((n+SectorSize-1)&^(SectorSize-1), m.size-off)
	}
	return off, n
}

func (m *model) fill(n int64) []byte {
	p := make([]byte, n)
	b := byte(m.rng.Uint32())
	for i := range p {
		p[i] = b + byte(i>>9)
	}
	return p
}

func (m *model) primaryWrite() {
	off, n := m.someRange()
	p := m.fill(n)
	var err error
	switch m.rng.IntN(8) {
	case 0:
		clear(p)
		err = m.p.WriteZeroes(off, n)
	case 1:
		clear(p)
		err = m.p.Trim(off, n)
	case 2:
		err = m.p.WriteFUA(p, off)
	default:
		_, err = m.p.WriteAt(p, off)
	}
	m.log("primary writes %d at %d", n, off)
	if err != nil {
		m.fail("the primary's guest got %v", err)
	}
	copy(m.primary[off:], p)
}

func (m *model) primaryRead() {
	off, n := m.someRange()
	p := make([]byte, n)
	if _, err := m.p.ReadAt(p, off); err != nil {
		m.fail("primary read: %v", err)
	}
	m.same(fmt.Sprintf("primary reads at %d", off), p, m.primary[off:off+n])
}

func (m *model) secondaryWrite() {
	off, n := m.someRange()
	p := m.fill(n)
	var err error
	if m.chance(6) {
		clear(p)
		err = m.s.WriteZeroes(off, n)
	} else {
		_, err = m.s.WriteAt(p, off)
	}
	m.log("secondary writes %d at %d: %v", n, off, err)
	if m.synced != nil {
		for b := off / SectorSize; b*SectorSize < off+n; b++ {
			at := b * SectorSize
			sector := bytes.Clone(m.secondary[at : at+SectorSize])
			for i := max(at, off); i < min(at+SectorSize, off+n); i++ {
				sector[i-at] = p[i-off]
			}
			m.since[b] = append(m.since[b], sector)
		}
	}
	if err == nil {
		copy(m.secondary[off:], p)
	} else if !m.out() {
		if m.synced == nil && !m.journal {
			m.fail("the secondary's guest got %v", err)
		}
		// A disk that fails in a failover: what was written is unknown.
		if _, err := m.s.ReadAt(p, off); err != nil {
			if m.out() {
				return
			}
			m.fail("secondary read: %v", err)
		}
		copy(m.secondary[off:], p)
	}
}

func (m *model) secondaryRead() {
	off, n := m.someRange()
	p := make([]byte, n)
	_, err := m.s.ReadAt(p, off)
	if m.out() { // there is no guest any more, and a write that has failed with the power may have been made in part
		return
	}
	if err != nil {
		m.fail("secondary read: %v", err)
	}
	m.same(fmt.Sprintf("secondary reads at %d", off), p, m.secondary[off:off+n])
}
