package replication

import (
	"bytes"
	"testing"
)

// A read of the secondary may end after the secondary is another primary's, and bring what that one has written. It
// says nothing of the copy that was this primary's.
func TestWhatIsReadOfASecondaryThatIsGoneRepairsNothing(t *testing.T) {
	for _, repair := range []Repair{RepairNone, RepairPrimary} {
		p, s, local, disk := verifyRig(t, nil)
		before := bytes.Clone(local.data)
		reads := 0
		differ, err := p.VerifyOnline(t.Context(), VerifyConfig{Repair: repair, Secondary: readerFunc(func(b []byte, off int64) (int, error) {
			if reads++; reads == 1 {
				must(t, p.Stop(t.Context(), true))
				must(t, s.Stop(t.Context(), false))
				copy(disk.data, bytes.Repeat([]byte{0x77}, testSize))
			}
			return disk.ReadAt(b, off)
		})})
		wantErr(t, "the rest", err, ErrNotRunning)
		if !differ.Empty() || reads != 1 {
			t.Errorf("repair %d: %d bytes differ after %d reads, want none after one", repair, differ.Bytes(), reads)
		}
		wantBytes(t, "the primary", local.data, before, 0)
	}
}
