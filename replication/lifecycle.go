package replication

import (
	"maps"
	"slices"
	"sync"
)

// lifecycle is the state of a [Secondary], all in one place. Only the transitions below and
// those in kept.go change it. mu is never held while a device is waited for. The state changes only while the whole disk is locked, so it does not change
// for a goroutine that holds any range; the methods may be called from any goroutine.
//
//	None ── began ──► Running ── ordered ──► Failover ── ended ──► Done
//	 ▲                   │                    │    ▲
//	 └─── readmitted ────┤               commitFailed, ordered
//	 ▲                   │                    ▼    │
//	 └── readmitted ── Done ◄─ ended ─┘    FailoverFailed
type lifecycle struct {
	mu    sync.Mutex
	state State
	epoch uint64 // the number of the last checkpoint
	// promised: stable storage says that the overlays belong to the disk. From ordered on.
	promised bool
	// gated: changes by the primary are refused, while a checkpoint or a
	// failover drains them, while a checkpoint is prepared, and for good once
	// replication is over.
	gated bool
	// prepared: the checkpoint next is prepared. From prepare until emptied.
	prepared bool
	next     uint64
	// outrun: another disk of the group has made the prepared checkpoint. From outrunBy until emptied.
	outrun bool
	// due: the disk is at a start that is recorded, but could not be completed, or that another disk of the group has
	// made, or may have. From missedStart until began.
	due bool
	// back: parts of the disk are those of the last checkpoint again, since it is being brought back to that, or was and met
	// an error. From takenBack until it is, or until ordered: the overlays still have what the guest sees.
	back bool
	// asked: a checkpoint has been asked for in this epoch.
	asked bool
	// err is the first error since began. untold is that error until it has been
	// published.
	err    *BrokenError
	untold bool
	// instance names this Secondary as long as it has all that a primary has written since
	// the last checkpoint. It changes when the disk goes back to that, or is going to.
	instance ID
	// adopted is the identity of which the disk is a copy from the next checkpoint on;
	// nil: its identity does not change.
	adopted *Identity
	// standing is the identity that the disk has at the last checkpoint of the run; nil: there
	// is no run.
	standing *Identity
	// kept says whether the disk as it was, of which the identity is keptID, is kept; see kept.go.
	kept   keptState
	keptID Identity
	// promoted is the identity that the disk has when this side has gone on; nil: that was not
	// begun. From promote on, for good.
	promoted *Identity
	// behind has the leaves of the overlays that are to be copied down, from ordered until
	// ended.
	behind map[uint32]bool
}

func (l *lifecycle) now() State {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state
}

// at returns the state and the epoch.
func (l *lifecycle) at() (State, uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state, l.epoch
}

// tookOver reports whether the guest of this side has gone on, or is about to.
func (l *lifecycle) tookOver() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state == Failover || l.state == FailoverFailed || l.state == Done && l.promised
}

func (l *lifecycle) overlaysCount() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.promised
}

// admit returns the state if the primary may make a change now, and otherwise the reason
// why it may not.
func (l *lifecycle) admit() (State, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.gated || l.due || l.back || l.state != None && l.state != Running:
		return l.state, ErrGated
	case l.state == Running && l.err != nil:
		return l.state, l.err // the change would be in no checkpoint
	}
	return l.state, nil
}

// gate refuses changes by the primary from now on.
func (l *lifecycle) gate() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.gated = true
}

// ungate allows changes by the primary again, unless a checkpoint is prepared.
func (l *lifecycle) ungate() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.gated = l.prepared
}

// began notes that replication has begun, at epoch 0.
func (l *lifecycle) began() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.state, l.epoch, l.err, l.untold, l.gated = Running, 0, nil, false, false
	l.due = false
}

// missedStart notes that stable storage has the record of a start, of which the group has not been told.
func (l *lifecycle) missedStart() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.due = l.state == None || l.state == Done && !l.promised
}

func (l *lifecycle) startIsDue() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.due
}

// prepare notes that the disk has all writes of epoch.
func (l *lifecycle) prepare(epoch uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.prepared, l.next = true, epoch
}

func (l *lifecycle) isPrepared(epoch uint64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.prepared && l.next == epoch
}

// outrunBy notes that another disk of the group is at epoch. Only a disk that is prepared for that epoch
// heeds it.
func (l *lifecycle) outrunBy(epoch uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.state == Running && l.prepared && l.next == epoch && l.epoch < epoch {
		l.outrun = true
	}
}

// toComplete returns the checkpoint that another disk of the group has made and this one has not, if there is one.
func (l *lifecycle) toComplete() (epoch uint64, outrun bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.next, l.outrun
}

// hasPrepared reports whether a checkpoint is prepared.
func (l *lifecycle) hasPrepared() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.prepared
}

