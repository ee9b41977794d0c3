package replication

import (
	"fmt"
	"sync"
)

// told is what stable storage says last of the journal's user, for those who must not wait for a device. Its
// methods may be called from any goroutine.
type told struct {
	mu    sync.Mutex // never held while a device is waited for
	state State
	epoch uint64
	id    Identity
}

func (t *told) set(b *superblock) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.state, t.epoch, t.id = b.state, b.epoch, b.id
}

// State returns what stable storage says: in which state, and at which epoch,
// the journal's user is or was. A change that is being written is not in it yet. None of State,
// Clean, Identity and String waits for a device, and any goroutine may call them.
func (j *Journal) State() (State, uint64) {
	j.told.mu.Lock()
	defer j.told.mu.Unlock()
	return j.told.state, j.told.epoch
}

// Clean reports whether a Secondary may use the journal without Recover.
func (j *Journal) Clean() bool {
	st, _ := j.State()
	return st == None || st == Done
}

// String returns the journal's state as text for messages.
func (j *Journal) String() string {
	st, epoch := j.State()
	return fmt.Sprintf("journal: %v, epoch %d", st, epoch)
}

// Identity returns the identity, at the epoch that State returns, of the disk whose
// Secondary used the journal last. [Metadata] says where the identity of a disk is kept.
func (j *Journal) Identity() Identity {
	j.told.mu.Lock()
	defer j.told.mu.Unlock()
	return j.told.id
}
