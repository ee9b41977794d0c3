package replication

import (
	"bytes"
	"context"
	"math/rand/v2"
	"sync"
)

// What is left of the concurrent model when a host, or a disk, is lost.

// primaryLost cuts the primary's power, and starts it again.
func (m *cmodel) primaryLost() bool {
	m.hostA.cut()
	m.local, m.ldev = m.local.cutPower(m.rng), m.ldev.cutPower(m.rng)
	for k := range m.slots {
		sl := &m.slots[k]
		v, ok := version(m.local.data[k*SectorSize:][:SectorSize], int64(k))
		if !ok || v < sl.flushed.Load() || v > sl.started.Load() {
			m.errorf("after a power cut of the primary sector %d has version %d, %v; %d was flushed, %d written", k, v, ok, sl.flushed.Load(), sl.done.Load())
		}
		sl.started.Store(v)
		sl.done.Store(v)
	}
	m.p.Cut()
	if !m.bootPrimary() {
		return false
	}
	if m.lostB() {
		m.hostB.cut()
		return m.secondaryLost()
	}
	return true
}

// secondaryLost cuts the secondary's power, and starts it again.
func (m *cmodel) secondaryLost() bool {
	for _, d := range []**fakeDisk{&m.disk, &m.sdev, &m.hidden, &m.active} {
		*d = (*d).cutPower(m.rng)
	}
	if !m.bootSecondary() {
		return false
	}
	if !m.journal || m.committed == nil {
		return true
	}
	got := m.disk.content()
	if !bytes.Equal(got, m.committed) && (m.committing == nil || !bytes.Equal(got, m.committing)) {
		at := firstDifference(got, m.committed)
		m.errorf("after a power cut the secondary, which is %v, is not at a checkpoint: at %d; one that was being made differs at %d", m.sec.Identity(), at, differenceOrNone(got, m.committing))
	}
	m.committed, m.committing = got, nil
	return true
}

// failover lets the secondary's guest go on alone, and cuts its power.
func (m *cmodel) failover() {
	ctx := context.Background()
	err := m.sec.Stop(ctx, true)
	if m.sec.State() == None || m.sec.State() == Running {
		return // the run had not begun, or could not be ended
	}
	_ = err
	var workers sync.WaitGroup
	m.stop.Store(false)
	for w := range 2 {
		rng := rand.New(rand.NewPCG(m.seed, uint64(400+w)))
		workers.Go(func() {
			for range 40 {
				m.twinStep(w, rng, false)
			}
		})
	}
	workers.Go(func() { m.sec.Commit(ctx) })
	workers.Wait()
	if m.sec.State() == Done {
		got := m.disk.content()
		if i := firstDifference(got[:cmTwinAt*SectorSize], m.committed[:cmTwinAt*SectorSize]); i >= 0 {
			m.errorf("after a failover the disk is not that of the checkpoint: at %d", i)
		}
	}
	m.hostB.cut()
	for _, d := range []**fakeDisk{&m.disk, &m.sdev, &m.hidden, &m.active} {
		*d = (*d).cutPower(m.rng)
	}
	if m.journal && !m.bootSecondary() { // which recovers
		return
	}
	for k := range m.twinSlots {
		sl, at := &m.twinSlots[k], int64(cmTwinAt+k)
		v, ok := version(m.disk.data[at*SectorSize:][:SectorSize], at)
		if want := sl.flushed.Load(); want > 0 && (!ok || v < want || v > sl.started.Load()) {
			m.errorf("after a power cut of the promoted side its sector %d has version %d, %v; %d was flushed", k, v, ok, want)
		}
	}
}

func differenceOrNone(a, b []byte) int {
	if b == nil {
		return -2
	}
	return firstDifference(a, b)
}
