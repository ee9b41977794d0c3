package ram

import (
	"testing"
	"unsafe"

	"github.com/gocolo/lockstep/internal/require"
)

// newTracker returns a tracker that runs, or skips the test.
func newTracker(t testing.TB, blocks ...Block) *Tracker {
	t.Helper()
	tr, err := NewTracker(blocks)
	require.Granted(t, require.Userfaultfd, err)
	t.Cleanup(func() {
		if err := tr.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := tr.StartDirtyLog(); err != nil {
		t.Fatal(err)
	}
	return tr
}

// readDirty returns the pages that a log reports.
func readDirty(t testing.TB, log DirtyLog, b *Block) Bitmap {
	t.Helper()
	got := NewBitmap(len(b.Host) / PageSize)
	if err := log.ReadDirty(b.Name, got); err != nil {
		t.Fatal(err)
	}
	return got
}

// addressOf returns where memory is.
func addressOf(p []byte) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(p))) }
