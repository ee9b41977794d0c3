package replication

import (
	"errors"
	"fmt"
)

// The changes of Metadata, one at a time. None of its locks is held while the device is waited
// for, and each wait for the device has an end, see metadataAccess.

// update changes the metadata, and returns when the change is stable. If it fails, nothing
// has changed in memory, and stable storage has the old metadata or the new; from then on
// every update that would change something fails. Where there was no room, the next one, whatever
// it changes, says on stable storage which of the two it is.
func (m *Metadata) update(change func(*Identity, *peerBase)) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.take()
	defer m.give()
	next := m.facts
	change(&next.id, &next.peer)
	if next == m.facts && !m.ahead && !m.unsure && (m.dev != nil || m.make == nil) {
		return nil
	}
	return m.store(next)
}

// change does what update does, and makes nothing for what does not change.
func (m *Metadata) change(change func(*facts)) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.take()
	defer m.give()
	next := m.facts
	if change(&next); next == m.facts && !m.unsure {
		return nil
	}
	return m.store(next)
}

// forgetRestored gives a copy that was restored, and that no journal has made clean, another name: what a primary
// knows of the one that it was does not hold. The next change makes that durable; until then it happens again.
func (m *Metadata) forgetRestored() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.take()
	defer m.give()
	if !m.restored {
		return
	}
	if m.restored, m.ahead = false, true; m.id.State == CopyInconsistent {
		m.id.Copy = newID()
	}
}

// take waits until nobody changes the metadata, and keeps others from it until give. The caller holds mu.
func (m *Metadata) take() {
	for m.busy {
		m.ended.Wait()
	}
	m.busy = true
}

// give lets others change the metadata. The caller holds mu.
func (m *Metadata) give() {
	m.busy = false
	m.ended.Broadcast()
}

// store makes next durable. The caller holds mu, which is released meanwhile, and has called take.
func (m *Metadata) store(next facts) error {
	if m.failed != nil {
		return m.failed
	}
	seq := m.seq + 1
	if m.dev == nil && m.make == nil {
		m.seq, m.facts, m.ahead = seq, next, false
		return nil
	}
	w := &metadataWrite{access: &m.access, dev: m.dev, make: m.make, sector: next.encode(seq), at: int64(seq%2) * metadataSlot}
	m.mu.Unlock()
	err := m.access.use(opUpdate, w.do)
	m.mu.Lock()
	hung := errors.Is(err, ErrHung)
	if !hung && m.dev == nil && w.dev != nil { // w is still in use if it hangs
		m.dev, m.close, m.make = w.dev, w.close, nil
	}
	switch {
	case err == nil:
		m.seq, m.facts, m.ahead = seq, next, false
		m.unsure, m.tried = false, Identity{}
		return nil
	case !hung && m.dev == nil: // it has not been made, and the next change tries again
		return fmt.Errorf("replication: metadata: %w", err)
	}
	m.tried = next.id
	if lacksRoom(err) { // the next change writes the same sector
		m.unsure = true
		return fmt.Errorf("replication: metadata: %w", err)
	}
	m.failed = &MetadataError{"metadata", err}
	m.lost.CompareAndSwap(nil, m.failed)
	return m.failed
}

// metadataWrite is one write of the metadata. If it hangs it is given up, and touches nothing of
// the Metadata.
type metadataWrite struct {
	access *metadataAccess
	dev    *stableDisk // nil: make makes it
	make   func() (*metadataDevice, error)
	close  func() error
	sector []byte
	at     int64
}

func (w *metadataWrite) do() error {
	if w.dev == nil {
		made, err := w.make()
		if err != nil {
			return err
		}
		if w.access.hung() != nil && made.close != nil {
			return made.close() // nobody waits for it any more
		}
		w.dev, w.close = newStableDisk(made.Disk, "metadata"), made.close
	}
	err := writeInRoom(w.dev, w.sector, w.at)
	if err == nil {
		err = w.dev.Sync()
	}
	return err
}

// roomError says that a device had no room for a write. Whatever else was written to it is still there, which
// a sync that fails, also for want of room, does not say.
type roomError struct{ error }

func (e roomError) Unwrap() error { return e.error }

// writeInRoom does what writeFull does. If there is no room, its error is a roomError.
func writeInRoom(d Disk, p []byte, off int64) error {
	err := writeFull(d, p, off)
	if noRoom(err) {
		return roomError{err}
	}
	return err
}

// lacksRoom reports whether err is that of a write for which there was no room, which may be tried again.
func lacksRoom(err error) bool {
	var e roomError
	return errors.As(err, &e)
}

// shut closes the file with the metadata, if there is one. What still hangs there ends as if it were open.
func (m *Metadata) shut() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.take()
	defer m.give()
	if m.close == nil {
		return nil
	}
	err := m.close()
	m.close = nil
	return err
}

// base returns what stable storage says of the secondary's copy.
func (m *Metadata) base() peerBase {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.peer
}

// openIntent returns the write-intent bitmap of a disk of size bytes, or nil if there is no room
// for it yet, or ever. One that was opened before the disk has grown, as the disk of another
// primary, grows too.
func (m *Metadata) openIntent(size int64) (*intent, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.take()
	defer m.give()
	if m.intent != nil && m.intent.size == size {
		return m.intent, nil
	}
	if m.dev == nil || m.dev.Size() < metadataHead+intentBytes(size) {
		m.intent = nil
		return nil, nil
	}
	if m.intent != nil {
		m.intent.grow(size)
		return m.intent, nil
	}
	dev := m.dev
	m.mu.Unlock()
	t, err := usedBy(&m.access, "read", func() (*intent, error) { return openIntent(dev, size) })
	m.mu.Lock()
	if err != nil {
		return nil, err
	}
	t.lost, t.access = &m.lost, &m.access
	m.intent = t
	return t, nil
}