// unprepare gives the prepared checkpoint up, which will not be made, as stable storage says.
func (l *lifecycle) unprepare() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.prepared, l.gated = false, false
}

// committed notes that the disk is at epoch.
func (l *lifecycle) committed(epoch uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.epoch = epoch
}

// emptied notes that the overlays are empty.
func (l *lifecycle) emptied() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.asked, l.prepared, l.outrun = false, false, false
}

// promote begins the identity with which the guest of this side goes on from the disk that has had the
// identity last, and returns it. It returns the same one each time.
func (l *lifecycle) promote(last Identity) Identity {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.promoted == nil {
		last.begin()
		last.Writes = true
		l.promoted = &last
	}
	return *l.promoted
}

// promotedTo returns what promote has returned.
func (l *lifecycle) promotedTo() Identity {
	l.mu.Lock()
	defer l.mu.Unlock()
	return *l.promoted
}

// ordered notes that this side goes on alone, as stable storage says, and that leaves are to be
// copied down.
func (l *lifecycle) ordered(leaves []uint32) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.behind = make(map[uint32]bool, len(leaves))
	for _, leaf := range leaves {
		l.behind[leaf] = true
	}
	l.promised, l.state, l.back = true, Failover, false
}

// commitFailed notes that this side goes on alone over overlays that could not be copied down, or
// must not be.
func (l *lifecycle) commitFailed() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.behind == nil {
		l.behind = make(map[uint32]bool)
	}
	l.state = FailoverFailed
}

// revoked takes the order of a failover back: it must not change the disk, since stable storage
// could not record it before.
func (l *lifecycle) revoked() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.promised, l.state, l.behind = false, FailoverFailed, make(map[uint32]bool)
}

// ended notes that replication is over, and forgets the overlays.
func (l *lifecycle) ended() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.state, l.err, l.behind, l.standing, l.instance, l.back = Done, nil, nil, nil, newID(), false
}

// readmitted lets a primary that comes back fill the disk.
func (l *lifecycle) readmitted() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.state, l.err, l.untold, l.gated, l.standing, l.back = None, nil, false, false, nil, false
}

// takenBack notes that the disk is about to be brought back to its last checkpoint, and so lacks what has been written since.
func (l *lifecycle) takenBack() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.back && l.err == nil { // otherwise it has changed already
		l.instance = newID()
	}
	l.back = true
}

// isBack reports whether parts of the disk are those of the last checkpoint again.
func (l *lifecycle) isBack() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.back
}

// present returns the name of the instance.
func (l *lifecycle) present() ID {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.instance
}

// askOnce reports whether a checkpoint has not been asked for in this epoch, and
// notes that it now has.
func (l *lifecycle) askOnce() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	was := l.asked
	l.asked = true
	return !was
}

// fail records the first error of a run, which does not go on.
func (l *lifecycle) fail(e *BrokenError) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err == nil {
		l.err, l.untold, l.instance = e, true, newID()
	}
}

// failed returns what fail has recorded, or nil.
func (l *lifecycle) failed() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err == nil {
		return nil // not a nil *BrokenError
	}
	return l.err
}

// takeUntold returns an error that has not been published, once, or nil.
func (l *lifecycle) takeUntold() *BrokenError {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.untold {
		return nil
	}
	l.untold = false
	return l.err
}

// adopt notes that the disk is to become a copy of the disk that the identity of names, or,
// with nil, that it has become one.
func (l *lifecycle) adopt(of *Identity) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.adopted = of
}

// adoption returns the identity of which the disk is to become a copy, or nil.
func (l *lifecycle) adoption() *Identity {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.adopted
}

// stand notes the identity of the disk at a checkpoint, to which it may be brought back.
func (l *lifecycle) stand(id *Identity) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.standing = id
}

// checkpoint returns the identity at the last checkpoint of the run, or nil.
func (l *lifecycle) checkpoint() *Identity {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.standing
}

// fallBehind notes that the overlays of a range have changed since they were
// copied down.
func (l *lifecycle) fallBehind(off, n int64) {
	b0, b1 := blockRange(off, n)
	l.mu.Lock()
	defer l.mu.Unlock()
	for leaf := b0 / leafBlocks; leaf <= (b1-1)/leafBlocks; leaf++ {
		l.behind[uint32(leaf)] = true
	}
}

// takeBehind returns the leaves to be copied down, in order, and notes that they
// are being copied.
func (l *lifecycle) takeBehind() []uint32 {
	l.mu.Lock()
	defer l.mu.Unlock()
	todo := slices.Sorted(maps.Keys(l.behind))
	clear(l.behind)
	return todo
}

// putBehind gives back leaves that were not copied.
func (l *lifecycle) putBehind(todo []uint32) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, leaf := range todo {
		l.behind[leaf] = true
	}
}
