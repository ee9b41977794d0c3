package replication

import (
	"bytes"
	"testing"
)

// What a disk reads as after a flush of it has failed may be older than what was written to it. The other side's copy is not
// overwritten with that, in either direction.
func TestNothingIsRepairedWithWhatADiskReadsAsThatHasFailed(t *testing.T) {
	for _, repair := range []Repair{RepairSecondary, RepairPrimary} {
		for _, bySums := range []bool{false, true} {
			p, s, local, disk := verifyRig(t, nil)
			ours, theirs := bytes.Clone(local.data), bytes.Clone(disk.data)
			lost := func() error { return errInjected }
			var err error
			if repair == RepairSecondary {
				local.failSync = lost
				write(t, p, 0x11, 0, BlockSize)
				err = p.Sync()
			} else {
				disk.failSync = lost
				write(t, s.Export(), 0x11, 0, BlockSize)
				err = s.Export().Sync()
			}
			wantErr(t, "a flush", err, errInjected)
			cfg := VerifyConfig{Secondary: s.Export(), Repair: repair}
			if bySums {
				cfg.Sums = NewSums(s.Export())
			}
			_, err = p.VerifyOnline(t.Context(), cfg)
			wantErr(t, "a repair", err, errInjected)
			wantBytes(t, "the primary", local.data, ours, 0)
			wantBytes(t, "the secondary", disk.data, theirs, 0)
		}
	}
}
