package replication

import "sync/atomic"

// syncAhead is how many bytes are written before StartSync is called on a disk that is a
// SyncStarter.
const syncAhead = 1 << 20

// ahead calls StartSync while the guest writes, so that the Sync of a checkpoint has at
// most about syncAhead left to wait for. It serves only while there are checkpoints;
// without it, blocks that are written over and over again would reach the device less
// often. The zero value is ready; its methods may be called from any goroutine.
type ahead struct {
	written atomic.Int64 // since the last begin
	busy    atomic.Bool  // a goroutine is in begin
}

// wrote counts n bytes, and reports whether it is time for begin.
func (a *ahead) wrote(n int64) bool { return a.written.Add(n) >= syncAhead }

// begin calls StartSync on d, if enough has been written and no other goroutine does so.
func (a *ahead) begin(d Disk) {
	s, ok := d.(SyncStarter)
	if !ok || a.busy.Swap(true) {
		return
	}
	defer a.busy.Store(false)
	if a.written.Load() >= syncAhead {
		a.written.Store(0) // before the call, which covers all that was counted until now
		s.StartSync()
	}
}
