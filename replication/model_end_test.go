package replication

import (
	"bytes"
	"context"
	"errors"
)

// end stops both sides in an orderly way.
func (m *model) end() bool {
	ctx := context.Background()
	failover := m.chance(2)
	m.log("stop, failover %v", failover)
	m.lose()
	if err := m.p.Stop(ctx, failover); err != nil {
		m.fail("primary stop: %v", err)
	}
	m.primaryWrite()
	if failover {
		m.synced, m.since = bytes.Clone(m.secondary), make(map[int64][][]byte)
	}
	for tries := 0; ; tries++ {
		err := m.s.Stop(ctx, failover)
		m.log("secondary stop: %v, %v", err, m.s.State())
		if m.out() {
			return m.recover()
		}
		if failover {
			for m.chance(2) && !m.out() {
				m.secondaryWrite()
				m.secondaryRead()
			}
		} else if err != nil {
			m.secondaryRead()
		}
		if st := m.s.State(); err == nil && (st == Failover || st == FailoverFailed) {
			err = m.s.Commit(ctx)
			m.log("commit: %v", err)
		}
		if m.out() {
			return m.recover()
		}
		if err == nil {
			break
		}
		if m.journal && (m.j.failed() != nil || m.s.disk.failed() != nil) {
			// What failed once is not trusted again; the host is restarted.
			m.setPower(0)
			m.disk.Sync()
			return m.recover()
		}
		if m.s.disk.failed() != nil {
			m.secondaryRead()
			if err := m.s.Sync(); failover && err == nil {
				m.fail("a flush is answered after a sync has failed")
			}
			return false // the guest goes on with a disk that cannot be flushed
		}
		if tries == 10 {
			m.fail("stop: %v", err)
		}
	}
	if st := m.s.State(); st != Done {
		m.fail("state %v after the stop", st)
	}
	if !failover {
		m.same("the disk after a stop without failover", m.disk.data, m.checkpoint)
		m.secondary = bytes.Clone(m.checkpoint)
		m.secondaryRead()
		return true // the primary goes on, and gets its secondary back
	}
	m.same("the disk after a failover", m.disk.data, m.secondary)
	for m.chance(2) {
		m.secondaryWrite()
	}
	if m.chance(2) {
		if err := m.s.Sync(); err != nil && !m.broken && !m.out() {
			m.fail("sync: %v", err)
		} else if err == nil {
			if m.s.disk.failed() != nil {
				m.fail("a flush is answered after a sync has failed")
			}
			m.synced, m.since = bytes.Clone(m.secondary), make(map[int64][][]byte)
		}
		for m.chance(2) {
			m.secondaryWrite()
		}
	}
	if m.journal {
		m.setPower(0)
		m.disk.Sync()
		return m.recover()
	}
	return false
}

// recover cuts the power of the secondary host, and starts it again.
func (m *model) recover() bool {
	m.log("power cut in state %v", m.s.State())
	m.lose()
	if m.disconnect != nil {
		m.disconnect()
	}
	m.p.Stop(context.Background(), true)
	m.disk, m.hidden, m.active = m.disk.cutPower(m.rng), m.hidden.cutPower(m.rng), m.active.cutPower(m.rng)
	for {
		j, err := OpenJournal(m.hidden, m.active)
		if err != nil {
			m.fail("journal after a power cut: %v", err)
		}
		if !j.Clean() {
			if _, err := NewSecondary(m.disk, SecondaryConfig{Journal: j}); !errors.Is(err, ErrUnclean) {
				m.fail("an unclean journal is used: %v", err)
			}
		}
		again := &power{left: -1} // it may fail once more
		if m.chance(3) {
			again.left = m.rng.IntN(20)
		}
		for _, d := range []*fakeDisk{m.disk, m.hidden, m.active} {
			d.power = again
		}
		epoch, failedOver, err := j.Recover(context.Background(), m.disk)
		m.log("recovered epoch %d, failover %v: %v", epoch, failedOver, err)
		if err == nil {
			break
		}
		if _, out := again.use(); !out {
			m.fail("recovery: %v", err)
		}
		m.disk, m.hidden, m.active = m.disk.cutPower(m.rng), m.hidden.cutPower(m.rng), m.active.cutPower(m.rng)
	}
	m.disk = m.disk.cutPower(m.rng) // what is recovered is stable
	switch got := m.disk.data; {
	case bytes.Equal(got, m.checkpoint):
		if m.synced != nil && m.s.State() == Done {
			m.acceptable(got)
		}
	case m.next != nil && bytes.Equal(got, m.next):
		m.checkpoint = m.next
	case m.synced != nil:
		m.acceptable(got)
	default:
		m.fail("the disk is neither the last checkpoint nor the next: first at %d", firstDifference(got, m.checkpoint))
	}
	return m.synced == nil
}

// acceptable checks a disk that lost power after a failover: every sector is
// as the guest last synced it, or as it wrote it since.
func (m *model) acceptable(got []byte) {
	for b := int64(0); b*SectorSize < m.size; b++ {
		sector := got[b*SectorSize : (b+1)*SectorSize]
		ok := bytes.Equal(sector, m.synced[b*SectorSize:(b+1)*SectorSize])
		for _, w := range m.since[b] {
			ok = ok || bytes.Equal(sector, w)
		}
		if !ok {
			m.fail("sector %d is neither what was synced nor what was written since", b)
		}
	}
}
