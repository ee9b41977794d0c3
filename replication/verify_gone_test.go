package replication

import (
	"bytes"
	"strings"
	"testing"
)

// wantSays checks an error, and that it says so in words.
func wantSays(t *testing.T, why string, err, target error, words string) {
	t.Helper()
	wantErr(t, why, err, target)
	if !strings.Contains(err.Error(), words) {
		t.Errorf("%s: %v; it does not say: %s", why, err, words)
	}
}

// What differs, and nobody has said which copy is right, is not sent when the link is lost: the other copy may be the
// good one. It is found again.
func TestADifferenceWithoutADirectionIsInNoAccount(t *testing.T) {
	p, s, _, disk := verifyRig(t, nil)
	before, err := p.VerifyOnline(t.Context(), VerifyConfig{Secondary: s.Export()})
	must(t, err)
	write(t, disk, 0x77, 5*ChunkSize, SectorSize) // which no one should
	found := func() {
		t.Helper()
		differ, err := p.VerifyOnline(t.Context(), VerifyConfig{Secondary: s.Export()})
		must(t, err)
		if !differ.Any(5*ChunkSize, ChunkSize) || differ.Bytes() != before.Bytes()+ChunkSize {
			t.Errorf("%d bytes differ, and %d before", differ.Bytes(), before.Bytes())
		}
	}
	found()
	must(t, p.Stop(t.Context(), true))
	must(t, s.Stop(t.Context(), false))
	if n := p.Dirty(); n != 0 {
		t.Errorf("%d bytes are to be copied", n)
	}
	must(t, joinOver(p, s))
	must(t, p.Synchronise(t.Context(), SyncConfig{}))
	want(t, "the copy that may be the good one", disk, 0x77, 5*ChunkSize, SectorSize)
	found()
}

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
		wantSays(t, "the rest", err, ErrNotRunning, "detached or replaced")
		if !differ.Empty() || reads != 1 {
			t.Errorf("repair %d: %d bytes differ after %d reads, want none after one", repair, differ.Bytes(), reads)
		}
		wantBytes(t, "the primary", local.data, before, 0)
	}
}
