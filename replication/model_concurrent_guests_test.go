package replication

import (
	"bytes"
	"math/rand/v2"
)

// What the guests of the concurrent model do.

// writer writes its own sectors, reads them, and flushes.
func (m *cmodel) writer(w int, rng *rand.Rand) {
	for i := 0; i < 30 && !m.stop.Load(); i++ {
		k := int64(rng.IntN(cmTurns)*cmWriters + w)
		sl := &m.slots[k]
		p := make([]byte, SectorSize)
		m.vm.RLock()
		switch rng.IntN(6) {
		case 0:
			before := m.answered(w)
			if m.p.Sync() == nil {
				m.flushed(w, before)
				m.wantFlushed(w, before)
			}
		case 1:
			lo := sl.done.Load()
			if _, err := m.p.ReadAt(p, k*SectorSize); err == nil {
				if v, ok := version(p, k); !ok || v < lo || v > sl.started.Load() {
					m.errorf("the primary's guest reads version %d, %v, of sector %d, it wrote %d", v, ok, k, lo)
				}
			}
		default:
			v := sl.started.Add(1)
			fillVersion(p, k, v)
			if _, err := m.p.WriteAt(p, k*SectorSize); err != nil {
				m.vm.RUnlock()
				return // the host is out of power
			}
			sl.done.Store(v)
		}
		m.vm.RUnlock()
	}
}

// answered returns which versions of a writer's sectors have been answered.
func (m *cmodel) answered(w int) (v [cmTurns]uint64) {
	for i := range v {
		v[i] = m.slots[i*cmWriters+w].done.Load()
	}
	return v
}

func (m *cmodel) flushed(w int, v [cmTurns]uint64) {
	for i := range v {
		m.slots[i*cmWriters+w].flushed.Store(v[i])
	}
}

// wantFlushed checks, when a flush has just been answered, that what was answered
// before it is on stable storage: a power cut would show it only if nothing has been
// synced since.
func (m *cmodel) wantFlushed(w int, before [cmTurns]uint64) {
	m.local.mu.Lock()
	defer m.local.mu.Unlock()
	for i, want := range before {
		k := int64(i*cmWriters + w)
		if v, ok := version(m.local.stable(k*SectorSize, SectorSize), k); !ok || v < want {
			m.errorf("a flush is answered, and of sector %d stable storage has version %d, %v; %d was answered before", k, v, ok, want)
		}
	}
}

// wantMarked checks, when a Mark has just returned and the guest is still paused,
// that both disks have on stable storage all that it wrote.
func (m *cmodel) wantMarked(epoch uint64, image []byte) {
	for _, side := range []struct {
		name string
		disk *fakeDisk
	}{{"primary", m.local}, {"secondary", m.disk}} {
		side.disk.mu.Lock()
		if at := firstDifference(side.disk.stable(0, side.disk.Size()), image); at >= 0 {
			m.errorf("%d is marked, and stable storage of the %s differs at %d", epoch, side.name, at)
		}
		side.disk.mu.Unlock()
	}
}

// sharer writes ranges across those of the other.
func (m *cmodel) sharer(rng *rand.Rand) {
	for i := 0; i < 25 && !m.stop.Load(); i++ {
		off := rng.Int64N(cmShared*SectorSize - 1)
		n := 1 + rng.Int64N(min(6*SectorSize, cmShared*SectorSize-off))
		off += cmOwn * SectorSize
		m.vm.RLock()
		var err error
		if rng.IntN(4) == 0 {
			err = m.p.WriteZeroes(off, n)
		} else {
			_, err = m.p.WriteAt(bytes.Repeat([]byte{byte(rng.Uint32())}, int(n)), off)
		}
		m.vm.RUnlock()
		if err != nil {
			return
		}
	}
}

// twinWorker is a part of the secondary's guest: it reads what the primary's
// had at the checkpoint, and what it wrote itself since.
func (m *cmodel) twinWorker(w int, rng *rand.Rand) {
	for !m.stop.Load() {
		m.twin.RLock()
		m.twinStep(w, rng, m.sec.State() == Running)
		m.twin.RUnlock()
		if m.hostB.isOut() {
			return
		}
	}
}

func (m *cmodel) twinStep(w int, rng *rand.Rand, running bool) {
	p := make([]byte, SectorSize)
	k := rng.IntN(cmTwin/2)*2 + w
	sl, at := &m.twinSlots[k], int64(cmTwinAt+k)
	switch rng.IntN(5) {
	case 0:
		off := rng.Int64N(cmTwinAt) * SectorSize
		if rng.IntN(3) == 0 {
			off = cmStatic + rng.Int64N(2*ChunkSize/SectorSize)*SectorSize
		}
		if _, err := m.sec.ReadAt(p, off); err == nil && running && m.committed != nil && !bytes.Equal(p, m.committed[off:off+SectorSize]) {
			m.errorf("the secondary's guest reads at %d what is not of the checkpoint", off)
		}
	case 1, 2:
		v := sl.started.Add(1)
		fillVersion(p, at, v)
		if _, err := m.sec.WriteAt(p, at*SectorSize); err == nil {
			sl.done.Store(v)
		}
	case 3:
		lo := sl.done.Load()
		if _, err := m.sec.ReadAt(p, at*SectorSize); err == nil {
			if v, ok := version(p, at); !ok || v < lo || v > sl.started.Load() {
				m.errorf("the secondary's guest reads version %d, %v, of its sector %d, it wrote %d", v, ok, k, lo)
			}
		}
	case 4:
		var before [cmTwin]uint64
		for i := range before {
			before[i] = m.twinSlots[i].done.Load()
		}
		if m.sec.Sync() == nil && !running {
			for i := range before {
				if i%2 == w {
					m.twinSlots[i].flushed.Store(before[i])
				}
			}
		}
	}
}
