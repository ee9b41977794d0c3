package linuxguest

import (
	"fmt"

	"github.com/gocolo/lockstep/internal/linuxguest/job"
)

// CheckLog judges the guest's log, as it is found on its disk after the guest
// has ended: it must have at least so many whole entries, in order, and nothing
// that is not one. It returns how many there are.
func CheckLog(log []byte, atLeast uint64) (uint64, error) {
	if len(log)%job.EntrySize != 0 {
		return 0, fmt.Errorf("the log has %d bytes, which is not a number of whole entries", len(log))
	}
	n := uint64(len(log) / job.EntrySize)
	for i := range n {
		if e := log[i*job.EntrySize:][:job.EntrySize]; !job.CheckEntry(e, i) {
			return i, fmt.Errorf("entry %d is %q", i, e)
		}
	}
	if n < atLeast {
		return n, fmt.Errorf("the log has %d entries; the guest has said that %d are stable", n, atLeast)
	}
	return n, nil
}
