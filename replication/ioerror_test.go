package replication

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/event"
)

func TestAGuestsRequestThatItsDiskFailsIsToldOf(t *testing.T) {
	for _, mode := range []event.Mode{event.ModePrimary, event.ModeSecondary} {
		synctest.Test(t, func(t *testing.T) {
			bus, heard := heard[event.BlockIOError]()
			disk := newFake(testSize, 0x11)
			var guest Disk
			if mode == event.ModePrimary {
				p, err := NewPrimary(disk, PrimaryConfig{Name: "root", Events: bus})
				must(t, err)
				guest = p
			} else {
				s, err := NewSecondary(disk, SecondaryConfig{Name: "root", Events: bus})
				must(t, err)
				must(t, s.Start(t.Context()))
				must(t, s.Stop(t.Context(), true))
				guest = s
			}
			if _, err := guest.WriteAt(make([]byte, 1), testSize); err == nil || len(*heard) != 0 {
				t.Errorf("a write behind the end: %v, told %+v", err, *heard)
			}
			var fails error = syscall.EIO
			disk.failRead = func(int64, int) error { return fails }
			disk.failWrite = func(int64, int) error { return fails }
			for range 100 {
				_, err := guest.ReadAt(make([]byte, SectorSize), 0)
				wantErr(t, "a read", err, syscall.EIO)
				_, err = guest.WriteAt(make([]byte, SectorSize), 0)
				wantErr(t, "a write", err, syscall.EIO)
			}
			if len(*heard) != 2 {
				t.Fatalf("told %d times at once, want once of either kind: %+v", len(*heard), *heard)
			}
			for i, op := range []event.IOOperation{event.IORead, event.IOWrite} {
				e := (*heard)[i]
				if e.NodeName != "root" || e.Operation != op || e.Action != event.IOReport || *e.NoSpace ||
					!strings.HasPrefix(e.Reason, string(mode)) || !strings.Contains(e.Reason, "input/output error") {
					t.Errorf("told %+v", e)
				}
			}
			time.Sleep(ioErrorsEvery)
			fails = syscall.ENOSPC
			_, err := guest.WriteAt(make([]byte, SectorSize), 0)
			wantErr(t, "a write without room", err, syscall.ENOSPC)
			if len(*heard) != 3 || !*(*heard)[2].NoSpace {
				t.Errorf("a second later: %+v", *heard)
			}
		})
	}
}

// A request that was refused has not reached the disk, so nobody is sent to look at that. One that is
// refused since the disk hangs is told of.
func TestARequestThatIsRefusedIsNotTheDisksFault(t *testing.T) {
	for _, refused := range []error{ErrRange, ErrFenced, ErrGated, ErrNotRunning, ErrFull} {
		bus, heard := heard[event.BlockIOError]()
		var told ioErrors
		told.tell(bus, event.ModePrimary, "root", event.IOWrite, fmt.Errorf("a write: %w", refused))
		if len(*heard) != 0 {
			t.Errorf("%v: told %+v", refused, *heard)
		}
		told.tell(bus, event.ModePrimary, "root", event.IOWrite, errors.Join(refused, ErrHung))
		if len(*heard) != 1 {
			t.Errorf("%v of a disk that hangs: told %+v", refused, *heard)
		}
	}
}
