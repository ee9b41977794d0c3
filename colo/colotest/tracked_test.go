package colotest

import (
	"context"
	"errors"
	"testing"

	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// needTracker skips the test where the kernel keeps no dirty log.
func needTracker(t *testing.T) {
	t.Helper()
	tr, err := ram.NewTracker(nil)
	require.Granted(t, require.Userfaultfd, err)
	if err := tr.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestTheGuestMarksEveryPageItWrites(t *testing.T) {
	needTracker(t)
	frames := make(chan struct{}, 1)
	g := running(t, VMConfig{
		VCPUs: 2, Pages: 64, Touch: 8, Interval: -1, Disk: 64 << 10, DiskEvery: 2,
		Output: func([]byte) error {
			select {
			case frames <- struct{}{}:
			default:
			}
			return nil
		},
	})
	v, err := ram.NewVerifier(g.Blocks(), ram.VerifierConfig{
		Log: g, Paused: g.Paused,
		Missed: func(_ string, off uint64) { t.Errorf("page %#x was written and not marked", off) },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // before the guest's memory goes
		if err := v.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := v.StartDirtyLog(); err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	bitmap, written := ram.NewBitmap(len(g.Memory())/ram.PageSize), 0
	read := func() {
		clear(bitmap)
		if err := v.ReadDirty(Block, bitmap); err != nil {
			t.Fatal(err)
		}
		written += bitmap.Count()
	}
	if err := g.Resume(ctx); err != nil {
		t.Fatal(err)
	}
	for range 200 {
		<-frames // it runs
		read()
		if err := g.Pause(ctx); err != nil {
			t.Fatal(err)
		}
		read()
		if err := g.Resume(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if written == 0 {
		t.Error("the guest wrote nothing")
	}
}

func TestATrackedGuestForgetsAtAReset(t *testing.T) {
	needTracker(t)
	g, err := NewVM(VMConfig{Touch: 8, Tracked: true})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	bitmap := ram.NewBitmap(len(g.Memory()) / ram.PageSize)
	for _, log := range []func() error{nil, g.StopDirtyLog} {
		if err := errors.Join(g.Resume(context.Background()), g.Step(3), g.Pause(context.Background())); err != nil {
			t.Fatal(err)
		}
		if log != nil {
			if err := log(); err != nil {
				t.Fatal(err)
			}
		}
		if err := g.Reset(); err != nil {
			t.Fatal(err)
		}
		if err := g.ReadDirty(Block, bitmap); err != nil || bitmap.Count() != 0 {
			t.Errorf("%d pages, %v", bitmap.Count(), err)
		}
	}
}
