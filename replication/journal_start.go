package replication

import "crypto/rand"

// setStarting implements stableState.
func (j *Journal) setStarting(together ID) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := j.log.failed(); err != nil {
		return err
	}
	b := j.super
	b.start, b.pending, b.alone = together, true, false
	return j.store(b)
}

// setStarted implements stableState. If several disks are started together, the first such write of
// one of them is the commit point for all. It may be repeated, where the metadata had no room for the start.
func (j *Journal) setStarted(id Identity) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	b := j.super
	again := b.state == Running && b.run == b.start
	if !b.pending && !again {
		b.start = ID{}
	}
	b.run = b.start
	return j.begin(b, 0, id)
}

// setRunning implements stableState. The one write that it does is the commit
// point of a checkpoint.
func (j *Journal) setRunning(epoch uint64, id Identity) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	b := j.super
	b.start = ID{}
	return j.begin(b, epoch, id)
}

// begin stores b, the disk of which is that of a checkpoint from now on. The caller holds mu.
func (j *Journal) begin(b superblock, epoch uint64, id Identity) error {
	if err := j.log.failed(); err != nil {
		return err
	}
	b.state, b.epoch, b.prepared, b.entries, b.entrySum, b.id = Running, epoch, 0, 0, 0, id
	b.pending, b.alone = false, false
	rand.Read(b.nonce[:])
	j.sum(&b)
	return j.store(b)
}

// setBack implements stableState.
func (j *Journal) setBack() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	b := j.super
	b.prepared, b.alone = 0, false
	if b.pending { // otherwise it has been started, and others may be waiting for that
		b.start, b.pending = ID{}, false
	}
	return j.storeChanged(b)
}
