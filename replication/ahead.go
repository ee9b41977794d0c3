package replication

import "sync/atomic"

// syncAhead is how much is written before it is begun to be made stable, if the
// disk is a SyncStarter.
const syncAhead = 1 << 20

// ahead has what is written begun to be made stable before a checkpoint asks for
// it, which then has at most about syncAhead left to wait for. That is worth it
// while there are checkpoints; what is written over and over again costs the device
// more. The zero value is ready; its methods may be called from any goroutine.
type ahead struct {
	written atomic.Int64 // since the last begin
	busy    atomic.Bool  // somebody is in begin
}

// wrote counts n bytes, and reports whether it is time for begin.
func (a *ahead) wrote(n int64) bool { return a.written.Add(n) >= syncAhead }

// begin begins to make stable what has been written to d, if it is time for that
// and nobody else does.
func (a *ahead) begin(d Disk) {
	s, ok := d.(SyncStarter)
	if !ok || a.busy.Swap(true) {
		return
	}
	defer a.busy.Store(false)
	if a.written.Load() >= syncAhead {
		a.written.Store(0) // before, so that it covers what has been counted
		s.StartSync()
	}
}
