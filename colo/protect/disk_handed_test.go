package protect

import (
	"strings"
	"testing"
)

// The disk of a secondary has failed when it is handed the guest: the primary, whose copy is good, goes on.
func TestASecondaryWhoseDiskHasFailedIsHandedNoGuest(t *testing.T) {
	t.Parallel()
	withDisk(t, "", func(t *testing.T, w *world) {
		a, b := w.protected()
		d := b.job.cfg.Disks[0]
		d.mu.Lock()
		d.lost = errWorn // as it is found after the last checkpoint
		d.mu.Unlock()
		if err := a.job.Switchover(t.Context()); err == nil || !strings.Contains(err.Error(), errWorn.Error()) {
			t.Errorf("the switchover says %v", err)
		}
		if said := b.reasons(); strings.Contains(said, string(TakingOver)) || strings.Contains(said, string(Alone)) {
			t.Errorf("it has taken the guest:\n%s", said)
		}
		before := w.heard()
		w.until(func() bool { return w.heard() > before }) // of the guest of a
		a.halt()
		b.halt()
	})
}
