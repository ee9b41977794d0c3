package replication

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/event"
)

const fullBlocks = 2 * minSpare // of the active overlay, map included

// fullRig is a secondary whose guest has no room left but what is spare, and one
// more write of its guest that waits.
type fullRig struct {
	s    *Secondary
	disk *fakeDisk
	full *[]event.DiskOverlayFull
	done chan error
}

func newFullRig(t *testing.T, cfg SecondaryConfig) *fullRig {
	t.Helper()
	x := &fullRig{done: make(chan error, 1)}
	cfg.Events, x.full = heard[event.DiskOverlayFull]()
	cfg.Name, cfg.ActiveBytes = "d", fullBlocks*BlockSize
	x.s, x.disk = newSecondary(t, cfg)
	for b := range int64(x.s.active.bound() - leafCost) {
		write(t, x.s, 0x22, b*BlockSize, BlockSize)
	}
	if len(*x.full) != 0 {
		t.Errorf("heard %+v while there was room", *x.full)
	}
	go func() { x.done <- writeFull(x.s, make([]byte, BlockSize), half) }()
	synctest.Wait()
	return x
}

func (x *fullRig) waits(t *testing.T) {
	t.Helper()
	select {
	case err := <-x.done:
		t.Fatalf("it did not wait: %v", err)
	default:
	}
}

func TestWriteOfTheSecondarysGuestThatFindsNoRoomWaitsForACheckpoint(t *testing.T) {
	journaled := func(t *testing.T) SecondaryConfig {
		j, err := OpenJournal(newFake(testSize, 0), newFake((fullBlocks+1)*BlockSize+fullBlocks*mapEntry, 0))
		must(t, err)
		return SecondaryConfig{Journal: j}
	}
	for name, config := range map[string]func(*testing.T) SecondaryConfig{
		"in memory":      func(*testing.T) SecondaryConfig { return SecondaryConfig{} },
		"with a journal": journaled,
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				x := newFullRig(t, config(t))
				x.waits(t)
				bound := int64(x.s.active.max) * BlockSize
				once := event.DiskOverlayFull{Mode: event.ModeSecondary, Disk: "d", Overlay: "active",
					Bytes: x.s.active.bound() * BlockSize, Bound: bound}
				if len(*x.full) != 1 || (*x.full)[0] != once {
					t.Errorf("heard %+v, want %+v", *x.full, once)
				}
				write(t, x.s, 0x33, 0, BlockSize) // what is held takes no more
				must(t, x.s.Checkpoint(t.Context(), 1))
				must(t, <-x.done)
				want(t, "the guest's write is of the next epoch", x.s, 0, half, BlockSize)
				want(t, "the others are gone", x.s, 0x11, 0, half)
			})
		})
	}
}

func TestWriteOfTheSecondarysGuestThatWaitsEnds(t *testing.T) {
	ctx := context.Background()
	for name, end := range map[string]struct {
		do   func(t *testing.T, x *fullRig)
		want error
	}{
		"at the deadline":              {func(*testing.T, *fullRig) { time.Sleep(defaultTimeout) }, ErrFull},
		"before the guest is paused":   {func(t *testing.T, x *fullRig) { Group{x.s}.Drain() }, nil},
		"when the primary is lost":     {func(t *testing.T, x *fullRig) { Group{x.s}.Cut() }, nil},
		"when a failover is ordered":   {func(t *testing.T, x *fullRig) { must(t, x.s.PrepareFailover(ctx)) }, nil},
		"when a failover is done":      {func(t *testing.T, x *fullRig) { must(t, x.s.Stop(ctx, true)) }, nil},
		"when it is stopped":           {func(t *testing.T, x *fullRig) { must(t, x.s.Stop(ctx, false)) }, ErrNotRunning},
		"when its guest is fenced off": {func(t *testing.T, x *fullRig) { x.s.Fence() }, ErrFenced},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				x := newFullRig(t, SecondaryConfig{})
				x.waits(t)
				end.do(t, x)
				if err := <-x.done; !errors.Is(err, end.want) {
					t.Errorf("error %v, want %v", err, end.want)
				}
				fill := byte(0x11)
				if end.want == nil {
					fill = 0
				}
				want(t, "what the guest reads", x.s, fill, half, BlockSize)
			})
		})
	}
}

func TestWhatCannotWaitHasAnEighthOfTheOverlayAndNoMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newFullRig(t, SecondaryConfig{})
		x.s.Drain()
		must(t, <-x.done)
		x.s.Drain()
		for b := range int64(fullBlocks/8 - 1) {
			write(t, x.s, 0x44, half+(b+1)*BlockSize, BlockSize)
		}
		begin := time.Now()
		_, err := x.s.WriteAt(make([]byte, BlockSize), half+fullBlocks/2*BlockSize)
		wantErr(t, "and no more", err, ErrFull)
		if time.Since(begin) != 0 {
			t.Error("it has waited")
		}
		must(t, x.s.Checkpoint(t.Context(), 1))
		for b := range int64(x.s.active.bound() - leafCost) {
			write(t, x.s, 0x22, b*BlockSize, BlockSize)
		}
		go func() { x.done <- writeFull(x.s, make([]byte, BlockSize), half) }()
		synctest.Wait()
		x.waits(t) // in the next epoch, as before
		must(t, x.s.Checkpoint(t.Context(), 2))
		must(t, <-x.done)
	})
}

func TestWriteIsTriedAgainIfItMayTakeWhatIsSpareSinceItsLastTry(t *testing.T) {
	for name, drain := range map[string]func(*Secondary) error{
		"before the guest is paused": func(s *Secondary) error { s.Drain(); return nil },
		"when a failover is ordered": func(s *Secondary) error { return s.PrepareFailover(context.Background()) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				x := newFullRig(t, SecondaryConfig{})
				x.waits(t)
				// What guestWrite does, with the drain right behind its last try.
				freed, urgent := x.s.full.wait(), x.s.active.urgent.Load()
				_, full := x.s.tryGuestWrite(make([]byte, BlockSize), half+BlockSize, BlockSize)
				wantErr(t, "the last try", full, ErrFull)
				must(t, drain(x.s))
				must(t, <-x.done)
				var until time.Time
				must(t, x.s.awaitCheckpoint(freed, urgent, half+BlockSize, BlockSize, true, &until, full))
				write(t, x.s, 0x44, half+BlockSize, BlockSize)
				// A try that knew is the last one.
				err := x.s.awaitCheckpoint(freed, true, half, BlockSize, true, &until, full)
				wantErr(t, "a try that could take it", err, ErrFull)
			})
		})
	}
}

func TestWriteDoesNotWaitWhereNobodyCanBeAskedForACheckpoint(t *testing.T) {
	for name, cfg := range map[string]SecondaryConfig{
		"there is no bus":      {},
		"it is not to wait":    {Events: new(event.Bus), FullTimeout: -1},
		"it can never have it": {Events: new(event.Bus)},
	} {
		t.Run(name, func(t *testing.T) {
			cfg.ActiveBytes = fullBlocks * BlockSize
			s, _ := newSecondary(t, cfg)
			_, err := s.WriteAt(make([]byte, (fullBlocks-leafCost+1)*BlockSize), 0)
			wantErr(t, "larger than the overlay", err, ErrFull)
			if name == "it can never have it" {
				return
			}
			for b := range int64(s.active.bound() - leafCost) {
				write(t, s, 0x22, b*BlockSize, BlockSize)
			}
			_, err = s.WriteAt(make([]byte, BlockSize), half)
			wantErr(t, "write", err, ErrFull)
		})
	}
}
